#!/usr/bin/env python
"""Prints the results of runs beside the published figures, in tables laid out like the published ones.

    python scripts/result_tables.py runs/*
    python scripts/result_tables.py runs/* --format=latex > results.tex
    python scripts/result_tables.py runs/* --plots=pictures

Runs that differ in their seed only share a row, which shows their median and, as a subscript, their number. Accuracies
come from `python -m skipnet_jax.main --mode=evaluate`, or else from the test after the last epoch. Notes for the reader
go to standard error.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from skipnet_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Prints the tables, draws the pictures, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a run, local or gs://...")
    parser.add_argument("--format", choices=("markdown", "latex", "csv"), default="markdown")
    parser.add_argument("--plots", metavar="DIR", help="also draw pictures into this folder, as PNG and SVG")
    arguments = parser.parse_args(argv)
    try:
        show(arguments.workdirs, arguments.format, arguments.plots)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(workdirs: Sequence[str], form: str, folder: str | None) -> None:
    """Prints the tables, and draws the pictures if there is a folder for them.

    Raises:
      UserError: a workdir holds no run, no run is finished, or the folder cannot be written.
    """
    from skipnet_jax.analysis import comparison_plots, result_formats, result_notes, result_tables, run_groups

    runs = [run_groups.read(workdir) for workdir in workdirs]
    groups = run_groups.group_by_config(run for run in runs if run.finished)
    if not groups:
        raise UserError("workdir", f"{len(runs)} unfinished run(s)", "at least one finished run", "Train to the end.")
    tables = result_tables.build(groups)
    write = {
        "markdown": result_formats.markdown,
        "latex": result_formats.latex,
        "csv": result_formats.comma_separated,
    }
    print(write[form](tables), end="")
    for note in result_notes.notes(runs, groups):
        print(f"note: {note}", file=sys.stderr)
    if folder is None:
        return
    everything = run_groups.group_by_config(runs)
    for kind in ("png", "svg"):
        try:
            drawn = comparison_plots.draw(everything, tables, epath.Path(folder), kind)
        except OSError as error:
            got = f"{folder}, which cannot be written ({error.strerror or error})"
            raise UserError("--plots", got, "a writable folder") from error
        for file in drawn:
            print(f"written: {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
