"""What the device does to a batch before the network sees it: normalise, CutMix, label smoothing.

The host ships bytes, a quarter of the traffic; everything that needs floats or a second image of the batch happens
here, inside the jitted step.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from skipnet_jax.specs import MixingSpec


def normalize(
    images: UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...], dtype: DTypeLike
) -> Float[Array, "b h w c"]:
    """Scales bytes to 0..1 and standardises each channel.

    Args:
      images: 0..255.
      mean: of each channel, for pixels scaled to 0..1.
      std: the same.
      dtype: of the result.

    Returns:
      [b, h, w, c], about zero mean and unit deviation.
    """
    shift, scale = (jnp.asarray(of_channel, dtype)[None, None, None, :] for of_channel in (mean, std))
    return (images.astype(dtype) / 255 - shift) / scale


def mix(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], labels: Int[Array, "b"], num_classes: int, spec: MixingSpec
) -> tuple[Float[Array, "b h w c"], Float[Array, "b {num_classes}"]]:
    """Makes what the network is trained on: CutMix images, and targets mixed alike and then smoothed.

    Args:
      key: of this step; everything random follows from it.
      images: normalised.
      labels: class numbers.
      num_classes: width of the targets.
      spec: see there. A `cutmix_prob` of 0 leaves nothing of CutMix in the compiled program.

    Returns:
      Images as given in shape and type; targets [b, num_classes] of the same type, each row summing to 1.

    Source: Yun et al., CutMix (ICCV 2019), section 3; per example rather than per batch as in the code behind
      the published tables.
    """
    targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    if spec.cutmix_prob > 0:
        height, width = images.shape[1:3]
        rows, columns = cutmix_boxes(key, len(labels), height, width, spec)
        # The order of the batch is random already, so the neighbour is a uniformly random partner; and a shift by one
        # moves a single image between two devices, where a permutation would move nearly all of them.
        box = (rows[:, :, None] & columns[:, None, :])[..., None]
        images = jnp.where(box, jnp.roll(images, 1, axis=0), images)
        area = jnp.mean(box, axis=(1, 2), dtype=images.dtype)
        targets = (1 - area) * targets + area * jnp.roll(targets, 1, axis=0)
    return images, (1 - spec.label_smoothing) * targets + spec.label_smoothing / num_classes


def cutmix_boxes(
    key: PRNGKeyArray, batch: int, height: int, width: int, spec: MixingSpec
) -> tuple[Bool[Array, "{batch} {height}"], Bool[Array, "{batch} {width}"]]:
    """Draws the boxes that come from the partners, each as a set of rows and a set of columns.

    A pixel belongs to the box if its centre does: clipping at the border needs no further thought, and no edge is
    rounded.

    Args:
      key: everything random follows from it.
      batch: number of boxes.
      height: of the images, in pixels.
      width: of the images, in pixels.
      spec: share of the examples that get a box (the others' is empty), and the distribution of lambda.

    Returns:
      Rows [batch, height] and columns [batch, width].
    """
    choice_key, lambda_key, row_key, column_key = jax.random.split(key, 4)
    if (
        spec.cutmix_alpha == 1
    ):  # the uniform distribution; the general one rejects in a loop, which compiles for seconds
        drawn = jax.random.uniform(lambda_key, (batch,), jnp.float32)
    else:
        drawn = jax.random.beta(lambda_key, spec.cutmix_alpha, spec.cutmix_alpha, (batch,), jnp.float32)
    kept = jnp.maximum(drawn, 1 - drawn)  # an image keeps at least half of itself
    chosen = jax.random.bernoulli(choice_key, spec.cutmix_prob, (batch,))
    side = jnp.where(chosen, jnp.sqrt(1 - kept), 0.0)
    return _interval(row_key, side, height), _interval(column_key, side, width)


def _interval(key: PRNGKeyArray, side: Float[Array, "b"], size: int) -> Bool[Array, "b {size}"]:
    """The pixels of a line of `size` within an interval of length `side` (a ratio) at a uniform centre."""
    centre = jax.random.uniform(key, side.shape, jnp.float32, maxval=size)
    pixels = jnp.arange(size, dtype=jnp.float32) + 0.5
    return jnp.abs(pixels[None, :] - centre[:, None]) < side[:, None] * size / 2
