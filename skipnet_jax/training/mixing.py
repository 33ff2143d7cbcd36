"""Augmentation on the device: normalisation, random erasing, CutMix, Mixup and label smoothing.

The host sends images as bytes, a quarter of the traffic of floats. Every operation that needs floats or a second image
of the batch runs here, inside the jitted step.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from skipnet_jax.specs import MixingSpec, Statistics

# Random erasing, as in the published recipes: the rectangle's share of the image, and its height divided by its width.
ERASING_AREA = (0.02, 1 / 3)
ERASING_ASPECT = (0.3, 3.3)


def normalize_images(
    images: UInt8[Array, "b h w c"],
    statistics: Statistics,
    dtype: DTypeLike,
    lighting: Float[Array, "b c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Scales bytes to 0..1, adds the colour offsets, and standardises each channel.

    Args:
      images: 0..255.
      lighting: offset of each image's channels on the scale 0..1. The sum is not clipped, as in the code behind the
        published tables.
    """
    shift, scale = (
        jnp.asarray(of_channel, dtype)[None, None, None, :] for of_channel in (statistics.mean, statistics.std)
    )
    if lighting is not None:
        shift = shift - lighting.astype(dtype)[:, None, None, :]
    return (images.astype(dtype) / 255 - shift) / scale


def mix(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], labels: Int[Array, "b"], num_classes: int, spec: MixingSpec
) -> tuple[Float[Array, "b h w c"], Float[Array, "b {num_classes}"]]:
    """Erases and mixes the images, mixes the targets in the same proportion, and smooths the targets.

    Each example gets CutMix, Mixup or neither. An operation with probability 0 is not compiled.

    Args:
      key: of this step.
      images: normalised.
      labels: class numbers, or -1 for an image that could not be decoded. Its class is unknown, so its target is zero,
        which gives neither loss nor gradient. An example that is mixed with it loses the partner's share of its target.

    Returns:
      The images, and targets [b, num_classes]; without a label of -1, each row sums to 1.

    Source: Yun et al., CutMix (ICCV 2019), section 3; Zhang et al., mixup (ICLR 2018). Lambda is drawn per example
      rather than per batch, and the image keeps the larger of lambda and 1 - lambda, as in the code behind the
      published tables.
    """
    choice_key, lambda_key, row_key, column_key, erasing_key = jax.random.split(key, 5)
    batch, height, width, _ = images.shape
    targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)  # the one-hot vector of -1 is zero
    if spec.erasing_prob > 0:
        images = random_erasing(erasing_key, images, spec.erasing_prob)
    if spec.cutmix_prob > 0 or spec.mixup_prob > 0:
        choice = jax.random.uniform(choice_key, (batch,), jnp.float32)
        share = jnp.zeros((batch,), jnp.float32)  # of the partner in the target
        if spec.mixup_prob > 0:
            chosen = (choice >= spec.cutmix_prob) & (choice < spec.cutmix_prob + spec.mixup_prob)
            share = jnp.where(chosen, smaller_shares(lambda_key, batch, spec.mixup_alpha), share)
        weight = share[:, None, None, None]  # of the partner in each pixel
        if spec.cutmix_prob > 0:
            chosen = choice < spec.cutmix_prob
            area = jnp.where(chosen, smaller_shares(lambda_key, batch, spec.cutmix_alpha), 0.0)
            box = cutmix_boxes(row_key, column_key, area, height, width)
            share = jnp.where(chosen, jnp.mean(box, axis=(1, 2), dtype=jnp.float32), share)
            weight = jnp.where(box[..., None], 1.0, weight)
        images, targets = _blend(images, weight), _blend(targets, share[:, None])
    targets = (1 - spec.label_smoothing) * targets + spec.label_smoothing / num_classes
    return images, jnp.where((labels >= 0)[:, None], targets, 0)


def _blend(own: Float[Array, "b *rest"], weight: Float[Array, "b ..."]) -> Float[Array, "b *rest"]:
    """Mixes each example with its partner, the previous example of the batch. `weight` is the partner's.

    The batch is shuffled already, so the partner is a uniformly random example. Shifting by one moves a single image
    between two devices; a random permutation would move nearly all of them.
    """
    weight = weight.astype(own.dtype)
    return (1 - weight) * own + weight * jnp.roll(own, 1, axis=0)


def smaller_shares(key: PRNGKeyArray, batch: int, alpha: float) -> Float[Array, "{batch}"]:
    """Draws the partners' shares: min(lambda, 1 - lambda) with lambda ~ Beta(alpha, alpha).

    `jax.random.beta` uses rejection sampling, whose loop takes seconds to compile. The symmetric distribution has a
    closed form: if t follows Student's distribution with 2 alpha degrees of freedom, 1/2 + t / (2 sqrt(2 alpha + t^2))
    follows Beta(alpha, alpha). In turn t = sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) for uniform u and v. With
    p = u^(1 / alpha) no intermediate result overflows.

    Source: Bailey, Polar generation of random variates with the t-distribution, 1994; Devroye, Random variate
      generation in one line of code, 1996.
    """
    if alpha == 1:  # the uniform distribution
        drawn = jax.random.uniform(key, (batch,), jnp.float32)
        return jnp.minimum(drawn, 1 - drawn)
    u, v = jax.random.uniform(key, (2, batch), jnp.float32)
    p = u ** (1 / alpha)
    q = (1 - p) * jnp.square(jnp.cos(2 * jnp.pi * v))
    return 0.5 - 0.5 * jnp.sqrt(q / (p + q))


def cutmix_boxes(
    row_key: PRNGKeyArray, column_key: PRNGKeyArray, area: Float[Array, "b"], height: int, width: int
) -> Bool[Array, "b {height} {width}"]:
    """Draws the boxes of CutMix, as masks. Their centres are uniform over the image; the border clips the boxes.

    Args:
      area: of each box before clipping, as a share of the image; 0 = no box.
    """
    side = jnp.sqrt(area)

    def interval(key: PRNGKeyArray, size: int) -> Bool[Array, "b {size}"]:
        centre = jax.random.uniform(key, side.shape, jnp.float32, maxval=size)
        return _interval(centre, side * size, size)

    return interval(row_key, height)[:, :, None] & interval(column_key, width)[:, None, :]


def random_erasing(key: PRNGKeyArray, images: Float[Array, "b h w c"], prob: float) -> Float[Array, "b h w c"]:
    """Replaces a random rectangle by standard normal noise, independent for each pixel and channel.

    Args:
      images: normalised.
      prob: share of the images that get a rectangle, 0..1.

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020, with the noise of the published recipes.
    """
    box_key, noise_key = jax.random.split(key)
    batch, height, width, _ = images.shape
    box = erasing_boxes(box_key, batch, height, width, prob)
    return jnp.where(box[..., None], jax.random.normal(noise_key, images.shape, images.dtype), images)


def erasing_boxes(
    key: PRNGKeyArray, batch: int, height: int, width: int, prob: float
) -> Bool[Array, "{batch} {height} {width}"]:
    """Draws the rectangles of random erasing, as masks. Their position is uniform over the places where they fit.

    The area is uniform in `ERASING_AREA`, the aspect ratio log-uniform in `ERASING_ASPECT`. A side that would be longer
    than the image (in 4 of 1000 square images) is shortened rather than drawn again.

    Args:
      prob: share of the images that get a rectangle, 0..1. The masks of the others are empty.
    """
    choice_key, area_key, aspect_key, row_key, column_key = jax.random.split(key, 5)
    chosen = jax.random.bernoulli(choice_key, prob, (batch,))
    low, high = ERASING_AREA
    area = jax.random.uniform(area_key, (batch,), jnp.float32, low, high) * (height * width)
    low, high = (math.log(aspect) for aspect in ERASING_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (batch,), jnp.float32, low, high))

    def interval(key: PRNGKeyArray, side: Float[Array, "b"], size: int) -> Bool[Array, "b {size}"]:
        side = jnp.minimum(side, size)
        centre = side / 2 + (size - side) * jax.random.uniform(key, side.shape, jnp.float32)
        return _interval(centre, side, size)

    rows = interval(row_key, jnp.sqrt(area * aspect), height) & chosen[:, None]
    columns = interval(column_key, jnp.sqrt(area / aspect), width)
    return rows[:, :, None] & columns[:, None, :]


def _interval(centre: Float[Array, "b"], side: Float[Array, "b"], size: int) -> Bool[Array, "b {size}"]:
    """Marks, among `size` pixels in a row, those whose centres lie in an interval.

    Args:
      centre: of the interval, in pixels.
      side: its length, in pixels.
    """
    pixels = jnp.arange(size, dtype=jnp.float32) + 0.5
    return jnp.abs(pixels[None, :] - centre[:, None]) < side[:, None] / 2
