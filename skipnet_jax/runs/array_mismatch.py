"""Arrays of a checkpoint that do not fit a network: found by name, type and shape, and told in a few lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

NAMED_AT_MOST = 5  # arrays per kind of misfit that an error spells out


def shapes(tree: Any) -> dict[str, str]:
    """Path of every array: its type and shape, as in float32[3, 2]."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def require_none(where: str, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Makes sure that a checkpoint holds a network's arrays, no less and no more.

    Args:
      where: the checkpoint, for the error.
      stored: `shapes` of what it holds.
      expected: those of the network.

    Raises:
      ValueError: it is of another network.
    """
    misfits = {
        "missing in the checkpoint": sorted(expected.keys() - stored.keys()),
        "unknown to the network": sorted(stored.keys() - expected.keys()),
        "different": [
            f"{path} (got {stored[path]}, expected {expected[path]})"
            for path in sorted(stored.keys() & expected.keys())
            if stored[path] != expected[path]
        ],
    }
    told = lines(misfits)
    if told:
        raise ValueError(
            "\n".join([f"{where}: got a checkpoint of another network, expected one of this config's.", *told])
            + "\n  Use the config that made it, or another --workdir."
        )


def lines(misfits: Mapping[str, Sequence[str]]) -> list[str]:
    """One line of an error for each kind of misfit that there is, which names the first few arrays.

    Args:
      misfits: kind -> names of arrays.
    """
    told = []
    for kind, names in misfits.items():
        if names:
            more = f", and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
            told.append(f"  {kind}: {', '.join(names[:NAMED_AT_MOST])}{more}")
    return told
