#!/usr/bin/env python
"""Turns images into shuffled TFRecord shards, as `skipnet shards` does; --help has examples."""

import sys

from skipnet_jax.command.shards import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python scripts/make_tfrecords.py"))
