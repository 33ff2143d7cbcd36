"""A run's config on its way from the command line to the typed specs, and into the workdir and back.

Lower modules do not use ml_collections: there, a hyperparameter is a field of a dataclass. Reading is strict in both
directions, because a misspelt or forgotten key that falls back to a default costs a whole training run.
"""

import dataclasses
import difflib
import functools
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from skipnet_jax import specs
from skipnet_jax.errors import UserError

_SIMILAR = 0.6  # difflib's own default for a close match


def train_spec(config: ml_collections.ConfigDict) -> specs.TrainSpec:
    """Reads a ConfigDict, as `configs/` makes it and flags may have changed it.

    Raises:
      UserError: an unknown or missing key, a value of the wrong type or out of range.
    """
    return from_dict(config.to_dict())


def from_dict(mapping: Any, *, may_be_older: bool = False) -> specs.TrainSpec:
    """Reads plain nested data, such as the JSON that a workdir keeps; the inverse of `to_dict`.

    Every field has to be there, even one with a default: a recorded run must not change when a default does.

    Args:
      may_be_older: an earlier version wrote it. Fields that it lacks get their defaults, which mean "as before".

    Raises:
      UserError: as for `train_spec`.
    """
    return _read(specs.TrainSpec, mapping, prefix="", may_be_older=may_be_older)


def to_dict(spec: specs.TrainSpec) -> dict[str, Any]:
    """The spec as nested dicts of strings and numbers, ready for JSON."""
    return dataclasses.asdict(spec)


def to_config_dict(spec: specs.TrainSpec) -> ml_collections.ConfigDict:
    """The spec as a locked ConfigDict, for flags to override.

    Raises:
      UserError: a field's value is not of the field's type.
    """
    # Dataclasses do not check types, and ConfigDict takes a field's type from its value: after lr=1 it would refuse
    # --config.optim.lr=0.5. Reading the dict back turns the 1 into 1.0.
    return ml_collections.ConfigDict(to_dict(from_dict(to_dict(spec)))).lock()


@functools.cache
def fields() -> tuple[str, ...]:
    """Dotted names of all fields of a config that hold a value: batch_size, optim.lr, ..."""
    return tuple(_paths(specs.TrainSpec))


def require_field(argument: str, path: str) -> None:
    """Refuses the name of a field that does not exist.

    Args:
      argument: the argument that holds the name.
      path: the dotted name, as in optim.lr.

    Raises:
      UserError: there is no such field; the message has the nearest name.
    """
    if path not in fields():
        mend = _did_you_mean(path)
        if argument != "config":  # which takes the names without --config.
            mend = mend.replace("`", "")
        raise UserError(argument, f"the unknown field {path}", "a field of the config", mend)


_Spec = typing.TypeVar("_Spec")


def _read(cls: type[_Spec], mapping: Any, prefix: str, *, may_be_older: bool) -> _Spec:
    if not isinstance(mapping, Mapping):
        raise UserError(prefix.removesuffix(".") or "config", repr(mapping), f"the fields of {cls.__name__}")
    types = typing.get_type_hints(cls)
    for key in mapping:
        if key not in types:
            path = f"{prefix}{key}"
            raise UserError("config", f"the unknown field {path}", "a field of the config", _did_you_mean(path))
    newer = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}  # type: ignore[arg-type]
    left_out = newer - mapping.keys() if may_be_older else set()
    for name in types:
        if name not in mapping and name not in left_out:
            near = alternatives(nearest(name, mapping)) or "none"
            raise UserError(
                f"{prefix}{name}",
                f"no such key (the nearest is: {near})",
                _type_name(types[name]),
                f"Add {prefix}{name} to the config.",
            )
    values: dict[str, Any] = {}
    for name in types.keys() - left_out:
        path, kind = f"{prefix}{name}", types[name]
        if dataclasses.is_dataclass(kind):
            values[name] = _read(typing.cast(type, kind), mapping[name], f"{path}.", may_be_older=may_be_older)
        else:
            values[name] = _read_field(kind, mapping[name], path)
    return cls(**values)


def _read_field(kind: Any, value: Any, path: str) -> Any:
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if kind == tuple[int, ...] and isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(value)  # JSON has only lists
    if kind == tuple[float, ...] and isinstance(value, list | tuple) and all(type(x) in (int, float) for x in value):
        return tuple(map(float, value))
    if type(value) is not kind:  # not isinstance: to Python a bool is an int, but it is no batch size
        got = f"{value!r} ({type(value).__name__})"
        raise UserError(path, got, _type_name(kind), f"Change `{path}`.")
    return value


def _paths(cls: type, prefix: str = "") -> Iterator[str]:
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from _paths(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _did_you_mean(path: str) -> str:
    near = [f"`{other}`" for other in nearest(path, fields())]
    return f"Did you mean {alternatives(near)}?" if near else f"The fields are {', '.join(fields())}."


def nearest(path: str, known: Iterable[str]) -> list[str]:
    """The most similar names; none if nothing is close. The last part also counts on its own: lr finds optim.lr."""

    def similarity(other: str) -> float:
        pairs = ((path, other), (path.rpartition(".")[2], other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    scores = {other: similarity(other) for other in known}
    best = max(scores.values(), default=0.0)
    return [other for other, score in scores.items() if score == best] if best >= _SIMILAR else []


def alternatives(names: Iterable[str]) -> str:
    """Joins names by "or"."""
    return " or ".join(names)


def _type_name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"the fields of {typing.cast(type, kind).__name__}"
    if kind == tuple[float, ...]:
        return "numbers, as in (0.5,0.5,0.5)"
    return "whole numbers, as in (0,1,2)" if kind == tuple[int, ...] else f"type {kind.__name__}"
