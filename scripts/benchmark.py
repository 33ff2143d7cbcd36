"""Measures what this project claims to be fast.

    python scripts/benchmark.py init --models=skip_resnet50,skip_resnet101

`init` times the first initialisation of a network in a fresh process, nothing compiled before: through
`lazy_init`, which only runs the initialisers (the trainer's way), through `init` as it is, and through `init` under
`jax.jit`. Seconds, medians.

    python scripts/benchmark.py input --folder=DIR

`input` times the input of the CIFAR and ImageNet recipes by stage, beside a PyTorch DataLoader that does the same work
on the same images and cores, and says how much of a training step waits for data. It takes about 20 minutes, which
--seconds, --repeats and --paths shorten.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAYS = ("lazy_init", "init", "jit")
PATHS = ("imagenet", "cifar")


def time_init(name: str, way: str) -> float:
    """Seconds to initialise a network at its own image size, in this process."""
    import jax
    import jax.numpy as jnp

    from skipnet_jax.models import create_model, model_info

    size, model, key = model_info(name).image_size, create_model(name), jax.random.key(0)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    start = time.perf_counter()
    if way == "lazy_init":
        variables = model.lazy_init(key, images, train=False)
    elif way == "init":
        variables = model.init(key, jnp.zeros(images.shape), train=False)
    else:
        variables = jax.jit(lambda key, images: model.init(key, images, train=False))(key, jnp.zeros(images.shape))
    jax.block_until_ready(variables)
    return time.perf_counter() - start


def in_fresh_process(name: str, way: str) -> float:
    """The same, with nothing compiled and no cache."""
    code = f"from scripts.benchmark import time_init; import json; print(json.dumps(time_init({name!r}, {way!r})))"
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )  # from the repository's root, where `scripts` is a package
    return json.loads(result.stdout)


def print_init(arguments: argparse.Namespace) -> None:
    """Prints a table of seconds."""
    os.chdir(ROOT)
    print(f"| network | {' | '.join(WAYS)} |")
    print(f"| --- |{' ---: |' * len(WAYS)}")
    for name in arguments.models.split(","):
        seconds = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):  # in alternation, so that a busy minute hits all ways alike
            for way in WAYS:
                seconds[way].append(in_fresh_process(name, way))
        print(f"| {name} | {' | '.join(f'{statistics.median(seconds[way]):.1f}' for way in WAYS)} |", flush=True)


def print_input(arguments: argparse.Namespace) -> None:
    """Prints tables of images/s."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # as in training, and before TensorFlow is imported
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    sys.path.insert(0, str(ROOT))  # `scripts` and `configs` are packages there
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


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not too small, from the command line."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, at least {least}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """A number above 0, from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def network(name: str) -> str:
    """A network's name, from the command line."""
    from skipnet_jax.models import model_info

    try:
        model_info(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def paths(text: str) -> list[str]:
    """Which inputs, from the command line."""
    chosen = text.split(",")
    if not set(chosen) <= set(PATHS) or len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {' or '.join(PATHS)}, or both with a comma")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Does what the command line says."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="time to initialise a network")
    init.add_argument("--models", default="skip_resnet50", help="names, separated by commas")
    init.add_argument("--repeats", type=at_least(1), default=3, help="fresh processes for each number")
    init.set_defaults(do=print_init)

    data = commands.add_parser("input", help="images/s of the input, and what a training step waits for it")
    data.add_argument("--paths", type=paths, default=list(PATHS), help="imagenet,cifar (default), or one of them")
    data.add_argument("--folder", help="where the JPEGs are made and kept; default: a temporary one")
    data.add_argument("--images", type=at_least(2), default=1000, help="how many JPEGs; default: 1000")
    data.add_argument("--seconds", type=positive, default=10.0, help="of each timed piece; default: 10")
    data.add_argument("--repeats", type=at_least(1), default=3, help="rounds; default: 3")
    data.add_argument("--imagenet_batch", type=at_least(1), default=64, help="examples; default: 64")
    data.add_argument("--cifar_batch", type=at_least(1), default=256, help="examples; default: 256")
    data.add_argument("--steps", type=at_least(0), default=10, help="timed training steps; default: 10; 0 = none")
    data.add_argument("--imagenet_model", type=network, default="resnet18", help="for these; default: resnet18")
    data.add_argument("--cifar_model", type=network, default="resnet20", help="for these; default: resnet20")
    data.set_defaults(do=print_input)
    arguments = parser.parse_args(argv)
    if arguments.do is print_input and arguments.imagenet_batch > arguments.images:
        parser.error(f"--imagenet_batch: got {arguments.imagenet_batch}, expected at most --images={arguments.images}")
    if arguments.do is print_input and arguments.cifar_batch > 50_000:
        parser.error(f"--cifar_batch: got {arguments.cifar_batch}, expected at most 50000, the images")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
