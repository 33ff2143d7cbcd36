"""Noise on the residual branch, in training only: stochastic depth, ShakeDrop, DropBlock, signal augmentation.

Each sample draws its own noise from the random stream `dropout`. A rate of zero leaves nothing in the compiled
program, not even a random bit.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Scalar = float | Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class BranchNoise:
    """The noise on one block's branch: settings as in `specs.ModelSpec`, resolved for the block."""

    drop_path: float
    shake_drop: float
    drop_block: float
    drop_block_size: int
    signal_augment: float

    @property
    def active(self) -> bool:
        """Whether there is any noise."""
        return any((self.drop_path, self.shake_drop, self.drop_block, self.signal_augment))

    def add(self, y: Float[Array, "b h w c"], progress: Scalar, *, train: bool) -> Float[Array, "b h w c"]:
        """Adds the noise, first to places of the map, then to the whole branch; call it in a block's `__call__`."""
        y = DropBlock(self.drop_block, self.drop_block_size, name="drop_block")(y, progress, train=train)
        y = SignalAugment(self.signal_augment, name="signal_augment")(y, train=train)
        y = ShakeDrop(self.shake_drop, name="shake_drop")(y, train=train)
        return DropPath(self.drop_path, name="drop_path")(y, train=train)


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of some samples, and rescales it for the others to keep the mean.

    Args:
      rate: probability of dropping, 0..1.

    Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], *, train: bool) -> Float[Array, "b *hw c"]:
        if not train or not self.rate:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, _per_sample(x))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class ShakeDrop(nn.Module):
    """Shakes some samples: multiplies their branch by a random factor, and the gradient by another.

    The branch's factor alpha is uniform in -1..1; the gradient's factor beta is uniform in 0..1 and independent. In
    evaluation the branch is scaled by the mean factor, 1 - rate.

    Args:
      rate: probability of shaking, 0..1.

    Source: Yamada et al., ShakeDrop Regularization, 2018; the variant with one alpha and one beta per image.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], *, train: bool) -> Float[Array, "b *hw c"]:
        if not self.rate:
            return x
        if not train:
            return x * (1 - self.rate)
        keep_key, alpha_key, beta_key = jax.random.split(self.make_rng("dropout"), 3)
        shape = _per_sample(x)
        keep = jax.random.bernoulli(keep_key, 1 - self.rate, shape)
        alpha = jax.random.uniform(alpha_key, shape, jnp.float32, minval=-1, maxval=1)
        beta = jax.random.uniform(beta_key, shape, jnp.float32)
        return _scale(x, jnp.where(keep, 1, alpha).astype(x.dtype), jnp.where(keep, 1, beta).astype(x.dtype))


class DropBlock(nn.Module):
    """Drops squares of a map, for each sample and channel, and rescales the rest to keep the mean.

    As in the paper, squares lie within the map, so places near the border are dropped less often, and overlaps make
    the dropped share a little smaller than the rate. Unlike the paper, the rescaling factor (all places / kept places)
    is taken over each sample, not over the batch, so samples and devices do not depend on each other.

    Args:
      rate: probability of dropping a place at the end of training, 0..1; it grows linearly from 0.
      size: side of the squares, in places of the map; clipped to the map's own sides.

    Source: Ghiasi et al., DropBlock, NeurIPS 2018, algorithm 1 and equation 1.
    """

    rate: float
    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], progress: Scalar, *, train: bool) -> Float[Array, "b h w c"]:
        if not train or not self.rate:
            return x
        keep = _outside_squares(self.make_rng("dropout"), self.rate * progress, self.size, x.shape)
        kept = jnp.sum(keep, axis=(1, 2, 3), keepdims=True, dtype=jnp.float32)
        factor = math.prod(x.shape[1:]) / jnp.maximum(kept, 1)  # a sample that lost everything stays zero
        return jnp.where(keep, x * factor.astype(x.dtype), jnp.zeros_like(x))


class SignalAugment(nn.Module):
    """Signal augmentation: multiplies each sample's branch by a random gain, but not its gradient.

    Args:
      std: standard deviation of the gain, which is normal with mean 1.

    Source: Takeda, MIRU2020.
    """

    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], *, train: bool) -> Float[Array, "b *hw c"]:
        if not train or not self.std:
            return x
        gain = 1 + self.std * jax.random.normal(self.make_rng("dropout"), _per_sample(x), jnp.float32)
        return _scale(x, gain.astype(x.dtype), jnp.ones(gain.shape, x.dtype))


def _per_sample(x: Float[Array, "b *hw c"]) -> tuple[int, ...]:
    """The shape of one number per sample, which broadcasts over x."""
    return (x.shape[0],) + (1,) * (x.ndim - 1)


@jax.custom_vjp
def _scale(x: Array, forward: Array, backward: Array) -> Array:
    """`forward * x`, with `backward` as its derivative."""
    del backward
    return forward * x


_scale.defvjp(
    lambda x, forward, backward: (forward * x, backward),
    lambda backward, grad: (backward * grad, None, None),  # factors are drawn, not learned
)


def _outside_squares(key: PRNGKeyArray, rate: Scalar, size: int, shape: tuple[int, ...]) -> Bool[Array, "b h w c"]:
    """True where a map of this shape is kept."""
    batch, height, width, channels = shape
    rows, columns = min(size, height), min(size, width)
    corners = (height - rows + 1, width - columns + 1)  # rows and columns where a square may begin
    gamma = rate * (height * width) / (rows * columns * corners[0] * corners[1])
    dropped = jax.random.bernoulli(key, gamma, (batch, *corners, channels))
    for axis, side in ((1, rows), (2, columns)):  # one axis after the other reads far less than a square window
        window = tuple(side if i == axis else 1 for i in range(4))
        padding = tuple((side - 1, side - 1) if i == axis else (0, 0) for i in range(4))
        dropped = jax.lax.reduce_window(dropped, False, jax.lax.bitwise_or, window, (1, 1, 1, 1), padding)
    return ~dropped
