"""Measures what this project claims to be fast.

    python scripts/benchmark.py step --models=resnet110,skip_resnet110 --batch=64 --peer=torch

`step` times the compiled training and evaluation steps, their memory, and what a gate costs; with --peer=torch
beside PyTorch.

    python scripts/benchmark.py accelerator

`accelerator` is `step` on a GPU or TPU: bfloat16, 224 px, batch 256, gated networks and plain ones, and PyTorch's on a
GPU.

    python scripts/benchmark.py layers --peer=torch

`layers` times the weight gradient of single convolutions, grouped against ungrouped.

    python scripts/benchmark.py start --models=skip_resnet110

`start` times what comes before the first training step, in fresh processes: without compiled programs, and with those
of an earlier start.

    python scripts/benchmark.py init --models=skip_resnet50,skip_resnet101

`init` times the first initialisation of a network in a fresh process, nothing compiled before: by `init_variables` (the
trainer's way), by Flax's `lazy_init`, by `init` as it is, and by `init` under `jax.jit`. Seconds, medians.

    python scripts/benchmark.py input --folder=DIR

`input` times the input of the CIFAR and ImageNet recipes by stage, beside a PyTorch DataLoader that does the same work
on the same images and cores, and says how much of a training step waits for data. It takes about 20 minutes, which
--seconds, --repeats and --paths shorten.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `scripts` and `configs` are packages there

from scripts.benchmark_arguments import Parser, at_least, network, networks, positive, some_of  # noqa: E402

PATHS = ("imagenet", "cifar")
MODES = ("train", "eval", "host")
DTYPES = ("float32", "bfloat16")


def print_step(arguments: argparse.Namespace) -> None:
    """Prints tables of times and ratios."""
    if arguments.peer == "torch":  # before JAX is asked for its devices: PyTorch needs memory there too
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from scripts import step_benchmark
    from scripts.step_contenders import Setting

    step_benchmark.run(
        arguments.models,
        setting=Setting(
            arguments.batch, arguments.image_size, arguments.dtype, arguments.bn_group_size, arguments.remat
        ),
        modes=arguments.modes,
        peer=arguments.peer == "torch",
        effort=step_benchmark.Effort(arguments.seconds, arguments.repeats),
        form=arguments.format,
    )


def print_accelerator(arguments: argparse.Namespace) -> None:
    """The same of many networks; fails where one of them did."""
    from scripts import accelerator_benchmark

    failed = accelerator_benchmark.run(
        batch=arguments.batch,
        image_size=arguments.image_size,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        peer=arguments.peer == "torch",
    )
    sys.exit(1 if failed else 0)


def print_layers(arguments: argparse.Namespace) -> None:
    """Prints a table of convolutions."""
    from scripts import layer_benchmark
    from scripts.step_benchmark import Effort

    layer_benchmark.run(
        batch=arguments.batch,
        dtype=arguments.dtype,
        peer=arguments.peer == "torch",
        effort=Effort(arguments.seconds, arguments.repeats),
    )


def print_start(arguments: argparse.Namespace) -> None:
    """Prints a table of seconds."""
    from scripts import start_benchmark

    start_benchmark.print_start(
        arguments.models,
        batch=arguments.batch,
        image_size=arguments.image_size,
        dtype=arguments.dtype,
        repeats=arguments.repeats,
    )


def print_init(arguments: argparse.Namespace) -> None:
    """Prints a table of seconds."""
    from scripts import start_benchmark

    start_benchmark.print_init(arguments.models, arguments.repeats)


def print_input(arguments: argparse.Namespace) -> None:
    """Prints tables of images/s."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # as in training, and before TensorFlow is imported
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from scripts import input_benchmark

    with tempfile.TemporaryDirectory() as scratch:
        input_benchmark.run(
            arguments.paths,
            images=arguments.images,
            folder=pathlib.Path(arguments.folder or scratch),
            networks={"imagenet": arguments.imagenet_model, "cifar": arguments.cifar_model},
            batch_sizes={"imagenet": arguments.imagenet_batch, "cifar": arguments.cifar_batch},
            effort=input_benchmark.Effort(arguments.seconds, arguments.repeats, arguments.steps),
        )


def add_effort(command: argparse.ArgumentParser, *, seconds: float, repeats: int) -> None:
    """Adds how long to measure."""
    command.add_argument("--seconds", type=positive, default=seconds, help=f"of each timed piece; default: {seconds:g}")
    command.add_argument("--repeats", type=at_least(1), default=repeats, help=f"rounds; default: {repeats}")


def add_setting(command: argparse.ArgumentParser, *, batch: int, peer: str = "none") -> None:
    """Adds what a step is of."""
    command.add_argument("--batch", type=at_least(2), default=batch, help=f"examples; default: {batch}")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation; default: float32")
    command.add_argument("--peer", choices=("none", "torch"), default=peer, help=f"to compare with; default: {peer}")


def add_steps(commands: argparse._SubParsersAction) -> None:
    """Adds the commands about networks and their steps."""
    size = {"type": at_least(8), "default": 0, "help": "side of the images in pixels; default: the network's own"}
    step = commands.add_parser("step", help="time and memory of training and evaluation steps")
    step.add_argument("--models", type=networks, default=["resnet110", "skip_resnet110"], help="with commas")
    step.add_argument("--image_size", **size)
    add_setting(step, batch=64)
    step.add_argument("--bn_group_size", type=at_least(0), default=0, help="examples; default: 0 = the whole batch")
    step.add_argument("--remat", action="store_true", help="recompute blocks in the backward pass")
    step.add_argument("--modes", type=some_of(MODES), default=["train", "eval"], help=f"of {','.join(MODES)}")
    step.add_argument("--format", choices=("markdown", "json"), default="markdown", help="default: markdown")
    add_effort(step, seconds=2.0, repeats=5)
    step.set_defaults(do=print_step)

    full = commands.add_parser("accelerator", help="the same on a GPU or TPU, at full size")
    full.add_argument("--batch", type=at_least(2), default=256, help="examples; default: 256")
    full.add_argument("--image_size", type=at_least(32), default=224, help="in pixels; default: 224")
    full.add_argument("--peer", choices=("none", "torch"), default="torch", help="on a GPU; default: torch")
    add_effort(full, seconds=2.0, repeats=5)
    full.set_defaults(do=print_accelerator)

    layers = commands.add_parser("layers", help="weight gradients of single convolutions, grouped and not")
    add_setting(layers, batch=8)
    add_effort(layers, seconds=0.5, repeats=5)
    layers.set_defaults(do=print_layers)

    start = commands.add_parser("start", help="time from nothing to the first training step")
    start.add_argument("--models", type=networks, default=["skip_resnet110"], help="with commas")
    start.add_argument("--batch", type=at_least(2), default=64, help="examples; default: 64")
    start.add_argument("--image_size", **size)
    start.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation; default: float32")
    start.add_argument("--repeats", type=at_least(1), default=1, help="fresh processes for each number; default: 1")
    start.set_defaults(do=print_start)

    init = commands.add_parser("init", help="time to initialise a network")
    init.add_argument("--models", type=networks, default=["skip_resnet50"], help="names, separated by commas")
    init.add_argument("--repeats", type=at_least(1), default=3, help="fresh processes for each number")
    init.set_defaults(do=print_init)


def add_input(commands: argparse._SubParsersAction) -> None:
    """Adds the command about the input."""
    data = commands.add_parser("input", help="images/s of the input, and what a training step waits for it")
    data.add_argument(
        "--paths", type=some_of(PATHS), default=list(PATHS), help="imagenet,cifar (default), or one of them"
    )
    data.add_argument("--folder", help="where the JPEGs are made and kept; default: a temporary one")
    data.add_argument("--images", type=at_least(2), default=1000, help="how many JPEGs; default: 1000")
    add_effort(data, seconds=10.0, repeats=3)
    data.add_argument("--imagenet_batch", type=at_least(1), default=64, help="examples; default: 64")
    data.add_argument("--cifar_batch", type=at_least(1), default=256, help="examples; default: 256")
    data.add_argument("--steps", type=at_least(0), default=10, help="timed training steps; default: 10; 0 = none")
    data.add_argument("--imagenet_model", type=network, default="resnet18", help="for these; default: resnet18")
    data.add_argument("--cifar_model", type=network, default="resnet20", help="for these; default: resnet20")
    data.set_defaults(do=print_input)


def main(argv: Sequence[str] | None = None) -> None:
    """Does what the command line says."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    add_steps(commands)
    add_input(commands)
    arguments = parser.parse_args(argv)
    if arguments.do is print_input and arguments.imagenet_batch > arguments.images:
        parser.error(f"--imagenet_batch: got {arguments.imagenet_batch}, expected at most --images={arguments.images}")
    if arguments.do is print_input and arguments.cifar_batch > 50_000:
        parser.error(f"--cifar_batch: got {arguments.cifar_batch}, expected at most 50000, the images")
    try:
        arguments.do(arguments)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
