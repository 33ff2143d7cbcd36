"""Measures what this project claims to be fast. Run it from the root of the repository.

    python -m scripts.benchmarks step --models=resnet110,skip_resnet110 --batch=64 --peer=torch

`step` times the compiled training and evaluation steps, their memory, and what a gate costs; with --peer=torch, beside
PyTorch.

    python -m scripts.benchmarks tpu --models=resnet50,skip_resnet50 --plain --linen

`tpu` compiles training steps for one chip and lists XLA:TPU's estimated megacycles; it needs no TPU.

    python -m scripts.benchmarks layers --peer=torch

`layers` times the weight gradient of single convolutions, grouped against ungrouped.

    python -m scripts.benchmarks start --models=skip_resnet110

`start` times everything before the first training step, in fresh processes: once with an empty compilation cache, and
once with the cache that the first process filled.

    python -m scripts.benchmarks init --models=skip_resnet50,skip_resnet101

`init` times four ways to initialise a network, each in a fresh process with nothing compiled: `init_variables` (the
trainer's way), Flax's `lazy_init`, `init`, and `init` under `jax.jit`. It prints medians in seconds.

    python -m scripts.benchmarks input --folder=DIR

`input` times each stage of the input pipeline for the CIFAR and ImageNet recipes, beside a PyTorch DataLoader that does
the same work on the same images and cores, and measures how long a training step waits for data. It takes about 20
minutes; --seconds, --repeats and --paths shorten it.
"""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Sequence

from scripts.benchmarks.arguments import Parser, at_least, network, networks, positive, some_of
from skipnet_jax.errors import UserError

PATHS = ("imagenet", "cifar")
MODES = ("train", "eval", "host")
DTYPES = ("float32", "bfloat16")


def run_step(arguments: argparse.Namespace) -> None:
    """Prints tables of times and ratios."""
    if arguments.peer == "torch":  # before JAX opens the device: PyTorch needs memory there too
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from scripts.benchmarks import steps
    from scripts.benchmarks.contenders import Setting

    steps.run(
        arguments.models,
        setting=Setting(
            arguments.batch, arguments.image_size, arguments.dtype, arguments.bn_group_size, arguments.remat
        ),
        modes=arguments.modes,
        peer=arguments.peer == "torch",
        effort=steps.Effort(arguments.seconds, arguments.repeats),
        form=arguments.format,
    )


def run_layers(arguments: argparse.Namespace) -> None:
    """Prints a table of convolutions."""
    from scripts.benchmarks import layers
    from scripts.benchmarks.steps import Effort

    layers.run(
        batch=arguments.batch,
        dtype=arguments.dtype,
        peer=arguments.peer == "torch",
        effort=Effort(arguments.seconds, arguments.repeats),
    )


def run_start(arguments: argparse.Namespace) -> None:
    """Prints a table of seconds."""
    from scripts.benchmarks import starts

    starts.print_start(
        arguments.models,
        batch=arguments.batch,
        image_size=arguments.image_size,
        dtype=arguments.dtype,
        repeats=arguments.repeats,
    )


def run_tpu(arguments: argparse.Namespace) -> None:
    """Prints a table of megacycles."""
    from scripts.benchmarks import tpu_estimates
    from scripts.benchmarks.contenders import Setting

    tpu_estimates.run(
        arguments.models,
        setting=Setting(arguments.batch, arguments.image_size, "bfloat16"),
        topology=arguments.topology,
        plain=arguments.plain,
        linen=arguments.linen,
    )


def run_init(arguments: argparse.Namespace) -> None:
    """Prints a table of seconds."""
    from scripts.benchmarks import starts

    starts.print_init(arguments.models, arguments.repeats)


def run_input(arguments: argparse.Namespace) -> None:
    """Prints tables of images per second."""
    batches = {"imagenet": (arguments.imagenet_batch, arguments.images), "cifar": (arguments.cifar_batch, 50_000)}
    for path in arguments.paths:
        batch, images = batches[path]
        if batch > images:
            raise UserError(f"--{path}_batch", str(batch), f"at most {images}, the number of images")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # as in training; TensorFlow reads both when it is imported
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from scripts.benchmarks import input_rates

    with tempfile.TemporaryDirectory() as scratch:
        input_rates.run(
            arguments.paths,
            images=arguments.images,
            folder=pathlib.Path(arguments.folder or scratch),
            networks={"imagenet": arguments.imagenet_model, "cifar": arguments.cifar_model},
            batch_sizes={"imagenet": arguments.imagenet_batch, "cifar": arguments.cifar_batch},
            effort=input_rates.Effort(arguments.seconds, arguments.repeats, arguments.steps),
        )


def add_effort(command: argparse.ArgumentParser, *, seconds: float, repeats: int) -> None:
    """Adds the arguments that say how long to measure."""
    command.add_argument("--seconds", type=positive, default=seconds, help=f"per timed piece; default: {seconds:g}")
    command.add_argument("--repeats", type=at_least(1), default=repeats, help=f"rounds; default: {repeats}")


def add_setting(command: argparse.ArgumentParser, *, batch: int) -> None:
    """Adds the arguments that say what to compute."""
    command.add_argument("--batch", type=at_least(2), default=batch, help=f"examples; default: {batch}")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation; default: float32")
    command.add_argument("--peer", choices=("none", "torch"), default="none", help="to compare with; default: none")


def add_steps(commands: argparse._SubParsersAction) -> None:
    """Adds the commands that measure networks and layers."""
    size = {"type": at_least(8), "default": 0, "help": "side of the images in pixels; default: the network's own"}
    step = commands.add_parser("step", help="time and memory of training and evaluation steps")
    step.add_argument("--models", type=networks, default=["resnet110", "skip_resnet110"], help="comma-separated")
    step.add_argument("--image_size", **size)
    add_setting(step, batch=64)
    step.add_argument("--bn_group_size", type=at_least(0), default=0, help="examples; default: 0 = the whole batch")
    step.add_argument("--remat", action="store_true", help="recompute blocks in the backward pass")
    step.add_argument("--modes", type=some_of(MODES), default=["train", "eval"], help=f"of {','.join(MODES)}")
    step.add_argument("--format", choices=("markdown", "json"), default="markdown", help="default: markdown")
    add_effort(step, seconds=2.0, repeats=5)
    step.set_defaults(run=run_step)

    layers = commands.add_parser("layers", help="weight gradients of single convolutions, grouped and not")
    add_setting(layers, batch=8)
    add_effort(layers, seconds=0.5, repeats=5)
    layers.set_defaults(run=run_layers)

    start = commands.add_parser("start", help="time to the first training step")
    start.add_argument("--models", type=networks, default=["skip_resnet110"], help="comma-separated")
    start.add_argument("--batch", type=at_least(2), default=64, help="examples; default: 64")
    start.add_argument("--image_size", **size)
    start.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation; default: float32")
    start.add_argument("--repeats", type=at_least(1), default=1, help="fresh processes per measurement; default: 1")
    start.set_defaults(run=run_start)

    tpu = commands.add_parser("tpu", help="training steps by XLA:TPU's own estimate, without a TPU")
    tpu.add_argument("--models", type=networks, default=["resnet50", "skip_resnet50"], help="comma-separated")
    tpu.add_argument("--batch", type=at_least(2), default=128, help="examples; default: 128")
    tpu.add_argument("--image_size", **size)
    tpu.add_argument("--topology", default="v5e:2x2", help="a slice; one chip of it is used; default: v5e:2x2")
    tpu.add_argument("--plain", action="store_true", help="with the plain formulas too, which takes twice as long")
    tpu.add_argument("--linen", action="store_true", help="with a ResNet-50 of flax.linen's layers alone too")
    tpu.set_defaults(run=run_tpu)

    init = commands.add_parser("init", help="time to initialise a network")
    init.add_argument("--models", type=networks, default=["skip_resnet50"], help="comma-separated")
    init.add_argument("--repeats", type=at_least(1), default=3, help="fresh processes per measurement; default: 3")
    init.set_defaults(run=run_init)


def add_input(commands: argparse._SubParsersAction) -> None:
    """Adds the command that measures the input pipeline."""
    data = commands.add_parser("input", help="images per second, and how long a training step waits for data")
    data.add_argument(
        "--paths", type=some_of(PATHS), default=list(PATHS), help="imagenet,cifar (default), or one of them"
    )
    data.add_argument("--folder", help="where to make and keep the JPEGs; default: a temporary folder")
    data.add_argument("--images", type=at_least(2), default=1000, help="number of JPEGs; default: 1000")
    add_effort(data, seconds=10.0, repeats=3)
    data.add_argument("--imagenet_batch", type=at_least(1), default=64, help="examples; default: 64")
    data.add_argument("--cifar_batch", type=at_least(1), default=256, help="examples; default: 256")
    data.add_argument("--steps", type=at_least(0), default=10, help="timed training steps; default: 10; 0 = none")
    data.add_argument("--imagenet_model", type=network, default="resnet18", help="to train; default: resnet18")
    data.add_argument("--cifar_model", type=network, default="resnet20", help="to train; default: resnet20")
    data.set_defaults(run=run_input)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; a mistake in it takes one line and ends with status 2."""
    parser = Parser(
        prog="python -m scripts.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_steps(commands)
    add_input(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
