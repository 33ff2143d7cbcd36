"""Finds a network's weights in a checkpoint: inside nested dicts, and under names with prefixes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from skipnet_jax.errors import UserError

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
RAW = ("state_dict", "model_state_dict", "model", "net")
INNER = (*RAW, "module")  # of a dict under one of the above
# What wrappers put before each name: DistributedDataParallel, torch.compile, Lightning modules and the like.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
AVERAGED_PREFIXES = ("model_ema.", "ema_model.", "ema.")
_SOME = 5  # keys that a message shows

IsTensor = Callable[[Any], bool]


class Found(NamedTuple):
    """The weights in a checkpoint.

    Args:
      state_dict: bare names -> tensors.
      told: one line each about a choice that was made.
    """

    state_dict: dict[str, Any]
    told: tuple[str, ...]


def find(place: str, content: Any, which: str | None, is_tensor: IsTensor) -> Found:
    """Finds the weights in a checkpoint.

    Args:
      place: the file, for messages.
      which: "ema" = the averaged weights, "raw" = those beside them, None = averaged if there are any.
      is_tensor: tells tensors from other values.

    Raises:
      UserError: there are no weights, or none of this kind.
    """
    if not isinstance(content, Mapping):
        raise UserError(place, f"a {type(content).__name__}", "a state dict, or a dict that holds one")
    candidates: dict[str, tuple[str, Mapping[Any, Any]]] = {}
    for kind, keys in {"raw": RAW, "ema": AVERAGED}.items():
        held = ((key, _unwrap(content[key], is_tensor)) for key in keys if key in content)
        if first := next(((key, value) for key, value in held if value is not None), None):
            candidates[kind] = first
    if not candidates:
        for key in RAW:
            if key in content and not any(map(is_tensor, content.values())):
                expected = "a dict of tensors"
                raise UserError(place, f"a {key} of type {type(content[key]).__name__} without tensors", expected)
        if any(map(is_tensor, content.values())):
            candidates["raw"] = ("", content)
    if not candidates:
        some = ", ".join(str(key) for key in list(content)[:_SOME]) or "none"
        raise UserError(place, f"no weights (its keys: {some})", f"tensors, as they are or under {' or '.join(RAW)}")
    if "raw" in candidates and (averaged := _averaged_in(candidates["raw"][1])):
        candidates["ema"] = (candidates["raw"][0], averaged)
    chosen = which or ("ema" if "ema" in candidates else "raw")
    if chosen not in candidates:
        words = {"ema": "averaged weights", "raw": "weights beside the averaged ones"}
        [other] = candidates
        there = candidates[other][0] or "the state dict"
        mend = f"Leave out `weights`, or give `weights`={other}."
        raise UserError("weights", f"{chosen!r}, but {place} has no {words[chosen]}", f"{other!r}, for {there}", mend)
    key, state_dict = candidates[chosen]
    told = []
    if len(candidates) > 1:
        other = "raw" if chosen == "ema" else "ema"
        kind = "the averaged weights" if chosen == "ema" else "the weights, not the averaged ones,"
        told.append(f"{kind} under {key!r} are taken; `weights`={other} takes those under {candidates[other][0]!r}")
    elif chosen == "ema":
        told.append(f"the averaged weights under {key!r} are taken, as there are no others")
    named, left_out = _peel(place, {str(key): value for key, value in state_dict.items()}, chosen)
    if left_out:
        some = ", ".join(left_out[:_SOME]) + (", ..." if len(left_out) > _SOME else "")
        told.append(f"{len(left_out)} entries outside the network are left out: {some}")
    return Found(named, tuple(told))


def _unwrap(value: Any, is_tensor: IsTensor) -> Mapping[Any, Any] | None:
    """The dict of tensors that a value is, or holds under a usual key; None if there is none."""
    for _ in range(len(INNER)):
        if not isinstance(value, Mapping):
            return None
        if any(map(is_tensor, value.values())):
            return value
        value = next((value[key] for key in INNER if key in value), None)
    return None


def _averaged_in(state_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries whose names say that they are averages."""
    return {
        str(key).removeprefix(prefix): value
        for key, value in state_dict.items()
        for prefix in AVERAGED_PREFIXES
        if str(key).startswith(prefix)
    }


def _peel(place: str, named: dict[str, Any], chosen: str) -> tuple[dict[str, Any], list[str]]:
    """Takes wrappers' prefixes off the names, one after the other.

    Returns:
      The weights by their bare names, and the names that had no prefix where most others had one.
    """
    left_out: list[str] = []
    if chosen == "raw":
        left_out = [name for name in named if name.startswith(AVERAGED_PREFIXES)]
        named = {name: value for name, value in named.items() if name not in set(left_out)}
    while True:
        inside = max(([name for name in named if name.startswith(prefix)] for prefix in PREFIXES), key=len)
        if 2 * len(inside) < len(named) or not inside:
            return {name.replace("._orig_mod.", "."): value for name, value in named.items()}, left_out
        prefix = next(prefix for prefix in PREFIXES if inside[0].startswith(prefix))
        stripped = {name.removeprefix(prefix): named[name] for name in inside}
        outside = [name for name in named if not name.startswith(prefix)]
        if stripped.keys() & set(outside):
            raise UserError(place, f"the same names with and without {prefix!r} before them", "each name once")
        left_out += [name for name in outside if name != "n_averaged"]
        named = stripped
