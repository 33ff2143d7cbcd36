"""Executes docs/notebook.ipynb from top to bottom and stores what it shows.

    python scripts/run_notebook.py                   rewrites the notebook with its outputs
    python scripts/run_notebook.py --output=FILE     writes to FILE instead; the tests do this

It runs in a temporary folder, whose name is not stored: outputs say /path/to instead. A cell that fails is an error.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELL_SECONDS = 300  # longer than any cell takes on a busy machine


def main(argv: Sequence[str]) -> int:
    """Executes the notebook.

    Args:
      argv: the command line without the program's name.

    Returns:
      Exit status: 1 if a cell failed, 2 if nothing could be executed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(NOTEBOOK), help="file to write (default: the notebook itself)")
    arguments = parser.parse_args(argv)
    try:
        import ipykernel  # noqa: F401  what nbclient starts
        import nbclient
        import nbformat
    except ImportError as error:
        print(f'error: {error.name} is not installed. Run: pip install -e ".[test]"', file=sys.stderr)
        return 2
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            record_timing=False,
        )
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError as error:
            print(f"error: a cell failed\n{error}", file=sys.stderr)
            return 1
        forget_place(notebook, os.path.realpath(folder))
    nbformat.write(notebook, arguments.output)
    return 0


def forget_place(notebook: Any, folder: str) -> None:
    """Takes out of a notebook what tells where and with what it was executed.

    Args:
      notebook: of nbformat.
      folder: that it ran in.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = output.text.replace(folder, "/path/to")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
