from etils import epath

from skipnet_jax import files


def test_lines_that_find_no_room_wait_for_the_next_call(tmp_path):
    left = files.append_lines(epath.Path("/dev/full"), [{"step": 1}])
    assert left == b'{"step": 1}\n'
    file = epath.Path(tmp_path) / "lines"
    assert files.append_lines(file, [{"step": 2}], before=left) == b""
    assert files.read_lines(file) == [{"step": 1}, {"step": 2}]
