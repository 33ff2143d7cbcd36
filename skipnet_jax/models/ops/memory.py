"""What is in memory, and what is computed again for every reader.

XLA joins operations into one where it can. On CPUs it joins all cheap ones, without a limit: each reader of a block's
output would add up all the blocks before it, back to the beginning of the section. And it keeps in memory what the
backward pass could make again from what it reads anyway. The barriers of this file stop both; on CPUs, where
`backend.COMPILER_OPTIONS` let them. TPUs are left to XLA.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def wide(x: Array) -> Array:
    """In float32 at least: what sums are made in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def materialize(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same numbers; on a CPU in memory, where later operations read them instead of computing them again."""
    return in_memory(x)


materialize.defvjp(lambda x: (in_memory(x), None), lambda _, dx: (dx,))


@jax.custom_vjp
def materialize_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same numbers; their gradient is treated as by `materialize`."""
    return x


materialize_gradient.defvjp(lambda x: (x, None), lambda _, dx: (in_memory(dx),))


def in_memory(x: Array) -> Array:
    """As `materialize`, for use within a gradient."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def both_in_memory(x: Array, y: Array) -> tuple[Array, Array]:
    """At the same time, so that nothing is made of x before there is y."""
    return lax.platform_dependent(x, y, cpu=_barrier, default=_unchanged)


def apart(*arrays: Array) -> tuple[Array, ...]:
    """The same numbers; on CPUs and GPUs nothing that is made of the results is joined with what makes them.

    And nothing that is made of them is shared with what is made of the originals: what has several readers, or a reader
    in the backward pass, XLA would write to memory, where each could make its own from what it reads anyway.
    """
    return lax.platform_dependent(*arrays, cpu=_barrier, cuda=_barrier, default=_unchanged)


def anew(x: Array) -> Array:
    """The same numbers; what is made of them is not shared with what is made of x, as by `apart`.

    For arrays that need not be in memory themselves.
    """
    (one,) = apart(jnp.ones((), x.dtype))
    return x * one


def _barrier(*arrays: Array) -> tuple[Array, ...]:
    return lax.optimization_barrier(arrays)


def _unchanged(*arrays: Array) -> tuple[Array, ...]:
    return arrays
