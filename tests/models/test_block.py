import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.block import Block, BlockArchitecture, stage_strides
from skipnet_jax.models.junctions import Sum
from skipnet_jax.models.layers import Layers, feature_map
from skipnet_jax.models.noise import BranchNoise


class Times(nn.Module):
    """Multiplies, and takes every `stride`-th pixel."""

    factor: float
    layers: Layers
    stride: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        return self.factor * x[:, :: self.stride, :: self.stride]


LAYERS = Layers(norm=Times, act=lambda x: x + 1000, dtype=jnp.float32)
NO_NOISE = BranchNoise(drop_path=0.0, shake_drop=0.0, drop_block=0.0, drop_block_size=1, signal_augment=0.0)
X = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)


def make_block(*, stride=1, shortcut_first=False, post_activation=False, **noise):
    architecture = BlockArchitecture(
        stride,
        functools.partial(Times, 10.0, stride=stride),
        functools.partial(Times, 100.0, stride=1 if shortcut_first else stride),
    )
    noise = dataclasses.replace(NO_NOISE, **noise)
    return Block(architecture, LAYERS, functools.partial(Sum, LAYERS, post_activation), noise, shortcut_first)


def run(block, x=X, earlier=(), *, train=False, seed=0):
    rngs = {"dropout": jax.random.key(seed)}
    out, state = block.apply({}, feature_map(x), list(earlier), train=train, progress=1.0, rngs=rngs)
    return out.value, state


def test_adds_branch_and_shortcut():
    out, state = run(make_block())
    np.testing.assert_allclose(out, 100 * X + 10 * X)
    np.testing.assert_allclose(state.value, 10 * X)  # the shortcut's output, not the block's
    np.testing.assert_allclose(state.pooled, [[10 * 8.5]])


def test_adds_the_earlier_states():
    earlier = [feature_map(jnp.full_like(X, 7.0)), feature_map(jnp.full((1, 4, 4, 3), 0.5))]  # the wider one is cut
    out, _ = run(make_block(), earlier=earlier)
    np.testing.assert_allclose(out, 100 * X + 10 * X + 7.5)


def test_shortcut_first_feeds_the_operation_with_the_shortcuts_output():
    out, _ = run(make_block(stride=2, shortcut_first=True))
    np.testing.assert_allclose(out, 100 * 10 * X[:, ::2, ::2] + 10 * X[:, ::2, ::2])


def test_post_activation_acts_on_the_sum_and_not_on_the_state():
    out, state = run(make_block(post_activation=True))
    np.testing.assert_allclose(out, 110 * X + 1000)
    np.testing.assert_allclose(state.value, 10 * X)


@pytest.mark.parametrize("noise", ["drop_path", "shake_drop", "drop_block", "signal_augment"])
def test_noise_falls_on_the_branch_only_and_in_training_only(noise):
    x, block = jnp.ones((64, 4, 4, 1)), make_block(**{noise: 0.5})
    out, state = run(block, x, train=True)
    np.testing.assert_allclose(state.value, 10 * x)
    branch = (np.asarray(out) - 10 * x) / 100
    assert len(np.unique(branch)) > 1
    out, state = run(block, x, train=False)
    np.testing.assert_allclose(state.value, 10 * x)
    expected = 0.5 if noise == "shake_drop" else 1  # only shaking changes the mean
    np.testing.assert_allclose(out, (100 * expected + 10) * x, rtol=1e-6)


def test_noises_are_independent_and_multiply():
    """A sample whose branch is dropped has none; the other samples' gains vary, with holes."""
    block = make_block(drop_path=0.5, shake_drop=0.5, drop_block=0.3, drop_block_size=2, signal_augment=0.2)
    out, _ = run(block, jnp.ones((512, 4, 4, 1)), train=True)
    branch = (np.asarray(out)[..., 0] - 10) / 100
    gone = (branch == 0).all((1, 2))
    assert 0.4 < gone.mean() < 0.6
    assert 0.1 < (branch[~gone] == 0).mean() < 0.4
    gain = np.abs(branch[~gone]).max((1, 2))
    assert len(np.unique(gain)) > 0.9 * len(gain)


def test_every_stage_but_the_first_starts_with_a_stride():
    assert list(stage_strides((2, 1, 3))) == [(0, 1), (0, 1), (1, 2), (2, 2), (2, 1), (2, 1)]
