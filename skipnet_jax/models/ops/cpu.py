"""Operations for CPUs: barriers that keep shared results in memory, and faster grouped convolutions.

XLA:CPU fuses all cheap operations, without a limit. Without barriers, each reader of a block's output repeats the
additions of all earlier blocks, back to the beginning of the section. The barriers hold only in programs that are
compiled with the options in `training/xla_options.py`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops import lean_gradients, plain
from skipnet_jax.models.ops.plain import wide

relu = functools.partial(lean_gradients.relu, on_cpu=True)
gated_sum = functools.partial(lean_gradients.gated_sum, on_cpu=True)
max_pool = functools.partial(lean_gradients.max_pool, on_cpu=True)
batch_norm_max_pool = functools.partial(lean_gradients.batch_norm_max_pool, on_cpu=True)

_DENSE_WIDTH = 32  # channels of the dense convolutions that replace a grouped one; 64 and 128 are slower
_CACHE = 3 * 2**19  # bytes of images that the gradient of a depthwise kernel reads repeatedly


@jax.custom_vjp
def materialize(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Writes x to memory, but not its gradient."""
    return lax.optimization_barrier(x)


materialize.defvjp(lambda x: (lax.optimization_barrier(x), None), lambda _, dx: (dx,))


@jax.custom_vjp
def materialize_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Writes the gradient of x to memory, but not x."""
    return x


materialize_gradient.defvjp(lambda x: (x, None), lambda _, dx: (lax.optimization_barrier(dx),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Builds grouped convolutions from dense ones, depthwise ones from shifted images; leaves the others to XLA."""
    return _way(kernel, groups)(x, kernel, stride, padding, groups)


def _way(kernel: Array, groups: int) -> Callable[..., Array]:
    if groups == 1:
        return plain.convolve
    return _depthwise if plain.is_depthwise(kernel, groups) else _in_dense_parts


def _convolve_forward(
    x: Array, kernel: Array, stride: int, padding: int, groups: int
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride, padding, groups), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)  # traced once for all convolutions of the same shape
def _convolve_backward(
    stride: int, padding: int, groups: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    # The gradient of the kernel reads transposed copies of x and dy. Without a barrier each copy recomputes the
    # whole chain of operations behind x, back to the beginning of the section.
    x, dy = lax.optimization_barrier((x, dy))
    if plain.is_depthwise(kernel, groups) and stride == 1 and padding < kernel.shape[0]:  # as in every network
        return _depthwise_gradients(x, kernel, padding, dy)
    return jax.vjp(lambda x, kernel: _way(kernel, groups)(x, kernel, stride, padding, groups), x, kernel)[1](dy)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _in_dense_parts(x: Array, kernel: Array, stride: int, padding: int, groups: int) -> Array:
    """Convolves a few groups at a time, as one dense convolution whose kernel is zero between the groups."""
    size, _, inputs, features = kernel.shape
    together = _divisor(groups, _DENSE_WIDTH // inputs)
    blocks = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, together, 1)
    parts = []
    for x_part, k_part in zip(
        jnp.split(x, groups // together, axis=-1), jnp.split(kernel, groups // together, axis=-1), strict=True
    ):
        dense = k_part.reshape(size, size, 1, inputs, together, features // groups) * blocks
        dense = dense.reshape(size, size, together * inputs, -1)
        parts.append(plain.convolve(x_part, dense, stride, padding, 1))
    return jnp.concatenate(parts, axis=-1)


def _depthwise(x: Array, kernel: Array, stride: int, padding: int, groups: int) -> Array:
    """Adds up shifted images, each times its kernel weight, row by row: with more at once, XLA makes copies."""
    size = kernel.shape[0]
    terms = [
        wide(image) * wide(kernel[i : i + 1, j : j + 1])
        for (i, j), image in lean_gradients.shifted_images(lax.optimization_barrier(_pad(x, padding)), size, stride)
    ]
    total = functools.reduce(jnp.add, terms[:size])
    for row in range(size, size * size, size):
        total = functools.reduce(jnp.add, terms[row : row + size], lax.optimization_barrier(total))
    return total.astype(x.dtype)


def _depthwise_gradients(x: Array, kernel: Array, padding: int, dy: Array) -> tuple[Array, Array]:
    size, channels = kernel.shape[0], x.shape[-1]
    dx = _depthwise(dy, kernel[::-1, ::-1], 1, size - 1 - padding, channels)
    padded, dy = lax.optimization_barrier((_pad(x, padding), dy))
    height, width = dy.shape[1:3]

    # The images are read size * size times, so take as many lines at a time as the cache holds. Lines rather than
    # images, since the images may be on several devices.
    lines = _divisor(height, _CACHE // (dy[:, 0].size * dy.dtype.itemsize))

    def of_lines(first: Array) -> Array:
        strip = lax.dynamic_slice_in_dim(padded, first, lines + size - 1, axis=1)
        of_strip = wide(lax.dynamic_slice_in_dim(dy, first, lines, axis=1))

        def of_row(i: Array) -> Array:
            rows = lax.dynamic_slice_in_dim(strip, i, lines, axis=1)
            return jnp.stack([(wide(rows[:, :, j : j + width]) * of_strip).sum((0, 1, 2)) for j in range(size)])

        return lax.map(of_row, jnp.arange(size))

    dkernel = lax.map(of_lines, jnp.arange(0, height, lines)).sum(0)
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


def _divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` up to `at_most`; 1 if there is none."""
    return max((n for n in range(1, at_most + 1) if number % n == 0), default=1)


def _pad(x: Array, padding: int) -> Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
