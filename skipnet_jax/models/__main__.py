"""Prints the table of networks: `python -m skipnet_jax.models 'skip_*' --format=markdown`."""

import argparse
import sys
from collections.abc import Sequence

from skipnet_jax.models import list_models, model_info


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the networks that match a pattern.

    Args:
      argv: the command line without the program's name; None = the process's own.
    """
    from skipnet_jax.analysis import tables  # which reads the networks: the networks do not need it

    parser = argparse.ArgumentParser(
        prog="python -m skipnet_jax.models",
        description="The networks: parameters, FLOPs (a multiply-add counts 1), size of the published training images "
        "and published accuracy. About a second a network.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a name, or a shell pattern such as 'skip_*'")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="json: exact numbers")
    parser.add_argument("--features", action="store_true", help="channels and strides of the feature pyramid")
    parser.add_argument("--xla", action="store_true", help="XLA's estimate of the FLOPs (a multiply-add counts 2)")
    arguments = parser.parse_args(argv)

    names = list_models(arguments.pattern)
    if not names:
        try:
            model_info(arguments.pattern)  # knows the nearest names
        except ValueError as error:
            parser.error(str(error))
    rows = []
    for i, name in enumerate(names, start=1):
        if sys.stderr.isatty():
            print(f"\r\033[K{i}/{len(names)} {name}", end="", file=sys.stderr, flush=True)
        rows.append(tables.make_row(name, xla=arguments.xla, features=arguments.features))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)

    columns = tables.columns(xla=arguments.xla, features=arguments.features)
    if arguments.format == "json":
        print(tables.format_json(rows))
    elif arguments.format == "markdown":
        print(tables.format_markdown(rows, columns))
    else:
        print(tables.format_text(rows, columns))


if __name__ == "__main__":
    main()
