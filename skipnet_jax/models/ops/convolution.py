"""Convolution. On CPUs XLA runs grouped ones 5 to 80 times slower than need be: here they become others there.

On GPUs two kinds do: of the images themselves, and the gradient of depthwise kernels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops.memory import both_in_memory, in_memory, wide

_DENSE_WIDTH = 32  # channels of the dense convolutions that a grouped one becomes on a CPU; 64 and 128 are slower
_CACHE = 3 * 2**19  # bytes of images that the gradient of a depthwise kernel reads again and again


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Convolution.

    Args:
      kernel: i = c / groups input channels each.
      padding: pixels on every side.
    """
    native = functools.partial(_native, stride, padding, groups)
    return lax.platform_dependent(x, kernel, **_ways(x, kernel, stride, padding, groups), default=native)


def _ways(x: Array, kernel: Array, stride: int, padding: int, groups: int) -> dict[str, functools.partial[Array]]:
    """What it is made by on the platforms where XLA's own convolution is slow."""
    if groups > 1:
        way = _depthwise if _is_depthwise(kernel, groups) else _in_dense_parts
        return {"cpu": functools.partial(way, stride, padding, groups)}
    if stride == 2 and padding and x.shape[-1] <= 4 and x.dtype == jnp.bfloat16:  # in float32 it was not measured
        return {"cuda": functools.partial(_in_blocks, padding)}
    return {}


def _is_depthwise(kernel: Array, groups: int) -> bool:
    """Each output channel sees one input channel, and no other one sees that."""
    return groups > 1 and kernel.shape[2:] == (1, groups)


def _convolve_forward(
    x: Array, kernel: Array, stride: int, padding: int, groups: int
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride, padding, groups), (x, kernel)


def _convolve_backward(
    stride: int, padding: int, groups: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    # Transposed copies are made of both for the gradient of the kernel: without a barrier each of these computes again
    # all that x is made of, back to the beginning of the section.
    x, dy = both_in_memory(x, dy)

    ways: dict[str, Callable[..., tuple[Array, Array]]] = {}
    if not _is_depthwise(kernel, groups):
        convolutions = _ways(x, kernel, stride, padding, groups)
        ways = {platform: functools.partial(_gradients, way) for platform, way in convolutions.items()}
    elif stride == 1 and padding < kernel.shape[0]:  # all that networks have
        ways["cpu"] = functools.partial(_depthwise_gradients, padding)
        ways["cuda"] = functools.partial(_gradients_of_small_images, padding, groups)
    native = functools.partial(_gradients, functools.partial(_native, stride, padding, groups))
    return lax.platform_dependent(x, kernel, dy, **ways, default=native)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _gradients(convolution: functools.partial[Array], x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(convolution, x, kernel)[1](dy)


def _native(stride: int, padding: int, groups: int, x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _in_blocks(padding: int, x: Array, kernel: Array) -> Array:
    """With stride 2, as one with stride 1 over blocks of 2x2 pixels, which have the channels of all four.

    cuDNN's convolutions of three channels take more than twice as long.
    """
    first = padding % 2  # so that a window begins where a block does
    size = kernel.shape[0] + first + (kernel.shape[0] + first) % 2
    outputs = [(length + 2 * padding - kernel.shape[0]) // 2 + 1 for length in x.shape[1:3]]
    borders = [
        (padding + first, 2 * (count - 1) + size - padding - first - length)
        for count, length in zip(outputs, x.shape[1:3], strict=True)
    ]
    margin = (first, size - first - kernel.shape[0])
    x = _blocks(jnp.pad(x, ((0, 0), *borders, (0, 0))))
    kernel = _blocks(jnp.pad(jnp.moveaxis(kernel, -1, 0), ((0, 0), margin, margin, (0, 0))))
    return lax.conv_general_dilated(
        x, kernel, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "OHWI", "NHWC")
    )


def _blocks(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
    """Blocks of 2x2 pixels as pixels, and channels of zeros to a multiple of 8, which tensor cores want."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    x = x.reshape(batch, height // 2, width // 2, 4 * channels)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % 8)))


def _in_dense_parts(stride: int, padding: int, groups: int, x: Array, kernel: Array) -> Array:
    """A few groups at a time, as a convolution without groups whose kernel is zero between the groups."""
    size, _, inputs, features = kernel.shape
    together = _divisor(groups, _DENSE_WIDTH // inputs)
    blocks = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, together, 1)
    parts = []
    for x_part, k_part in zip(
        jnp.split(x, groups // together, axis=-1), jnp.split(kernel, groups // together, axis=-1), strict=True
    ):
        dense = k_part.reshape(size, size, 1, inputs, together, features // groups) * blocks
        dense = dense.reshape(size, size, together * inputs, -1)
        parts.append(_native(stride, padding, 1, x_part, dense))
    return jnp.concatenate(parts, axis=-1)


def _depthwise(stride: int, padding: int, groups: int, x: Array, kernel: Array) -> Array:
    """A sum of shifted images, each times its place in the kernel, row by row: of more at once XLA makes copies."""
    del groups
    size = kernel.shape[0]
    terms = [
        wide(image) * wide(kernel[i : i + 1, j : j + 1])
        for (i, j), image in shifted_images(in_memory(_pad(x, padding)), size, stride)
    ]
    total = functools.reduce(jnp.add, terms[:size])
    for row in range(size, size * size, size):
        total = functools.reduce(jnp.add, terms[row : row + size], in_memory(total))
    return total.astype(x.dtype)


def _depthwise_gradients(padding: int, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    size = kernel.shape[0]
    dx = _depthwise(1, size - 1 - padding, x.shape[-1], dy, kernel[::-1, ::-1])
    padded, dy = both_in_memory(_pad(x, padding), dy)
    height, width = dy.shape[1:3]

    # All of it is read size * size times: so many lines of the images at a time as the cache holds. Not so many images:
    # these may be on several devices.
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


def _gradients_of_small_images(padding: int, groups: int, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """XLA's own; the kernel's, of images with a border of zeros that makes them larger than the kernel.

    That of smaller images, XLA would make by a convolution with a group for each channel of each image.
    """
    convolution = functools.partial(_native, 1, padding, groups)
    height, width = (max(kernel.shape[0] + 1 - size, 0) for size in dy.shape[1:3])
    border = ((0, 0), (0, height), (0, width), (0, 0))
    dx, _ = _gradients(convolution, x, kernel, dy)
    _, dkernel = _gradients(convolution, jnp.pad(x, border), kernel, jnp.pad(dy, border))
    return dx, dkernel


def _divisor(number: int, at_most: int) -> int:
    """The largest divisor within the limit; 1 where there is none."""
    return max((n for n in range(1, at_most + 1) if number % n == 0), default=1)


def _pad(x: Array, padding: int) -> Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def shifted_images(
    x: Float[Array, "b h w c"], size: int, stride: int
) -> list[tuple[tuple[int, int], Float[Array, "b h2 w2 c"]]]:
    """What each place of a kernel of size x size sees: ((row, column), image) of all, row by row."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    return [((i, j), x[:, i : i + height : stride, j : j + width : stride]) for i in range(size) for j in range(size)]
