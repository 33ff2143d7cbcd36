#!/usr/bin/env python
"""One HTML file about a run, or a comparison of several: to read anywhere, without a network connection.

    python scripts/report.py runs/digits --out=report.html
    python scripts/report.py runs/skip_s0 runs/skip_s1 runs/plain_s0 --out=comparison.html

What `python -m skipnet_jax.main --mode=explain` and `--mode=evaluate --details` have drawn is in it.
"""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Writes the report.

    Args:
      argv: the command line without the program's name.

    Returns:
      Exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a run; local or in a bucket (gs://...)")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="default: report.html")
    arguments = parser.parse_args(argv)
    try:
        from skipnet_jax.analysis.report import write_report

        print(f"written: {write_report(arguments.workdirs, arguments.out)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
