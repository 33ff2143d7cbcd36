"""Times the initialisation of a network and the start of training, each in a process of its own."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from scripts.benchmarks import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAYS = ("init_variables", "lazy_init", "init", "jit")
PARTS = ("import", "init", "trace and lower", "compile", "first step", "whole process")
CACHES = ("empty", "filled")  # the compilation cache


def print_init(models: Sequence[str], repeats: int) -> None:
    """Prints a table of the seconds that each way to initialise a network takes."""
    print(f"| network | {' | '.join(WAYS)} |")
    print(f"| --- |{' ---: |' * len(WAYS)}")
    for name in models:
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats):  # in alternation, so that a busy minute affects all ways alike
            for way in WAYS:
                seconds[way].append(_in_fresh_process(f"time_init({name!r}, {way!r})", {}))
        print(f"| {name} | {' | '.join(f'{statistics.median(seconds[way]):.1f}' for way in WAYS)} |", flush=True)


def time_init(name: str, way: str) -> float:
    """Seconds to initialise a network at its own image size, in this process."""
    import jax
    import jax.numpy as jnp

    from skipnet_jax.models import create_model, init_variables, model_info

    size, model, key = model_info(name).image_size, create_model(name), jax.random.key(0)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    start = time.perf_counter()
    if way == "init_variables":
        variables = init_variables(model, key, size)
    elif way == "lazy_init":
        variables = model.lazy_init(key, images, train=False)
    elif way == "init":
        variables = model.init(key, jnp.zeros(images.shape), train=False)
    else:
        variables = jax.jit(lambda key, images: model.init(key, images, train=False))(key, jnp.zeros(images.shape))
    jax.block_until_ready(variables)
    return time.perf_counter() - start


def print_start(models: Sequence[str], *, batch: int, image_size: int, dtype: str, repeats: int) -> None:
    """Prints a table of the seconds until one training step is done, with an empty cache and with the filled one.

    Args:
      batch, image_size, dtype: see `contenders.Setting`.
      repeats: how often to start from an empty cache.
    """
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for number in range(repeats):
        for name, cache, times in _starts(models, batch, image_size, dtype):
            for part in PARTS:
                seconds.setdefault((name, cache, part), []).append(times[part])
            machine.say(f"round {number + 1} of {repeats}: {name}, {cache} cache: {times['whole process']:.1f} s")
    print(machine.describe())
    print(f"Training step on a batch of {batch}, {dtype}; seconds, medians of {repeats}.\n")
    print(f"| network | cache | {' | '.join(PARTS)} |")
    print(f"| --- | --- |{' ---: |' * len(PARTS)}")
    for name in models:
        for cache in CACHES:
            cells = [f"{statistics.median(seconds[name, cache, part]):.1f}" for part in PARTS]
            print(f"| {name} | {cache} | {' | '.join(cells)} |", flush=True)


def _starts(
    models: Sequence[str], batch: int, image_size: int, dtype: str
) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """Yields the network, the state of the cache, and the seconds of each part."""
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            }
            for cache in CACHES:
                begin = time.perf_counter()
                times = _in_fresh_process(f"time_start({name!r}, {batch}, {image_size}, {dtype!r})", environment)
                yield name, cache, times | {"whole process": time.perf_counter() - begin}


def time_start(name: str, batch: int, image_size: int, dtype: str) -> dict[str, float]:
    """Seconds of each part of a start, in this process, which must be fresh."""
    begin = time.perf_counter()
    from scripts.benchmarks.contenders import Setting, Steps

    imported = time.perf_counter()
    steps = Steps(name, Setting(batch, image_size, dtype))
    init = steps.init()
    facts = steps.compile("train")
    compiled = time.perf_counter()
    steps.train(1)
    return {
        "import": imported - begin,
        "init": init,
        "trace and lower": facts["lower_s"],
        "compile": facts["compile_s"],
        "first step": time.perf_counter() - compiled,
    }


def _in_fresh_process(call: str, environment: Mapping[str, str]):
    """Calls a function of this file in a new process, with no compilation cache but the given one."""
    code = f"from scripts.benchmarks import starts; import json; print(json.dumps(starts.{call}))"
    inherited = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | environment, stdout=subprocess.PIPE, text=True
    )
    if result.returncode:  # the process has printed the reason
        raise SystemExit(result.returncode)
    return json.loads(result.stdout)
