"""Compares the arrays of a checkpoint with those of a network, by name, type and shape."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from skipnet_jax.errors import UserError

NAMED_AT_MOST = 5  # arrays of each kind that an error names


def shapes(tree: Any) -> dict[str, str]:
    """Lists the arrays of a tree: path with slashes -> type and shape, as in float32[3, 2]."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def require_none(place: str, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises a UserError unless a checkpoint, at `place`, holds exactly a network's arrays, both as from `shapes`."""
    problems = describe(
        {
            "missing in the checkpoint": sorted(expected.keys() - stored.keys()),
            "unknown to the network": sorted(stored.keys() - expected.keys()),
            "different": [
                f"{path} (got {stored[path]}, expected {expected[path]})"
                for path in sorted(stored.keys() & expected.keys())
                if stored[path] != expected[path]
            ],
        }
    )
    if problems:
        got = f"a checkpoint of another network ({problems})"
        raise UserError(
            place, got, "one of this config's network", "Use the config that made it, or another `workdir`."
        )


def describe(problems: Mapping[str, Sequence[str]]) -> str:
    """Puts the first few names of each kind of problem into words; "" if there are none."""
    words = []
    for kind, names in problems.items():
        if names:
            more = f", and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
            words.append(f"{kind}: {', '.join(names[:NAMED_AT_MOST])}{more}")
    return "; ".join(words)
