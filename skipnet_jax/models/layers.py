"""The networks' layers, with torch's conventions.

Flax's defaults differ from torch's in padding, initialisation, epsilon and running variance, and each difference
changes the results. So this module defines the convolution, the linear layer and the norms itself. Blocks get them as
one `Layers`, which binds the network's precision, norm and activation, so blocks carry none of these settings.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from skipnet_jax.errors import UserError
from skipnet_jax.models import ops
from skipnet_jax.models.initializers import uniform_by_fan_in
from skipnet_jax.models.ops import plain

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # how far the running statistics move per step


def param_dtype(dtype: DTypeLike) -> DTypeLike:
    """The type of parameters and statistics: float32, or float64 if the network computes in float64."""
    return jnp.promote_types(dtype, jnp.float32)


def per_channel(vector: Float[Array, "c"], x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Gives a vector over channels the rank and the type of x, so that the two broadcast."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape).astype(x.dtype)


class Conv(nn.Module):
    """Convolution with symmetric padding (flax's SAME pads even sizes on one side only).

    Args:
      kernel: side of the kernel in pixels.
      padding: pixels on every side; None = kernel // 2.
    """

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    padding: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        init = uniform_by_fan_in(math.prod(shape[:-1]))
        kernel = self.param("kernel", init, shape, param_dtype(self.dtype))
        pad = self.kernel // 2 if self.padding is None else self.padding
        if min(x.shape[1:3]) + 2 * pad < self.kernel:
            raise UserError(
                "data.image_size",
                f"images that shrink to {x.shape[1]} x {x.shape[2]} pixels",
                f"at least the size of the network's {self.kernel} x {self.kernel} convolution",
                "Raise `data.image_size`.",
            )
        y = ops.convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, pad, self.groups)
        if self.use_bias:
            y += per_channel(self.param("bias", init, (self.features,), param_dtype(self.dtype)), y)
        return y


class Dense(nn.Module):
    """Linear layer over the last axis."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        init = uniform_by_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features), param_dtype(self.dtype))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y += per_channel(self.param("bias", init, (self.features,), param_dtype(self.dtype)), y)
        return y


class FeatureMap(NamedTuple):
    """A feature map and its mean over height and width. The map is `value * factor + offset`, or `value` without these.

    The norm of a branch may leave this multiplication to the gate: see `ops.deferred_batch_norm`.
    """

    value: Float[Array, "b h w c"]
    pooled: Float[Array, "b c"]
    factor: Float[Array, "b c"] | None = None
    offset: Float[Array, "b c"] | None = None

    @property
    def affine(self) -> plain.Affine:
        """The map in the form that `ops` takes."""
        return self.value, self.factor, self.offset


def feature_map(value: Float[Array, "b h w c"] | FeatureMap) -> FeatureMap:
    """Pools a map once for all gates that will see it; leaves a FeatureMap as it is."""
    return value if isinstance(value, FeatureMap) else FeatureMap(value, mean_pool(value))


class BatchNorm(nn.Module):
    """Batch norm over groups of examples, the same on any number of devices.

    The published runs normalised over the examples of one device. Under `jit` the plain layer would normalise over the
    global batch, so this one cuts the batch into groups of `group_size` consecutive examples. Groups within a device
    need no communication. The running statistics move by the mean over the groups, and the running variance is the
    unbiased estimate, n / (n - 1), as in torch.

    Args:
      group_size: examples per group; 0, or a number above the batch size, = the whole batch.
      followed_by: the operation after the norm. The layer applies the ReLU and the max pool itself. For a junction it
        returns a FeatureMap; on a TPU the junction does the multiplication.

    Raises:
      UserError: in training, the batch is not a multiple of the group, or a group has a single value per channel and
        thus no variance.
    """

    group_size: int
    dtype: DTypeLike = jnp.float32
    followed_by: Literal["anything", "relu", "relu and max pool", "junction"] = "anything"

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], *, train: bool) -> Float[Array, "b *hw2 c"] | FeatureMap:
        dtype, shape = param_dtype(self.dtype), (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if not train:
            x = x.astype(dtype)
            factor = scale * jax.lax.rsqrt(running_var.value + BATCH_NORM_EPSILON)
            y = (x - per_channel(running_mean.value, x)) * per_channel(factor, x) + per_channel(bias, x)
            y = (ops.relu(y) if self.followed_by.startswith("relu") else y).astype(self.dtype)
            y = ops.max_pool(y) if self.followed_by == "relu and max pool" else y
            return feature_map(y) if self.followed_by == "junction" else y
        groups = x.astype(self.dtype).reshape(self._groups(x.shape[0]), -1, *x.shape[1:])
        count = groups.size // (groups.shape[0] * groups.shape[-1])
        if count < 2:
            raise UserError(
                "batch_size",
                f"batch norm with one value per channel (a map of shape {x.shape})",
                "at least 2 values, since one has no variance",
                "Raise `batch_size`, `model.bn_group_size` or `data.image_size`.",
            )
        arguments = groups, scale, bias, running_mean.value, BATCH_NORM_EPSILON
        out: Array | FeatureMap
        if self.followed_by == "junction":
            affine, pooled, mean, var = ops.deferred_batch_norm(*arguments)
            out = _join_groups(affine, pooled)
        elif self.followed_by == "relu and max pool":
            y, mean, var = ops.batch_norm_max_pool(*arguments)
            out = y.reshape(-1, *y.shape[2:])
        else:
            y, mean, var = ops.batch_norm(*arguments, self.followed_by == "relu")
            out = y.reshape(x.shape)
        if not self.is_initializing():
            unbiased = var.mean(0) * (count / (count - 1))
            running_mean.value += BATCH_NORM_MOMENTUM * (mean.mean(0) - running_mean.value)
            running_var.value += BATCH_NORM_MOMENTUM * (unbiased - running_var.value)
        return out

    def _groups(self, batch: int) -> int:
        if not self.group_size or batch <= self.group_size:
            return 1
        if batch % self.group_size:
            raise UserError(
                "batch_size",
                f"a batch of {batch} for batch norm",
                f"a multiple of model.bn_group_size ({self.group_size})",
                "Change `batch_size` or `model.bn_group_size` (0 = whole batch).",
            )
        return batch // self.group_size


def _join_groups(affine: plain.AffineGroups, pooled: Float[Array, "g b c"]) -> FeatureMap:
    value, factor, offset = affine
    batch = pooled.shape[0] * pooled.shape[1]
    per_sample = [jnp.broadcast_to(each[:, None], pooled.shape).reshape(batch, -1) for each in (factor, offset)]
    return FeatureMap(value.reshape(batch, *value.shape[2:]), pooled.reshape(batch, -1), *per_sample)


class LayerNorm(nn.Module):
    """Layer norm over the channels."""

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
        del train
        dtype, shape = param_dtype(self.dtype), (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        return ops.layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of one network, bound to its precision: blocks are built from them.

    Args:
      norm: makes the network's norm, which is called as `norm(name=...)(x, train=...)`.
      norm_and_act: the same for one layer of norm and activation, whose gradients share their work; None = two layers.
      norm_and_pool: the same for norm, activation and max pool.
      deferred_norm: the same for a norm that returns a FeatureMap.
    """

    norm: Callable[..., nn.Module]
    act: Callable[[Array], Array]
    dtype: DTypeLike
    norm_and_act: Callable[..., nn.Module] | None = None
    norm_and_pool: Callable[..., nn.Module] | None = None
    deferred_norm: Callable[..., nn.Module] | None = None

    def conv(
        self, features: int, kernel: int, *, stride: int = 1, groups: int = 1, use_bias: bool = False, name: str
    ) -> Conv:
        """A convolution that keeps the size at stride 1."""
        return Conv(features, kernel, stride, groups, use_bias, dtype=self.dtype, name=name)

    def patch_conv(self, features: int, patch: int, *, name: str) -> Conv:
        """A convolution with bias that turns each square of patch x patch pixels into one pixel."""
        return Conv(features, patch, stride=patch, use_bias=True, padding=0, dtype=self.dtype, name=name)

    def norm_act(self, x: Float[Array, "*b c"], *, train: bool, name: str) -> Float[Array, "*b c"]:
        """Norm, then activation."""
        if self.norm_and_act is not None:
            return self.norm_and_act(name=name)(x, train=train)
        return self.act(self.norm(name=name)(x, train=train))

    def norm_act_pool(self, x: Float[Array, "b h w c"], *, train: bool, name: str) -> Float[Array, "b h2 w2 c"]:
        """Norm, activation, and max pool with stride 2."""
        if self.norm_and_pool is not None:
            return self.norm_and_pool(name=name)(x, train=train)
        return ops.max_pool(self.norm_act(x, train=train, name=name))

    def last_norm(self, x: Float[Array, "b h w c"], *, train: bool, name: str) -> Float[Array, "b h w c"] | FeatureMap:
        """The norm at the end of a branch; it may leave its multiplication to the gate."""
        return (self.deferred_norm or self.norm)(name=name)(x, train=train)

    def norm_and_mean(self, x: Float[Array, "b h w c"], *, train: bool, name: str) -> FeatureMap:
        """The norm at the end of a shortcut, and its mean. Several gates read the pixels, so it multiplies at once."""
        normalised = feature_map(self.last_norm(x, train=train, name=name))
        return FeatureMap(plain.multiply(normalised.affine), normalised.pooled)

    def dense(self, features: int, *, use_bias: bool = True, name: str) -> Dense:
        """A linear layer."""
        return Dense(features, use_bias, dtype=self.dtype, name=name)


def batch_norm_relu(dtype: DTypeLike, bn_group_size: int) -> Layers:
    """The layers of every family but ConvNeXt and Swin."""
    norm = functools.partial(BatchNorm, bn_group_size, dtype)
    return Layers(
        norm,
        ops.relu,
        dtype,
        norm_and_act=functools.partial(norm, followed_by="relu"),
        norm_and_pool=functools.partial(norm, followed_by="relu and max pool"),
        deferred_norm=functools.partial(norm, followed_by="junction"),
    )


def layer_norm_gelu(epsilon: float, dtype: DTypeLike, bn_group_size: int) -> Layers:
    """The layers of ConvNeXt and Swin, each with its own epsilon; the GELU is exact, not the tanh approximation."""
    del bn_group_size
    return Layers(functools.partial(LayerNorm, epsilon, dtype), ops.gelu, dtype)


class SqueezeExcite(nn.Module):
    """Scales each channel by a sigmoid computed from the means of all channels.

    Source: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
    """

    hidden: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        v = x.mean((1, 2), keepdims=True)
        v = nn.relu(self.layers.dense(self.hidden, name="reduce")(v))
        return x * nn.sigmoid(self.layers.dense(x.shape[-1], name="expand")(v))


def mean_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Global average pool; sums in at least float32."""
    return x.mean((1, 2), dtype=param_dtype(x.dtype))
