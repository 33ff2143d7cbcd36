import os

import pytest

from skipnet_jax import files


def write_text(file, text):
    files.write_text(file, text)


def put_in_place(file, text):
    new = file.with_name("finished")
    new.write_text(text)
    files.put_in_place(new, file)


@pytest.mark.parametrize("write", [write_text, put_in_place])
def test_the_old_file_stays_until_the_whole_new_one_is_on_the_disk(tmp_path, monkeypatch, write):
    """A loss of power cannot be had here, so the order is looked at: what is synced, and what has the name then."""
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
