"""What the device does about numbers that are not finite: it finds them, and leaves their update out."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree, Shaped


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every floating-point number of a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)


def keep_finite(ok: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """The new state, or the old one; but schedules go on, since the step is over either way.

    Args:
      ok: whether the new one may be taken.
      new, old: of the same structure.
    """

    def choose(new: PyTree, old: PyTree) -> PyTree:
        if _is_schedule(new):
            return new
        return jnp.where(ok, new, old)

    return jax.tree.map(choose, new, old, is_leaf=_is_schedule)


def without_skipped(ok: Bool[Array, ""], sums: dict[str, Shaped[Array, ""]]) -> dict[str, Shaped[Array, ""]]:
    """Sums of a step that count nothing if its update was left out, with "skipped", 0 or 1.

    Args:
      ok: whether the update was made.
      sums: of the step.
    """
    kept = {name: jnp.where(ok, value, jnp.zeros_like(value)) for name, value in sums.items()}
    return kept | {"skipped": 1 - ok.astype(jnp.int32)}


def _is_schedule(node: object) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
