"""What the device does to a batch before the network sees it: normalise, erase, CutMix, Mixup, label smoothing.

The host ships bytes, a quarter of the traffic; everything that needs floats or a second image of the batch happens
here, inside the jitted step, per example.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from skipnet_jax.specs import MixingSpec, Statistics

# Random erasing, as in the published recipes: the rectangle's share of the image, and its height over its width.
ERASING_AREA = (0.02, 1 / 3)
ERASING_ASPECT = (0.3, 3.3)


def normalize_images(
    images: UInt8[Array, "b h w c"],
    statistics: Statistics,
    dtype: DTypeLike,
    lighting: Float[Array, "b c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Scales bytes to 0..1, shifts each image's colour where asked, and standardises each channel.

    Args:
      images: 0..255.
      statistics: mean and standard deviation of each channel.
      dtype: of the result.
      lighting: offset of each image's channels on the scale of 0..1; the sum is not clipped, as in the code behind
        the published tables.

    Returns:
      [b, h, w, c], about zero mean and unit deviation.
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
    """Makes what the network is trained on: images erased and mixed, and targets mixed alike and then smoothed.

    An example gets CutMix or Mixup or neither. A probability of 0 leaves nothing of the operation in the compiled
    program.

    Args:
      key: of this step; everything random follows from it.
      images: normalised.
      labels: class numbers, or -1 for an image that could not be decoded. Nothing is known of its class, so its target
        is zero, which has neither loss nor gradient; and an example that is mixed with it loses the partner's share.
      num_classes: width of the targets.
      spec: see there.

    Returns:
      Images as given in shape and type; targets [b, num_classes] of the same type, each row summing to 1.

    Source: Yun et al., CutMix (ICCV 2019), section 3; Zhang et al., mixup (ICLR 2018); per example rather than per
      batch, and with the larger of lambda and 1 - lambda, as in the code behind the published tables.
    """
    choice_key, lambda_key, row_key, column_key, erasing_key = jax.random.split(key, 5)
    batch, height, width, _ = images.shape
    targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)  # of -1: zero
    if spec.erasing_prob > 0:
        images = random_erasing(erasing_key, images, spec.erasing_prob)
    if spec.cutmix_prob > 0 or spec.mixup_prob > 0:
        choice = jax.random.uniform(choice_key, (batch,), jnp.float32)
        share = jnp.zeros((batch,), jnp.float32)  # of the target that is the partner's
        if spec.mixup_prob > 0:
            chosen = (choice >= spec.cutmix_prob) & (choice < spec.cutmix_prob + spec.mixup_prob)
            share = jnp.where(chosen, smaller_shares(lambda_key, batch, spec.mixup_alpha), share)
        weight = share[:, None, None, None]  # of the partner's pixels
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
    """Mixes each example with its partner, of which it takes `weight`: all of it where that is exactly 1.

    The partner is the neighbour in the batch. Their order is random already, so it is a uniformly random one; and a
    shift by one moves a single image between two devices, where a permutation would move nearly all of them.
    """
    weight = weight.astype(own.dtype)
    return (1 - weight) * own + weight * jnp.roll(own, 1, axis=0)


def smaller_shares(key: PRNGKeyArray, batch: int, alpha: float) -> Float[Array, "{batch}"]:
    """Draws min(lambda, 1 - lambda) with lambda ~ Beta(alpha, alpha): what examples take from their partners.

    `jax.random.beta` rejects in a loop, which compiles for seconds. The symmetric distribution has a closed form: if t
    is Student's with 2 alpha degrees of freedom, 1/2 + t / (2 sqrt(2 alpha + t^2)) has it, and
    t = sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) for uniform u and v. Below, p = u^(1 / alpha) keeps it finite.

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
    """Draws the boxes that come from the partners: at a uniform centre, clipped at the border.

    Args:
      row_key, column_key: everything random follows from them.
      area: of each box before it is clipped, as a share of the image; 0 = no box.
      height: of the images, in pixels.
      width: of the images, in pixels.
    """
    side = jnp.sqrt(area)

    def interval(key: PRNGKeyArray, size: int) -> Bool[Array, "b {size}"]:
        centre = jax.random.uniform(key, side.shape, jnp.float32, maxval=size)
        return _interval(centre, side * size, size)

    return interval(row_key, height)[:, :, None] & interval(column_key, width)[:, None, :]


def random_erasing(key: PRNGKeyArray, images: Float[Array, "b h w c"], prob: float) -> Float[Array, "b h w c"]:
    """Replaces a random rectangle of some of the images by standard normal noise, different in each pixel and channel.

    Args:
      key: everything random follows from it.
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
    """Draws the rectangles that are erased, everywhere within the image alike.

    Their area is uniform in `ERASING_AREA`, their aspect log-uniform in `ERASING_ASPECT`. Where a side would be longer
    than the image (4 in 1000 of square images) it is cut to it, instead of drawing again.

    Args:
      key: everything random follows from it.
      batch: number of images.
      height: of the images, in pixels.
      width: of the images, in pixels.
      prob: share of the images that get a rectangle, 0..1; the others' is empty.
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
    """The pixels of a line of `size` whose centres lie in an interval: clipped at the ends, no edge rounded.

    Args:
      centre: of the interval, in pixels.
      side: its length, in pixels.
    """
    pixels = jnp.arange(size, dtype=jnp.float32) + 0.5
    return jnp.abs(pixels[None, :] - centre[:, None]) < side[:, None] / 2
