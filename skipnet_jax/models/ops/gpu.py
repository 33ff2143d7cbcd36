"""Operations for NVIDIA GPUs: faster forms of two kinds of convolutions that cuDNN or XLA runs slowly."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skipnet_jax.models.ops import lean_gradients, plain

relu = functools.partial(lean_gradients.relu, on_cpu=False)
gated_sum = functools.partial(lean_gradients.gated_sum, on_cpu=False)
max_pool = functools.partial(lean_gradients.max_pool, on_cpu=False)
batch_norm_max_pool = functools.partial(lean_gradients.batch_norm_max_pool, on_cpu=False)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Uses faster forms of depthwise convolutions and of the stems' convolutions; leaves the others to XLA."""
    if plain.is_depthwise(kernel, groups) and stride == 1:
        return depthwise(x, kernel, padding)
    # Measured in bfloat16 only.
    if groups == 1 and stride == 2 and padding and x.shape[-1] <= 4 and x.dtype == jnp.bfloat16:
        return in_blocks(x, kernel, padding)
    return plain.convolve(x, kernel, stride, padding, groups)


def in_blocks(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], padding: int) -> Float[Array, "b h2 w2 d"]:
    """A convolution at stride 2, computed at stride 1 over blocks of 2x2 pixels with the channels of all four pixels.

    cuDNN takes more than twice as long for convolutions of three channels.
    """
    first = padding % 2  # so that windows begin where blocks do
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
    """Turns blocks of 2x2 pixels into pixels, with zero channels up to a multiple of 8 for the tensor cores."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    x = x.reshape(batch, height // 2, width // 2, 4 * channels)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % 8)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], padding: int) -> Float[Array, "b h2 w2 c"]:
    """A depthwise convolution at stride 1, with a faster gradient of the kernel for small images.

    If the images are no larger than the kernel, XLA turns the kernel's gradient into a convolution with a group for
    each channel of each image. A border of zeros makes the images larger.
    """
    return plain.convolve(x, kernel, 1, padding, x.shape[-1])


def _depthwise_forward(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, padding), (x, kernel)


def _depthwise_backward(padding: int, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    height, width = (max(kernel.shape[0] + 1 - size, 0) for size in dy.shape[1:3])
    border = ((0, 0), (0, height), (0, width), (0, 0))

    def gradients(x: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: plain.convolve(x, kernel, 1, padding, x.shape[-1]), x, kernel)[1](dy)

    return gradients(x, dy)[0], gradients(jnp.pad(x, border), jnp.pad(dy, border))[1]


depthwise.defvjp(_depthwise_forward, _depthwise_backward)
