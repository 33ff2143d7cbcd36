"""How a step deals with numbers that are not finite: it detects them on the device, and can skip the update."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree, Shaped


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Tells whether every floating-point number in a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)


def keep_finite(ok: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Returns the new state if `ok`, otherwise the old one. Learning rate schedules advance in either case."""

    def choose(new: PyTree, old: PyTree) -> PyTree:
        return new if _is_schedule(new) else jnp.where(ok, new, old)

    return jax.tree.map(choose, new, old, is_leaf=_is_schedule)


def zero_if_skipped(ok: Bool[Array, ""], metrics: dict[str, Shaped[Array, ""]]) -> dict[str, Shaped[Array, ""]]:
    """Sets all metrics to 0 unless `ok`, so that a skipped step counts for nothing, and adds "skipped", 0 or 1."""
    kept = {name: jnp.where(ok, value, jnp.zeros_like(value)) for name, value in metrics.items()}
    return kept | {"skipped": 1 - ok.astype(jnp.int32)}


def _is_schedule(node: object) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
