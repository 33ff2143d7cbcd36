import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def run_notebook(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "run_notebook.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def sources(path):
    return ["".join(cell["source"]) for cell in code_cells(path)]


def texts(path):
    """Every printed or returned text, after its kind: stdout, stderr, execute_result, display_data or error."""
    for cell in code_cells(path):
        for output in cell["outputs"]:
            text = output.get("text", output.get("data", {}).get("text/plain", ""))
            yield output.get("name", output["output_type"]), "".join(text)


@pytest.mark.slow
def test_every_cell_runs_and_the_network_learns(tmp_path):
    before = NOTEBOOK.read_bytes()
    done = run_notebook(f"--output={tmp_path / 'executed.ipynb'}")
    assert done.returncode == 0, done.stderr
    assert NOTEBOOK.read_bytes() == before
    assert sources(tmp_path / "executed.ipynb") == sources(NOTEBOOK)
    outputs = list(texts(tmp_path / "executed.ipynb"))
    assert {kind for kind, _ in outputs} <= {"stdout", "execute_result", "display_data"}
    printed = "".join(text for _, text in outputs)
    right = int(re.search(r"(\d+) of 360 test images are right", printed)[1])
    assert right > 250
    assert f"({right} of 360 images)" in printed  # evaluation after training counts as many
    assert "/path/to/runs/notebook" in printed and str(ROOT) not in printed


def test_the_stored_notebook_was_executed_from_top_to_bottom_and_names_no_machine():
    content = NOTEBOOK.read_text()
    assert len(content) < 400_000
    assert [cell["execution_count"] for cell in code_cells(NOTEBOOK)] == [*range(1, len(code_cells(NOTEBOOK)) + 1)]
    assert {kind for kind, _ in texts(NOTEBOOK)} <= {"stdout", "execute_result", "display_data"}
    printed = "".join(text for _, text in texts(NOTEBOOK))
    assert re.findall(r"(?<![\w.])/(?!path/to\b)\w+/[\w/]+", printed) == []
    assert json.loads(content)["metadata"].keys() == {"kernelspec", "language_info"}


@pytest.mark.slow
def test_a_failing_cell_is_an_error(tmp_path):
    """A copy of the script, beside a notebook of its own."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docs").mkdir()
    script = tmp_path / "scripts" / "run_notebook.py"
    script.write_text((ROOT / "scripts" / "run_notebook.py").read_text())
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": "1 / 0"}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "docs" / "notebook.ipynb").write_text(json.dumps(notebook))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: a cell failed\n" in done.stderr and "ZeroDivisionError" in done.stderr
    assert json.loads((tmp_path / "docs" / "notebook.ipynb").read_text()) == notebook
