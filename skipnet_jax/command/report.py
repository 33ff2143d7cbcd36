"""Writes one HTML file about a run, or comparing several, to read anywhere without a network connection.

    %(prog)s runs/digits --out=report.html
    %(prog)s runs/skip_s0 runs/skip_s1 runs/plain_s0 --out=comparison.html

It includes the pictures of `skipnet explain` and of `skipnet evaluate --details`.
"""

import argparse
import sys
from collections.abc import Sequence

from skipnet_jax.errors import UserError


def main(argv: Sequence[str], program: str = "skipnet report") -> int:
    """Writes the report.

    Args:
      argv: the command line without the program's name.

    Returns:
      The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a run, local or gs://...")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="default: report.html")
    arguments = parser.parse_args(argv)
    from skipnet_jax.analysis.report import write_report  # slow to import

    try:
        print(f"written: {write_report(arguments.workdirs, arguments.out)}")
    except UserError as error:
        print(f"error: {error.message(lambda field: '--out' if field == 'out' else field)}", file=sys.stderr)
        return 2
    return 0
