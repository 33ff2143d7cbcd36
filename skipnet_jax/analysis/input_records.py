"""How fast this machine's input is, as `python -m scripts.benchmarks input` last measured it."""

import dataclasses
import datetime
import pathlib
import platform
import sys

from skipnet_jax import files, libraries
from skipnet_jax.data import image_files
from skipnet_jax.errors import UserError

_FIELDS = {"images_per_second": float, "cores": int, "machine": str, "date": str}
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
    files.write_json(_file(), {name: dataclasses.asdict(rate) for name, rate in rates.items()})


def recorded(data: str) -> InputRate | None:
    """This machine's measurement for data of this kind; None if there is none."""
    rate = _read().get(path_of(data))
    return rate if rate and rate.machine == platform.node() else None


def _file() -> pathlib.Path:
    return pathlib.Path(libraries.cache_folder()) / "input_rates.json"


def _read() -> dict[str, InputRate]:
    """The measurements of all paths; none, with a warning, if the file is damaged: a plan must not be lost for it."""
    file, mend = _file(), "It counts as not measured; measure again, or remove the file."
    if not file.exists():
        return {}
    try:
        records = {
            name: files.require_fields(rate, _FIELDS, f"{file}, {name}", mend=mend)
            for name, rate in files.read_record(file, {}, mend=mend).items()
        }
    except UserError as error:
        print(f"WARNING: {error}", file=sys.stderr)
        return {}
    return {name: InputRate(*(record[field] for field in _FIELDS)) for name, record in records.items()}
