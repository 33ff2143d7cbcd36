"""scripts/fashion_results.py on a run of seconds, instead of one of an hour on Fashion-MNIST."""

import json
import shutil

import pytest

from scripts import fashion_results
from skipnet_jax import evaluate
from skipnet_jax.models import zoo
from tests import tiny_runs


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Makes the script keep runs, write its page and draw its picture in a temporary folder."""
    page = tmp_path / "page.md"
    page.write_text(f"above\n<!-- {fashion_results.TABLES} -->\nold\n<!-- end of {fashion_results.TABLES} -->\nbelow\n")
    monkeypatch.setattr(fashion_results, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(fashion_results, "PAGE", page)
    monkeypatch.setattr(fashion_results, "PICTURE", tmp_path / "curves.png")
    return tmp_path


def test_a_finished_run_is_kept_and_told_without_its_workdir(places, finished_run, monkeypatch):
    tiny_runs.use_network(monkeypatch, tiny_runs.TinyNet())
    workdir = places / "run"
    shutil.copytree(finished_run, workdir)
    evaluate.evaluate_workdir(workdir, "latest", flip=True)  # is not the run's result
    with pytest.raises(SystemExit):
        fashion_results.main(["--keep", str(workdir)])
    [record] = evaluate.evaluate_workdir(workdir, "latest")
    assert fashion_results.main(["--keep", str(workdir)]) == 0
    shutil.rmtree(workdir)
    kept = places / "kept" / "skip_resnet20_seed0"
    assert {file.name for file in kept.iterdir()} == {
        *("config.json", "data.json", "metrics.jsonl", "results.json", "events.jsonl")
    }
    assert not any(str(places.parent) in file.read_text() for file in kept.iterdir())

    assert fashion_results.main(["--write"]) == 0
    above, _, below = (places / "page.md").read_text().partition("| `skip_resnet20` |")
    assert above.startswith("above\n") and below.endswith("below\n") and "old" not in above + below
    error = f"{100 * (1 - record['average_accuracy']):.2f}"
    assert f"| 316,714 | 1 | {error} | {error} | - |" in below
    revision = json.loads((kept / "events.jsonl").read_text().splitlines()[0])["git"]
    assert "| skip_resnet20_seed0 | 3 | 0.0 | 1 | 8 cpu | " in below and (revision or "-")[:12] in below
    assert (places / "curves.png").stat().st_size > 10_000

    events = [json.loads(line) | {"git": None} for line in (kept / "events.jsonl").read_text().splitlines()]
    (kept / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))  # not from a clone
    assert fashion_results.main(["--write"]) == 0
    assert "| - |\n<!-- end" in (places / "page.md").read_text()


def test_each_network_has_a_junction_to_name():
    for name in zoo.list_models():
        assert fashion_results.junction(name)
    assert fashion_results.junction("resnet32") == "addition"
    assert fashion_results.junction("skip_resnet56") == fashion_results.JUNCTIONS["skip_resnet20"]


def test_only_finished_runs_whose_last_checkpoint_was_evaluated_are_kept(places, finished_run, capsys):
    workdir = places / "run"
    shutil.copytree(finished_run, workdir)
    for expected in ("--mode=evaluate --workdir=", "which is not finished"):
        with pytest.raises(SystemExit) as end:
            fashion_results.main(["--keep", str(workdir)])
        assert end.value.code == 2 and expected in capsys.readouterr().err
        metrics = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        (workdir / "metrics.jsonl").write_text("".join(line for line in metrics if '"epoch": 3.0' not in line))
    assert not (places / "kept").exists()
