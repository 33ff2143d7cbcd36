"""Measures what this project claims to be fast.

    python scripts/benchmark.py init --models=skip_resnet50,skip_resnet101

`init` times the first initialisation of a network in a fresh process, nothing compiled before: through
`lazy_init`, which only runs the initialisers (the trainer's way), through `init` as it is, and through `init` under
`jax.jit`. Seconds, medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

WAYS = ("lazy_init", "init", "jit")


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


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="time to initialise a network")
    init.add_argument("--models", default="skip_resnet50", help="names, separated by commas")
    init.add_argument("--repeats", type=int, default=3, help="fresh processes for each number")
    arguments = parser.parse_args(argv)
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

    print(f"| network | {' | '.join(WAYS)} |")
    print(f"| --- |{' ---: |' * len(WAYS)}")
    for name in arguments.models.split(","):
        seconds = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):  # in alternation, so that a busy minute hits all ways alike
            for way in WAYS:
                seconds[way].append(in_fresh_process(name, way))
        print(f"| {name} | {' | '.join(f'{statistics.median(seconds[way]):.1f}' for way in WAYS)} |", flush=True)


if __name__ == "__main__":
    main()
