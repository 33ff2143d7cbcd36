import dataclasses
import importlib.util
import pathlib
import subprocess
import sys

import flax.linen as nn
import pytest

from skipnet_jax import evaluate, train
from tests.analysis import made_runs

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "result_tables.py"


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10, name="classifier")(images.reshape(len(images), -1))


@pytest.fixture
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("result_tables_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trained_evaluated_and_shown(tmp_path, script, monkeypatch, capsys):
    """Of one run the evaluation is what counts, of the others the last test of training."""
    monkeypatch.setattr(train, "create_model", lambda **_: TinyNet())
    monkeypatch.setattr(evaluate, "create_model", lambda **_: TinyNet())
    trained = {}
    for network, seed in (("resnet20", 0), ("resnet20", 1), ("skip_resnet20", 0)):
        spec = made_runs.spec_of(network, "digits", 10, 8, seed=seed)
        spec = dataclasses.replace(spec, batch_size=256, optim=dataclasses.replace(spec.optim, warmup_epochs=0))
        path = tmp_path / f"{network}-{seed}"
        trained[network, seed] = train.train_and_evaluate(spec, path)["accuracy"]
    [record] = evaluate.evaluate_workdir(path, "5")  # after the first of two epochs
    capsys.readouterr()
    assert script.main([*map(str, sorted(tmp_path.iterdir())), f"--plots={tmp_path / 'pictures'}"]) == 0
    shown = capsys.readouterr()
    assert "## Digits\n" in shown.out
    rows = [line.strip("| ").split(" | ") for line in shown.out.splitlines() if "ResNet" in line]
    assert rows == [
        ["ResNet-20", "272.5k", "2.606M", f"{50 * (trained['resnet20', 0] + trained['resnet20', 1]):.2f}<sub>2</sub>"],
        ["Skip-ResNet-20", "316.7k", "2.696M", f"{100 * record['accuracy']:.2f}<sub>1</sub>"],
    ]
    assert "note: Digits at 8 px: 2 of 3 runs are not in a results.json" in shown.err
    assert f"an earlier one: {path} (step 5 of 10)" in shown.err
    names = {f"{kind}_digits.{form}" for kind in ("curves", "trade_off") for form in ("png", "svg")}
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == names


@pytest.mark.parametrize(
    ("form", "start"),
    [("latex", "% needs \\usepackage{booktabs}\n\\begin{table}\n"), ("csv", "data,classes,"), ("markdown", "## ")],
)
def test_forms(tmp_path, script, capsys, form, start):
    path = made_runs.write(tmp_path, made_runs.DIGITS)
    assert script.main([str(path), f"--format={form}"]) == 0
    assert capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere"], "nowhere, which has no config.json"),
        (["one", "one"], "the same run twice"),
        (["under_way"], "got no finished run (1 unfinished)"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, script, capsys, names, message):
    made_runs.write(tmp_path / "one", made_runs.DIGITS)
    made_runs.write(tmp_path / "under_way", made_runs.DIGITS, accuracies=(0.5,))
    assert script.main([str(tmp_path / name) for name in names]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [*_, error] = shown.err.splitlines()
    assert error.startswith("error: ") and message in error


def test_a_folder_that_cannot_be_written_is_told(tmp_path, script, capsys):
    path = made_runs.write(tmp_path / "run", made_runs.DIGITS)
    (tmp_path / "file").touch()
    assert script.main([str(path), f"--plots={tmp_path / 'file'}"]) == 2
    assert f"error: --plots: got {tmp_path / 'file'}, which cannot be written" in capsys.readouterr().err


def test_runs_as_a_command():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "WORKDIR" in done.stderr and "Traceback" not in done.stderr
