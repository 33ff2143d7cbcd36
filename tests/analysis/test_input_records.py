import pytest

from skipnet_jax import libraries
from skipnet_jax.analysis import input_records


@pytest.mark.parametrize("content", ["", '{"cifar": {"images_per_second": 1', "[]", '{"cifar": {"cores": 2}}'])
def test_a_damaged_file_costs_no_plan(tmp_path, monkeypatch, capsys, content):
    """The table is made after hours of compiling."""
    monkeypatch.setattr(libraries, "cache_folder", lambda: str(tmp_path))
    (tmp_path / "input_rates.json").write_text(content)
    assert input_records.recorded("cifar10") is None
    assert capsys.readouterr().err.startswith(f"WARNING: {tmp_path}/input_rates.json")
    input_records.record("cifar", 12345.6, cores=2)
    rate = input_records.recorded("cifar10")
    assert rate is not None and (rate.images_per_second, rate.cores) == (12345.6, 2)
