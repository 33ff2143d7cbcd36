#!/usr/bin/env python
"""Writes one HTML file about runs, as `skipnet report` does; --help has examples."""

import sys

from skipnet_jax.command.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python scripts/report.py"))
