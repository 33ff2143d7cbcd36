"""Executes docs/notebook.ipynb and stores its outputs.

    python scripts/run_notebook.py                   rewrites the notebook with its outputs
    python scripts/run_notebook.py --output=FILE     writes to FILE instead; the tests do this

The notebook runs in a temporary folder, whose name appears as /path/to in the stored outputs.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELL_SECONDS = 300  # more than any cell takes, even on a busy machine
METADATA = {  # says nothing about this machine
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main(argv: Sequence[str]) -> int:
    """Executes the notebook.

    Returns:
      Exit status: 1 if a cell failed, 2 if a library is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(NOTEBOOK), help="default: the notebook itself")
    arguments = parser.parse_args(argv)
    try:
        import ipykernel  # noqa: F401  nbclient starts it
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
        notebook.metadata = METADATA
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "text" in output:
                    output.text = output.text.replace(os.path.realpath(folder), "/path/to")
    nbformat.write(notebook, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
