#!/usr/bin/env python
"""Results of runs in tables laid out like the published ones, beside the published figures, and in pictures.

    python scripts/result_tables.py runs/*
    python scripts/result_tables.py runs/* --format=latex > results.tex
    python scripts/result_tables.py runs/* --plots=pictures

Runs of one config with different seeds are one row: the median, and the number of runs as its subscript. Accuracies
come from what `python -m skipnet_jax.main --mode=evaluate` wrote, or from the test after a run's last epoch. What a
reader has to know besides is told on standard error.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath


def main(argv: Sequence[str]) -> int:
    """Prints the tables and draws the pictures.

    Args:
      argv: the command line without the program's name.

    Returns:
      Exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a run; local or in a bucket (gs://...)")
    parser.add_argument("--format", choices=("markdown", "latex", "csv"), default="markdown")
    parser.add_argument("--plots", metavar="DIR", help="draw pictures into this folder too, as PNG and SVG")
    arguments = parser.parse_args(argv)
    try:
        show(arguments.workdirs, arguments.format, arguments.plots)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(workdirs: Sequence[str], form: str, folder: str | None) -> None:
    """Prints the tables of runs, and draws them into a folder if there is one.

    Args:
      form: markdown, latex or csv.

    Raises:
      ValueError: a workdir holds no run, none of the runs is finished, or the folder cannot be written.
    """
    from skipnet_jax.analysis import comparison_plots, result_formats, result_notes, result_tables, runs

    every = [runs.read(workdir) for workdir in workdirs]
    groups = runs.group(run for run in every if run.finished)
    tables = result_tables.build(groups)
    if not groups:
        raise ValueError(
            f"got no finished run ({len(every)} unfinished), expected at least one. Train them to the end."
        )
    write = {
        "markdown": result_formats.markdown,
        "latex": result_formats.latex,
        "csv": result_formats.comma_separated,
    }
    print(write[form](tables), end="")
    for note in result_notes.notes(every, groups):
        print(f"note: {note}", file=sys.stderr)
    if folder is not None:
        try:
            drawn = [
                file
                for kind in ("png", "svg")
                for file in comparison_plots.draw(runs.group(every), tables, epath.Path(folder), kind)
            ]
        except OSError as error:
            raise ValueError(
                f"--plots: got {folder}, which cannot be written ({error.strerror or error}), expected one that can."
            ) from error
        for file in drawn:
            print(f"written: {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
