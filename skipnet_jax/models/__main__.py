"""Prints the table of networks, as `skipnet models` does: `python -m skipnet_jax.models 'skip_*'`."""

import sys

from skipnet_jax.command.networks import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m skipnet_jax.models"))
