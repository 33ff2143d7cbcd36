import pytest

from skipnet_jax.data import class_names
from skipnet_jax.errors import UserError


def test_imagenet_s_classes_stand_in_the_order_of_folders_with_their_names():
    names = class_names.imagenet()
    assert len(set(names)) == 1000
    assert (names[0], names[999]) == ("n01440764", "n15075141")
    assert list(names) == sorted(names)  # as torch's folders, in whose order the published weights have their logits


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_names_are_read_in_any_usual_encoding(tmp_path, encoding, end):
    (tmp_path / "names.txt").write_bytes(end.join(["blau", "grün", "rot", ""]).encode(encoding))
    assert class_names.read("classes", str(tmp_path / "names.txt"), 3) == ("blau", "grün", "rot")


def test_a_list_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names.txt").write_text("red\n")
    assert class_names.read("classes", "~/names.txt", 1) == ("red",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "got 2 names in .*, expected 3 different names"),
        (b"a\nb\na\n", "got 'a' again as name 3"),
        (b"a\n\nb\n", "got an empty name as name 2"),
        (b"a\n\xff\n", "neither UTF-8 nor UTF-16"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"classes: {message}|classes: .*{message}"):
        class_names.read("classes", str(tmp_path / "names.txt"), 3)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="classes: got no names in"):
        class_names.read("classes", str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match="No such file"):
        class_names.read("classes", str(tmp_path / "nowhere.txt"), 3)
