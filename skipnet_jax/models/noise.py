"""Noise on the residual branch, in training only: stochastic depth, ShakeDrop, DropBlock, signal augmentation.

All of it is drawn from the random stream `dropout`, and differently for each sample. A rate of zero leaves nothing in
the compiled program, not even a random bit.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Progress = float | Float[Array, ""]  # share of the training that is done, 0..1


@dataclasses.dataclass(frozen=True)
class BranchNoise:
    """The noise on one block's branch: the network's settings, resolved for this block.

    Args:
      drop_path, shake_drop, drop_block, drop_block_size, signal_augment: `rate`, `size` and `std` of the modules below.
    """

    drop_path: float = 0.0
    shake_drop: float = 0.0
    drop_block: float = 0.0
    drop_block_size: int = 7
    signal_augment: float = 0.0

    def add(self, y: Float[Array, "b h w c"], progress: Progress, *, train: bool) -> Float[Array, "b h w c"]:
        """Applies it, from within a block: places of the map first, then what concerns the branch as a whole."""
        y = DropBlock(self.drop_block, self.drop_block_size, name="drop_block")(y, progress, train=train)
        y = SignalAugment(self.signal_augment, name="signal_augment")(y, train=train)
        y = ShakeDrop(self.shake_drop, name="shake_drop")(y, train=train)
        return DropPath(self.drop_path, name="drop_path")(y, train=train)


class DropPath(nn.Module):
    """Stochastic depth: drops a sample's whole branch, and rescales the rest to keep the mean.

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
    """Multiplies a sample's branch by a random factor now and then, and its gradient by another one.

    Where a sample is shaken, the branch is multiplied by alpha, uniform in -1..1, and the gradient by beta, uniform in
    0..1 and drawn on its own. In evaluation the branch is scaled by the expected factor, 1 - rate.

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
    """Drops squares of a map, for each sample and channel on its own, and rescales what is left to keep the mean.

    The squares lie within the map, so that places near its border are dropped less often; overlaps make the dropped
    share a little smaller than the rate. Both are the paper's. Its factor, all places over those left, is taken over
    one sample rather than over the batch: samples, and devices, do not depend on each other.

    Args:
      rate: probability of dropping a place at the end of training, 0..1; before, it grows linearly from 0.
      size: side of the squares, in places of the map; where the map is smaller, its side.

    Source: Ghiasi et al., DropBlock, NeurIPS 2018, algorithm 1 and equation 1.
    """

    rate: float
    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], progress: Progress, *, train: bool) -> Float[Array, "b h w c"]:
        if not train or not self.rate:
            return x
        keep = _outside_squares(self.make_rng("dropout"), self.rate * progress, self.size, x.shape)
        left = jnp.sum(keep, axis=(1, 2, 3), keepdims=True, dtype=jnp.float32)
        factor = math.prod(x.shape[1:]) / jnp.maximum(left, 1)  # a sample that has lost everything stays zero
        return jnp.where(keep, x * factor.astype(x.dtype), jnp.zeros_like(x))


class SignalAugment(nn.Module):
    """Signal augmentation: a random gain on each sample's branch; the gradient passes as if there were none.

    Args:
      std: standard deviation of the gain, which is normal with mean 1.

    Source: published method (Takeda, MIRU2020).
    """

    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], *, train: bool) -> Float[Array, "b *hw c"]:
        if not train or not self.std:
            return x
        gain = 1 + self.std * jax.random.normal(self.make_rng("dropout"), _per_sample(x), jnp.float32)
        return _scale(x, gain.astype(x.dtype), jnp.ones(gain.shape, x.dtype))


def _per_sample(x: Float[Array, "b *hw c"]) -> tuple[int, ...]:
    """The shape of one number per sample, which broadcasts over the rest of x."""
    return (x.shape[0],) + (1,) * (x.ndim - 1)


@jax.custom_vjp
def _scale(x: Array, forward: Array, backward: Array) -> Array:
    """`forward * x`, whose gradient with respect to x is `backward` times the incoming one."""
    del backward
    return forward * x


def _scale_forward(x: Array, forward: Array, backward: Array) -> tuple[Array, Array]:
    return forward * x, backward


def _scale_backward(backward: Array, grad: Array) -> tuple[Array, None, None]:
    return backward * grad, None, None  # factors are drawn, not learned


_scale.defvjp(_scale_forward, _scale_backward)


def _outside_squares(key: PRNGKeyArray, rate: Progress, size: int, shape: tuple[int, ...]) -> Bool[Array, "b h w c"]:
    """True where a map of this shape [b, h, w, c] is kept."""
    batch, height, width, channels = shape
    rows, columns = min(size, height), min(size, width)
    corners = (height - rows + 1, width - columns + 1)  # where a square may begin
    gamma = rate * (height * width) / (rows * columns * corners[0] * corners[1])
    dropped = jax.random.bernoulli(key, gamma, (batch, *corners, channels))
    for axis, side in ((1, rows), (2, columns)):  # one axis after the other: the same at a fraction of the reads
        window = tuple(side if i == axis else 1 for i in range(4))
        padding = tuple((side - 1, side - 1) if i == axis else (0, 0) for i in range(4))
        dropped = jax.lax.reduce_window(dropped, False, jax.lax.bitwise_or, window, (1, 1, 1, 1), padding)
    return ~dropped
