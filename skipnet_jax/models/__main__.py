"""Prints the table of networks: `python -m skipnet_jax.models 'skip_*' --format=markdown`."""

import argparse
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
        "and published accuracy. Nothing is computed, but each network is traced: a few minutes for all of them.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a name, or a shell pattern such as 'skip_*'")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="json: exact numbers")
    parser.add_argument("--published", action="store_true", help="only those of the published tables")
    parser.add_argument("--features", action="store_true", help="add the channels and strides of the feature pyramid")
    parser.add_argument("--xla", action="store_true", help="add XLA's estimate of the FLOPs (a multiply-add counts 2)")
    arguments = parser.parse_args(argv)

    names = list_models(arguments.pattern)
    if not names:
        try:
            model_info(arguments.pattern)  # knows the nearest names
        except ValueError as error:
            parser.error(str(error))
    if arguments.published:
        names = [name for name in names if model_info(name).published_name in tables.published_results()]
        if not names:
            parser.error(f"--published: none of the networks {arguments.pattern} is in the published tables.")
    rows = (tables.make_row(name, xla=arguments.xla) for name in names)
    columns = tables.columns(xla=arguments.xla, features=arguments.features)
    if arguments.format == "json":
        lines = tables.json_lines(rows)
    elif arguments.format == "markdown":
        lines = tables.markdown_lines(rows, columns)
    else:
        lines = tables.text_lines(rows, columns)
    for line in lines:
        print(line, flush=True)  # every line takes its time


if __name__ == "__main__":
    main()
