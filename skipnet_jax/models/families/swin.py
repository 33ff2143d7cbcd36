"""Swin Transformer: attention inside windows that shift from block to block.

Source: Liu et al., Swin Transformer, ICCV 2021.

Deviations, as in the published SkipResNet tables: attention and perceptron are separate blocks, each with its own
junction; patch merging is the shortcut of a stage's first block; linear layers start from torch's default. Any image
size works: maps are padded to whole windows, and windows shift unless the padded map is a single window.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from skipnet_jax.models.block import BlockArchitecture
from skipnet_jax.models.layers import Layers, layer_norm_gelu, param_dtype
from skipnet_jax.models.network import Architecture
from skipnet_jax.models.stems import PatchStem

LAYER_NORM_EPSILON = 1e-5
POSITION_BIAS_INIT = nn.initializers.truncated_normal(0.02)
MASKED = -100.0  # added to the logits of pairs in different regions


def position_index(window: int) -> Int[np.ndarray, "n n"]:
    """The row of the position bias table for each pair of pixels in a window (n = window^2)."""
    row, column = np.divmod(np.arange(window**2), window)
    down, right = (axis[:, None] - axis[None] + window - 1 for axis in (row, column))
    return down * (2 * window - 1) + right


def region_mask(height: int, width: int, window: int, shift: int) -> Bool[np.ndarray, "windows n n"]:
    """True for pairs of pixels in a shifted window that lie in the same region of the unshifted map.

    Args:
      height, width: of the padded map.
    """

    def regions(size: int) -> np.ndarray:
        position = np.arange(size)
        return (position >= size - window).astype(int) + (position >= size - shift)

    region = 3 * regions(height)[:, None] + regions(width)
    region = region.reshape(height // window, window, width // window, window).swapaxes(1, 2).reshape(-1, window**2)
    return region[:, :, None] == region[:, None]


class AttentionOperation(nn.Module):
    """Multi-head attention inside windows, with a learned bias for each relative position.

    Args:
      window: side of a window in pixels.
      shifted: shift the windows by half a window.
    """

    features: int
    heads: int
    window: int
    shifted: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        height, width = x.shape[1:3]
        x = self.layers.norm(name="attn_norm")(x, train=train)
        x = jnp.pad(x, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0)))
        b, h, w, c = x.shape
        single = (h, w) == (self.window, self.window)
        shift = self.window // 2 if self.shifted and not single else 0
        if shift:
            x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
        x = x.reshape(b, h // self.window, self.window, w // self.window, self.window, c).swapaxes(2, 3)
        x = self._attend(x.reshape(b, -1, self.window**2, c), region_mask(h, w, self.window, shift) if shift else None)
        x = x.reshape(b, h // self.window, w // self.window, self.window, self.window, c).swapaxes(2, 3)
        x = x.reshape(b, h, w, c)
        if shift:
            x = jnp.roll(x, (shift, shift), axis=(1, 2))
        return x[:, :height, :width]

    def _attend(self, x: Float[Array, "b windows n c"], mask: np.ndarray | None) -> Float[Array, "b windows n c"]:
        dtype = param_dtype(self.layers.dtype)
        qkv = self.layers.dense(3 * self.features, name="attn_qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, self.heads, -1), -3, 0)
        logits = jnp.einsum("bwihd,bwjhd->bwhij", q * q.shape[-1] ** -0.5, k).astype(dtype)
        shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("attn_position_bias", POSITION_BIAS_INIT, shape, dtype)
        logits += jnp.moveaxis(table[position_index(self.window)], -1, 0)[None, None]
        if mask is not None:
            logits += jnp.where(mask, 0.0, MASKED)[None, :, None].astype(dtype)
        weights = nn.softmax(logits).astype(v.dtype)
        out = jnp.einsum("bwhij,bwjhd->bwihd", weights, v).reshape(x.shape)
        return self.layers.dense(self.features, name="attn_proj")(out)


class PerceptronOperation(nn.Module):
    """Norm, then for each pixel a two-layer perceptron of four times the width."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        x = self.layers.norm(name="mlp_norm")(x, train=train)
        x = self.layers.act(self.layers.dense(4 * self.features, name="mlp_fc1")(x))
        return self.layers.dense(self.features, name="mlp_fc2")(x)


class PatchMerging(nn.Module):
    """Merges 2x2 pixels into one if the width changes, else the identity; odd sizes are padded with zeros."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        if x.shape[-1] == self.features:
            return x
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
        x = self.layers.norm(name="norm")(x, train=train)
        return self.layers.dense(self.features, use_bias=False, name="reduction")(x)


def _architecture(
    name: str, pairs: tuple[int, ...], width: int, heads: int, *, window: int = 7, image_size: int = 224
) -> Architecture:
    """Each stage has `pairs` of an attention block and a perceptron block."""
    blocks = []
    for stage, count in enumerate(pairs):
        features = width * 2**stage
        shortcut = functools.partial(PatchMerging, features)
        for i in range(count):
            stride = 2 if stage and not i else 1
            attention = functools.partial(AttentionOperation, features, heads * 2**stage, window, i % 2 == 1)
            blocks.append(BlockArchitecture(stride, shortcut, attention))
            blocks.append(BlockArchitecture(1, shortcut, functools.partial(PerceptronOperation, features)))
    return Architecture(
        name,
        image_size,
        1000,
        functools.partial(PatchStem, width),
        tuple(blocks),
        layers=functools.partial(layer_norm_gelu, LAYER_NORM_EPSILON),
        head_norm=True,
        shortcut_first=True,
        post_activation=False,
    )


NETWORKS = {
    "swin_tiny": _architecture("SwinTinyPatch4-224", (2, 2, 6, 2), 96, 3),
    "swin_small": _architecture("SwinSmallPatch4-224", (2, 2, 18, 2), 96, 3),
    "swin_base": _architecture("SwinBasePatch4-224", (2, 2, 18, 2), 128, 4),
    "swin_base_384": _architecture("SwinBasePatch4-384", (2, 2, 18, 2), 128, 4, window=12, image_size=384),
}
