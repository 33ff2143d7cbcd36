"""scripts/endurance.py, with few kills."""

import json

import pytest

from scripts import endurance


@pytest.mark.slow
def test_two_kills_change_no_bit(capsys):
    assert endurance.main(["--kills=2", "--hosts=1", "--epochs=3", "--seed=3"]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    values = dict(zip(endurance.COLUMNS, row, strict=True))
    assert values["same bits"] == "yes" and values["hung"] == "0"
    assert values["kills"] == str(sum(int(values[name]) for name in ("in the start", "in a save", "else")))


def test_another_bit_or_another_metric_is_noticed(tmp_path):
    for name in ("one", "other"):
        folder = tmp_path / name / "checkpoints" / "12" / "checksums"
        folder.mkdir(parents=True)
        (folder.parents[1] / "9").mkdir()
        (folder / "metadata").write_text(json.dumps({"arrays": {"step": ["int32[]", 7]}, "crc32": 1}))
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 12, "train/loss": 0.5, "images_per_second": 3}\n')
    one, other = tmp_path / "one", tmp_path / "other"
    file = other / "metrics.jsonl"
    file.write_text(file.read_text().replace("3}", "4}"))
    assert endurance.end(one) == endurance.end(other)  # speed is no result
    file.write_text(file.read_text().replace("0.5", "0.6"))
    assert endurance.end(one) != endurance.end(other)
    file.write_text((one / "metrics.jsonl").read_text())
    sums = other / "checkpoints" / "12" / "checksums" / "metadata"
    sums.write_text(sums.read_text().replace("7", "8"))
    assert endurance.end(one) != endurance.end(other)
