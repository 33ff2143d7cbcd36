from skipnet_jax.data import storage


def test_a_local_file_is_its_own_copy_and_stays(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with storage.local_copy(str(tmp_path / "file")) as path:
        assert path == str(tmp_path / "file")
    assert (tmp_path / "file").exists()


def test_the_checksum_covers_the_whole_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    # sha256sum's answer
    sha256 = "f4096a131e7e6ebfa7a512b5c299e13b065df34d15624ee1202ab394cc4d7e90"
    assert storage.hash_file(str(tmp_path / "file")) == (3_000_000, sha256)


def test_a_long_list_of_names_is_cut():
    assert storage.some(["a", "b"]) == "a, b"
    assert storage.some(list("abcdefg")) == "a, b, c, d, e and 2 more"
