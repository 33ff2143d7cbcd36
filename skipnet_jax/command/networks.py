"""Prints the table of networks, or of those that match a pattern."""

import argparse
import sys
from collections.abc import Sequence

from skipnet_jax.errors import UserError


def main(argv: Sequence[str], program: str = "skipnet models") -> int:
    """Prints the networks that match a pattern.

    Args:
      argv: the command line without the program's name.

    Returns:
      The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="The networks: parameters, FLOPs (a multiply-add counts 1), size of the published training images "
        "and published accuracy.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a name, or a shell pattern such as 'skip_*'")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="json: exact numbers")
    parser.add_argument("--published", action="store_true", help="only those of the published tables")
    parser.add_argument("--features", action="store_true", help="add the channels and strides of the feature pyramid")
    parser.add_argument("--xla", action="store_true", help="add XLA's estimate of the FLOPs (a multiply-add counts 2)")
    arguments = parser.parse_args(argv)
    from skipnet_jax import libraries
    from skipnet_jax.models import table, zoo  # slow to import

    if arguments.xla:
        try:
            libraries.require_devices()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    infos = [table.model_info(name) for name in zoo.list_models(arguments.pattern)]
    if not infos:
        try:
            zoo.find(arguments.pattern)  # its error lists the nearest names
        except UserError as error:
            parser.error(error.message(lambda _: "pattern"))
    if arguments.published:
        infos = [info for info in infos if info.published_name in table.published_results()]
        if not infos:
            parser.error(f"--published: no network that matches {arguments.pattern} is in the published tables.")
    columns = table.columns(xla=arguments.xla, features=arguments.features)
    if arguments.format == "json":
        lines = table.json_lines(infos, xla=arguments.xla)
    elif arguments.format == "markdown":
        lines = table.markdown_lines(infos, columns)
    else:
        lines = table.text_lines(infos, columns)
    for line in lines:
        print(line, flush=True)  # XLA's estimate takes a few seconds each
    return 0
