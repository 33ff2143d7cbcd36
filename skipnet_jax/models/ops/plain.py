"""Each operation as its plain formula, differentiated by JAX.

A platform gets these unless the table in `ops/__init__.py` names another implementation for it. Sums, norms and the
GELU are computed in at least float32, and rounded once.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A map that its reader still has to multiply: value, factor, offset. The last two are None if nothing is left to do.
Affine = tuple[Float[Array, "b h w c"], Float[Array, "b c"] | None, Float[Array, "b c"] | None]
AffineGroups = tuple[Float[Array, "g b h w c"], Float[Array, "g c"], Float[Array, "g c"]]


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int, padding: int, groups: int
) -> Float[Array, "b h2 w2 d"]:
    """Convolution with the same padding on all four sides; each group of outputs sees i = c / groups channels."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum over windows of 3x3 pixels at stride 2, with one pixel of padding."""
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0); its gradient at 0 is 0."""
    return jax.nn.relu(x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x times the normal distribution's cdf at x, not the tanh approximation.

    Source: Hendrycks & Gimpel, Gaussian Error Linear Units, 2016.
    """
    return (wide(x) * normal_cdf(wide(x))).astype(x.dtype)


def batch_norm(
    x: Float[Array, "g *b c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
    with_relu: bool,
) -> tuple[Float[Array, "g *b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Normalises each group by its own mean and variance; a ReLU follows if `with_relu`.

    Args:
      origin: a guess at the mean. The result does not depend on it, but a platform may take moments about it.

    Returns:
      The normalised x; mean and variance of each group, through which no gradient flows.

    Source: Ioffe & Szegedy, Batch Normalization, ICML 2015.
    """
    axes = tuple(range(1, x.ndim - 1))
    mean = wide(x).mean(axes, keepdims=True)
    centred = wide(x) - mean
    var = jnp.square(centred).mean(axes, keepdims=True)
    y = centred * lax.rsqrt(var + epsilon) * per_channel(scale, x) + per_channel(bias, x)
    y = relu(y) if with_relu else y
    return y.astype(x.dtype), lax.stop_gradient(mean.squeeze(axes)), lax.stop_gradient(var.squeeze(axes))


def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> Float[Array, "*b c"]:
    """Normalises the channels of each pixel by their own mean and variance.

    Source: Ba et al., Layer Normalization, 2016.
    """
    centred = wide(x) - wide(x).mean(-1, keepdims=True)
    var = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * lax.rsqrt(var + epsilon) * per_channel(scale, x) + per_channel(bias, x)
    return y.astype(x.dtype)


def batch_norm_max_pool(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
) -> tuple[Float[Array, "g b h2 w2 c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Batch norm, ReLU and max pool: the end of a stem for ImageNet."""
    y, mean, var = batch_norm(x, scale, bias, origin, epsilon, True)
    return over_groups(max_pool, y), mean, var


def over_groups(
    operation: Callable[[Float[Array, "b h w c"]], Float[Array, "b h2 w2 c"]], x: Float[Array, "g b h w c"]
) -> Float[Array, "g b h2 w2 c"]:
    """Applies an operation to the images of all groups."""
    y = operation(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def deferred_batch_norm(
    x: Float[Array, "g b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    origin: Float[Array, "c"],
    epsilon: float,
) -> tuple[AffineGroups, Float[Array, "g b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """A batch norm that may leave its last multiplication to the map's readers. This one multiplies: the factor is 1.

    Returns:
      The normalised x as a map that is still to be multiplied; its mean over the pixels; and mean and variance of each
      group, through which no gradient flows.
    """
    return complete(batch_norm(x, scale, bias, origin, epsilon, False))


def complete(
    normalised: tuple[Float[Array, "g b h w c"], Float[Array, "g c"], Float[Array, "g c"]],
) -> tuple[AffineGroups, Float[Array, "g b c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Turns the result of `batch_norm` into a result of `deferred_batch_norm` with nothing deferred."""
    y, mean, var = normalised
    return (y, jnp.ones_like(mean), jnp.zeros_like(mean)), wide(y).mean((2, 3)), mean, var


def multiply(deferred: Affine) -> Float[Array, "b h w c"]:
    """`value * factor + offset`."""
    value, factor, offset = deferred
    if factor is None or offset is None:
        return value
    return (wide(value) * factor[:, None, None] + offset[:, None, None]).astype(value.dtype)


def gated_sum(
    logits: Float[Array, "b n1 c"],
    y: Affine,
    states: tuple[Float[Array, "b h w c"], ...],
    weigh_branch: bool,
    with_relu: bool,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
    """`sigmoid(logits[:, 0]) * y + sum_k softmax(logits[:, 1:])_k * states_k`; a ReLU follows if `with_relu`.

    Args:
      logits: n1 = 1 + number of states; in at least float32.
      weigh_branch: False adds y as it is, whatever its logit.

    Returns:
      The sum, and its mean over the pixels, in at least float32.
    """
    branch = multiply(y)
    factor, weights = (each.astype(branch.dtype) for each in gate_weights(logits))
    out = branch * factor[:, None, None] if weigh_branch else branch
    weights = weights[:, :, None]  # [b, n, 1, c]
    out = out + sum(state * weights[:, k : k + 1] for k, state in enumerate(states))
    out = relu(out) if with_relu else out
    return out, wide(out).mean((1, 2))


def gate_weights(logits: Float[Array, "b n1 c"]) -> tuple[Float[Array, "b c"], Float[Array, "b n c"]]:
    """The branch's factor, 0..1, and the states' weights, which sum to 1."""
    return jax.nn.sigmoid(logits[:, 0]), jax.nn.softmax(logits[:, 1:], axis=1)


def materialize(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x; where a platform needs it, x is written to memory, so that readers do not recompute it."""
    return x


def materialize_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x; where a platform needs it, the gradient of x is written to memory."""
    return x


def wide(x: Array) -> Array:
    """Converts x to float32, or leaves it in float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def normal_cdf(x: Array) -> Array:
    """The cumulative distribution function of the standard normal distribution."""
    return lax.erfc(-x * math.sqrt(0.5)) / 2


def per_channel(vector: Float[Array, "c"], x: Float[Array, "... c"]) -> Array:
    """Gives a vector over channels the rank of x, so that the two broadcast."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def is_depthwise(kernel: Float[Array, "k k i d"], groups: int) -> bool:
    """Whether each output channel sees an input channel of its own."""
    return groups > 1 and kernel.shape[2:] == (1, groups)
