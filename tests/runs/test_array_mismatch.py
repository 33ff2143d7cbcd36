import pytest

from skipnet_jax.runs import array_mismatch


def test_every_kind_is_told_and_of_many_arrays_the_first():
    stored = {"same": "float32[2]", "other": "float32[3]", "old": "int32[]"}
    expected = {"same": "float32[2]", "other": "float32[4]", **{f"new/{i}": "float32[1]" for i in range(7)}}
    with pytest.raises(ValueError) as error:
        array_mismatch.require_none("runs/one", stored, expected)
    assert str(error.value).splitlines()[1:-1] == [
        "  missing in the checkpoint: new/0, new/1, new/2, new/3, new/4, and 2 more",
        "  unknown to the network: old",
        "  different: other (got float32[3], expected float32[4])",
    ]
    array_mismatch.require_none("runs/one", stored, dict(stored))
