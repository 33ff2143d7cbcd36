"""scripts/endurance.py, with few kills."""

import json
import pathlib

import pytest

from scripts import endurance


@pytest.mark.slow
def test_three_kills_change_no_bit(capsys):
    assert endurance.main(["--kills=3", "--hosts=1", "--epochs=3", "--seed=3"]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    values = dict(zip(endurance.COLUMNS, row, strict=True))
    assert values["same bits"] == "yes" and values["hung"] == "0" and int(values["ends"]) >= 1
    assert values["kills"] == str(sum(int(values[name]) for name in endurance.AIMS)) == "3"


def write_run(folder: pathlib.Path) -> pathlib.Path:
    files = {
        "checkpoints/9/x": "",
        "checkpoints/12/checksums/metadata": json.dumps({"arrays": {"step": ["int32[]", 7]}, "crc32": 1}),
        "metrics.jsonl": '{"step": 12, "train/loss": 0.5, "images_per_second": 3}\n',
        "export/safetensors/export.json": json.dumps({"step": 12, "checkpoint": f"{folder}"}),
        "export/safetensors/network.safetensors": "arrays",
        "results.json": json.dumps([{"step": 12, "accuracy": 0.5, "checkpoint": f"{folder}"}]),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_another_bit_or_another_number_is_noticed(tmp_path):
    whole = endurance.end(write_run(tmp_path / "one"))
    differences = {
        "checkpoints/12/checksums/metadata": ("7", "8"),
        "metrics.jsonl": ("0.5", "0.6"),
        "export/safetensors/network.safetensors": ("arrays", "arraYs"),
        "results.json": ("0.5", "0.6"),
    }
    for number, (name, (old, new)) in enumerate(differences.items()):
        other = write_run(tmp_path / f"other_{number}")
        assert endurance.end(other) == whole
        (other / name).write_text((other / name).read_text().replace(old, new))
        assert endurance.end(other) != whole, name


def test_speed_and_evaluations_of_other_steps_are_no_result(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    (other / "metrics.jsonl").write_text((one / "metrics.jsonl").read_text().replace("3}", "4}"))
    results = json.loads((one / "results.json").read_text())
    (other / "results.json").write_text(json.dumps([{"step": 9, "accuracy": 0.1}, *results]))
    assert endurance.end(one) == endurance.end(other)
