"""Files of text and JSON."""

import errno
import os

import pytest
from etils import epath

from skipnet_jax import errors, files

FIELDS = {"name": str, "step": int, "loss": float, "classes": list[str], "sums": dict[str, float]}
WHOLE = {"name": "a", "step": 3, "loss": 1, "classes": ["x"], "sums": {"count": 2}, "more": None}


def put_in_place(file, text):
    new = file.with_name("finished")
    new.write_text(text)
    files.put_in_place(new, file)


@pytest.mark.parametrize("write", [files.write_text, put_in_place])
def test_the_old_file_stays_until_the_whole_new_one_is_on_the_disk(tmp_path, monkeypatch, write):
    """No test can cut the power, so this one looks at the order: what is synced, and which file has the name then."""
    file = tmp_path / "file"
    file.write_text("old")
    seen, fsync = [], os.fsync

    def look(descriptor):
        fsync(descriptor)
        synced = os.fstat(descriptor)
        seen.append((synced.st_ino, synced.st_size, file.read_text()))

    monkeypatch.setattr(os, "fsync", look)
    write(file, "new and longer")
    assert seen == [(file.stat().st_ino, len("new and longer"), "old")]
    assert file.read_text() == "new and longer"
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def no_rename_over_files(monkeypatch):
    """A file system like some in networks; there is none here, so `os` behaves like one."""
    original = os.rename

    def renamed(source, target):
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, "File exists", str(source), None, str(target))
        original(source, target)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renamed)


def test_a_file_system_that_does_not_rename_over_files(tmp_path, no_rename_over_files):
    file = tmp_path / "file"
    for text in ("one", "two", "three"):
        files.write_text(file, text)
        assert file.read_text() == text and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("renames_done", [1, 2])
def test_there_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch, no_rename_over_files, renames_done):
    file, count, rename = epath.Path(tmp_path) / "file", [], os.rename
    files.write_text(file, "one")

    def killed(*names):
        if len(count) == renames_done:
            raise KeyboardInterrupt
        rename(*names)
        count.append(names)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed)
        for name in ("unlink", "remove"):
            patch.setattr(os, name, killed)
        files.write_text(file, "two")
    assert file.exists() == (renames_done == 2)
    files.restore_interrupted(epath.Path(tmp_path))
    assert file.read_text() == ("one", "two")[renames_done - 1]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".old")]


def test_lines_that_find_no_room_wait_for_the_next_call(tmp_path):
    unwritten = files.append_lines("/dev/full", [{"step": 1}])
    assert unwritten == b'{"step": 1}\n'
    file = tmp_path / "lines"
    assert files.append_lines(file, [{"step": 2}], unwritten=unwritten) == b""
    with file.open("a") as stream:
        stream.write('{"step": 3')  # a torn line
    assert files.read_lines(file, {"step": int}) == [{"step": 1}, {"step": 2}]


def test_a_record_with_the_right_fields_is_read(tmp_path):
    files.write_json(tmp_path / "record.json", WHOLE)
    assert files.read_record(tmp_path / "record.json", FIELDS) == WHOLE
    files.write_json(tmp_path / "records.json", [WHOLE, WHOLE])
    assert files.read_records(tmp_path / "records.json", FIELDS) == [WHOLE, WHOLE]
    assert files.read_records(tmp_path / "missing.json", FIELDS) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([WHOLE], "got a list, expected an object with name, step, loss, classes, sums. Mend it."),
        ({"name": "a"}, "got no step, expected step of type int. Mend it."),
        (WHOLE | {"step": True}, "got step=True, expected step of type int. Mend it."),
        (WHOLE | {"loss": "1"}, "got loss='1', expected loss of type float. Mend it."),
        (WHOLE | {"classes": ["x", 1]}, r"got classes=\['x', 1\], expected classes of type list\[str\]. Mend it."),
        (WHOLE | {"sums": {"count": None}}, "expected sums of type dict"),
    ],
)
def test_a_record_with_wrong_fields_is_an_error(tmp_path, content, message):
    file = tmp_path / "record.json"
    files.write_json(file, content)
    with pytest.raises(errors.DataError, match=f"record.json: .*{message}"):
        files.read_record(file, FIELDS, mend="Mend it.", kind_of_error=errors.DataError)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"9" * 5000, b"[" * 100_000])
def test_text_that_is_no_json_is_an_error(text):
    with pytest.raises(errors.UserError, match="here: got no valid JSON"):
        files.parse_json(text, "here")
