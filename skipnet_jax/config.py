"""A run's config on its way from the command line to the typed specs, and into the workdir and back.

ml_collections ends here: below, a hyperparameter is a field of a dataclass. Reading is strict in both
directions, because a misspelt or forgotten key that falls back to a default costs a whole training run.
"""

import dataclasses
import difflib
import pathlib
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from skipnet_jax import specs

_SIMILAR = 0.6  # difflib's own default for what counts as a close match


def train_spec(config: ml_collections.ConfigDict) -> specs.TrainSpec:
    """Reads a ConfigDict, as `configs/` makes it and flags may have changed it.

    Raises:
      ValueError: for an unknown or missing key, a value of the wrong type or out of range.
    """
    return from_dict(config.to_dict())


def from_dict(mapping: Any, *, may_be_older: bool = False) -> specs.TrainSpec:
    """Reads plain nested data, such as the JSON that a workdir keeps; the inverse of `to_dict`.

    Every field has to be there, those with a default too: what was recorded must not change its meaning
    when a default does.

    Args:
      may_be_older: than fields that it lacks: they get their defaults, which mean that all is as before.

    Raises:
      ValueError: as for `train_spec`.
    """
    return _read(specs.TrainSpec, mapping, prefix="", may_be_older=may_be_older)


def to_dict(spec: specs.TrainSpec) -> dict[str, Any]:
    """The spec as nested dicts of strings and numbers, ready for JSON."""
    return dataclasses.asdict(spec)


def to_config_dict(spec: specs.TrainSpec) -> ml_collections.ConfigDict:
    """The spec as a locked ConfigDict, for `config_flags` to override.

    Raises:
      ValueError: if a field's value is not of the field's type.
    """
    # Dataclasses do not check types, and ConfigDict takes a field's type from its value: an `lr=1` would
    # refuse `--config.optim.lr=0.5` later. Reading the dict back makes it the float that it should be.
    return ml_collections.ConfigDict(to_dict(from_dict(to_dict(spec)))).lock()


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line with a `--config` flag.

    Args:
      argv: the command line, program name first.

    Returns:
      What is left of it.

    Raises:
      ValueError: a mistake in it, in one line.
    """
    check_command_line(argv)
    try:
        return flags.FLAGS(argv)
    except (ValueError, flags.Error) as error:
        # Where a recipe refuses its argument, ml_collections puts the whole stack trace before the recipe's words.
        raise ValueError(str(error).rpartition("\nValueError: ")[2].strip()) from error


def check_command_line(argv: Sequence[str]) -> None:
    """Refuses a `--config` file that is not there and overrides of fields that do not exist.

    To be called before absl parses the flags: ml_collections answers to both mistakes with a stack trace
    of its inner life, or, to a missing file without overrides, not at all.

    Args:
      argv: the command line, program name first.

    Raises:
      ValueError: one line, with the nearest right name.
    """
    overrides = [argument for argument in argv if re.match(r"--?(?:no)?config\.", argument)]
    if overrides and not any(re.match(r"--?config(?:=|$)", argument) for argument in argv):
        raise ValueError(
            f"--config: got nothing but {overrides[0]}, expected a recipe too. Give --config=configs/digits.py or "
            f"another."
        )
    for i, argument in enumerate(argv):
        if argument == "--":
            return
        if argument in ("--config", "-config"):
            _check_file("".join(argv[i + 1 : i + 2]))
        elif match := re.match(r"--?config=(.*)", argument):
            _check_file(match[1])
        elif match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            _check_field(match[1])


def require_field(flag: str, path: str) -> None:
    """Refuses the name of a field that does not exist.

    Args:
      flag: that names it, for the message.
      path: dotted, as in optim.lr.

    Raises:
      ValueError: with the nearest right name.
    """
    known = _paths(specs.TrainSpec)
    if path not in known:
        near = _nearest(path, known)
        hint = f"did you mean {_alternatives(near)}?" if near else f"expected one of {', '.join(known)}."
        raise ValueError(f"{flag}: got {path!r}, which is no field of the config; {hint}")


def _check_field(path: str) -> None:
    if path not in _paths(specs.TrainSpec):
        raise ValueError(_unknown(path))


def _check_file(value: str) -> None:
    path = pathlib.Path(value.split(":", 1)[0])  # what follows the colon is the argument of get_config
    if not path.is_file():
        there = {other.stem: str(other) for other in sorted(path.parent.glob("*.py")) if other.stem != "recipes"}
        near = [there[stem] for stem in _nearest(path.stem, there)] or list(there.values())
        hint = f"did you mean {_alternatives(near)}?" if near else "its folder holds no config."
        raise ValueError(f"--config: got {value!r}, which is no file; {hint}")


_Spec = typing.TypeVar("_Spec")


def _read(cls: type[_Spec], mapping: Any, prefix: str, *, may_be_older: bool) -> _Spec:
    if not isinstance(mapping, Mapping):
        name = f"config.{prefix}".removesuffix(".")
        raise ValueError(f"{name}: got {mapping!r}, expected the fields of {cls.__name__}.")
    types = typing.get_type_hints(cls)
    for key in mapping:
        if key not in types:
            raise ValueError(_unknown(f"{prefix}{key}"))
    newer = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}  # type: ignore[arg-type]
    left_out = newer - mapping.keys() if may_be_older else set()
    for name in types:
        if name not in mapping and name not in left_out:
            near = _alternatives(_nearest(name, mapping))
            raise ValueError(
                f"config.{prefix}{name}: missing key, expected {_type_name(types[name])}; "
                f"nearest key that is there: {near or 'none'}. Add config.{prefix}{name}."
            )
    values = {}
    for name in types.keys() - left_out:
        path, kind = f"{prefix}{name}", types[name]
        if _is_section(kind):
            values[name] = _read(kind, mapping[name], prefix=f"{path}.", may_be_older=may_be_older)
        else:
            values[name] = _read_field(kind, mapping[name], path)
    return cls(**values)


def _read_field(kind: Any, value: Any, path: str) -> Any:
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if kind == tuple[int, ...] and isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(value)  # JSON knows lists only
    if type(value) is not kind:  # not isinstance: a bool is an int to Python, but not a batch size
        got = f"{value!r} ({type(value).__name__})"
        raise ValueError(f"config.{path}: got {got}, expected {_type_name(kind)}. Change --config.{path}.")
    return value


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _paths(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields that hold a value: batch_size, optim.lr, ..."""
    paths = []
    for name, kind in typing.get_type_hints(cls).items():
        paths += _paths(kind, f"{prefix}{name}.") if _is_section(kind) else [f"{prefix}{name}"]
    return paths


def _unknown(path: str) -> str:
    known = _paths(specs.TrainSpec)
    near = [f"--config.{other}" for other in _nearest(path, known)]
    hint = f"did you mean {_alternatives(near)}?" if near else f"expected one of {', '.join(known)}."
    return f"config.{path}: no such field; {hint}"


def _nearest(path: str, known: Iterable[str]) -> list[str]:
    """The most similar names; none if nothing is close. The last part counts alone too: lr finds optim.lr."""

    def similarity(other: str) -> float:
        pairs = ((path, other), (path.rpartition(".")[2], other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    scores = {other: similarity(other) for other in known}
    best = max(scores.values(), default=0.0)
    return [other for other, score in scores.items() if score == best] if best >= _SIMILAR else []


def _alternatives(names: Iterable[str]) -> str:
    return " or ".join(names)


def _type_name(kind: Any) -> str:
    if _is_section(kind):
        return f"the fields of {kind.__name__}"
    return "whole numbers, as in (0,1,2)" if kind == tuple[int, ...] else f"type {kind.__name__}"
