"""How fast this machine's input is, as `python -m scripts.benchmarks input` last measured it."""

import dataclasses
import datetime
import json
import pathlib
import platform

from skipnet_jax import libraries
from skipnet_jax.data import image_files

IN_MEMORY, ENCODED = "cifar", "imagenet"  # the paths that the benchmark measures


@dataclasses.dataclass(frozen=True)
class InputRate:
    """Images per second that the whole input delivered.

    Args:
      cores: the number that it used.
      machine: its name; several machines may share a home folder.
      date: as in 2026-11-29.
    """

    images_per_second: float
    cores: int
    machine: str
    date: str


def path_of(data: str) -> str:
    """Which of the benchmark's paths a data set takes: images in memory, or images to decode."""
    return IN_MEMORY if image_files.crop_of(data) == image_files.WHOLE else ENCODED


def record(path: str, images_per_second: float, cores: int) -> None:
    """Remembers a measurement for this machine."""
    rates = _read()
    rates[path] = InputRate(images_per_second, cores, platform.node(), str(datetime.date.today()))
    _file().parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: dataclasses.asdict(rate) for name, rate in rates.items()}, indent=2)
    _file().write_text(text + "\n")


def recorded(data: str) -> InputRate | None:
    """This machine's measurement for data of this kind; None if there is none."""
    rate = _read().get(path_of(data))
    return rate if rate and rate.machine == platform.node() else None


def _file() -> pathlib.Path:
    return pathlib.Path(libraries.cache_folder()) / "input_rates.json"


def _read() -> dict[str, InputRate]:
    if not _file().exists():
        return {}
    return {name: InputRate(**rate) for name, rate in json.loads(_file().read_text()).items()}
