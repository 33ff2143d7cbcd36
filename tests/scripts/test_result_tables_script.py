"""scripts/result_tables.py as a user calls it."""

import dataclasses
import json
import subprocess
import sys

import pytest

from scripts import result_tables as script
from skipnet_jax import evaluate, train
from tests.analysis import made_runs
from tests.tiny_runs import TinyNet, use_network


@pytest.mark.slow
def test_a_run_that_is_trained_and_evaluated_beside_one_that_is_not_evaluated(tmp_path, capsys, monkeypatch):
    use_network(monkeypatch, TinyNet())
    spec = made_runs.spec_of("resnet20", "digits", 10, 8, batch_size=256)
    spec = dataclasses.replace(spec, optim=dataclasses.replace(spec.optim, warmup_epochs=0))
    train.train_and_evaluate(spec, tmp_path / "trained")
    [record] = evaluate.evaluate_workdir(tmp_path / "trained", "5")  # after the first of two epochs
    gated = dataclasses.replace(spec, model=dataclasses.replace(spec.model, name="skip_resnet20"))
    made_runs.write(tmp_path / "made", gated, learnt=json.loads((tmp_path / "trained" / "data.json").read_text()))
    capsys.readouterr()
    assert script.main([*map(str, sorted(tmp_path.iterdir())), f"--plots={tmp_path / 'pictures'}"]) == 0
    shown = capsys.readouterr()
    rows = [line.strip("| ").split(" | ") for line in shown.out.splitlines() if "ResNet" in line]
    assert rows == [
        ["ResNet-20", "272.5k", "2.606M", f"{100 * record['accuracy']:.2f}<sub>1</sub>"],
        ["Skip-ResNet-20", "316.7k", "2.696M", "90.00<sub>1</sub>"],
    ]
    assert "note: Digits at 8 px: 1 of 2 runs have no record of --mode=evaluate in results.json" in shown.err
    assert f"an earlier checkpoint than the last: {tmp_path / 'trained'} (step 5 of 10)" in shown.err
    names = {f"{kind}_digits.{form}" for kind in ("curves", "trade_off") for form in ("png", "svg")}
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == names


def test_formats_and_pictures(tmp_path, capsys):
    path = made_runs.write(tmp_path / "run", made_runs.DIGITS)
    starts = {"latex": "% needs \\usepackage{booktabs}\n\\begin{table}\n", "csv": "data,classes,", "markdown": "## "}
    for form, start in starts.items():
        assert script.main([str(path), f"--format={form}", f"--plots={tmp_path / form}"]) == 0
        assert capsys.readouterr().out.startswith(start)
        assert {file.name for file in (tmp_path / form).iterdir()} == {"curves_digits.png", "curves_digits.svg"}


def test_mistakes_take_one_line_and_end_with_2(tmp_path, capsys):
    made_runs.write(tmp_path / "one", made_runs.DIGITS)
    made_runs.write(tmp_path / "short", made_runs.DIGITS, accuracies=(0.5,))
    (tmp_path / "file").touch()
    for arguments, message in {
        (tmp_path / "nowhere",): "nowhere, which has no config.json",
        (tmp_path / "one", tmp_path / "one"): "the same run twice",
        (tmp_path / "short",): "got 1 unfinished run(s)",
        (
            tmp_path / "one",
            f"--plots={tmp_path / 'file'}",
        ): f"--plots: got {tmp_path / 'file'}, which cannot be written",
    }.items():
        assert script.main([*map(str, arguments)]) == 2
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and message in error


def test_runs_as_a_command():
    done = subprocess.run([sys.executable, script.__file__], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "WORKDIR" in done.stderr and "Traceback" not in done.stderr
