"""Noise on the branch: its statistics and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import noise

N = 4000


@functools.partial(jax.jit, static_argnums=0)
def apply(module, x, *args, seed=0):
    return module.apply({}, x, *args, train=True, rngs={"dropout": jax.random.key(seed)})


def factors(module, *, seed=0, n=N):
    """The factors of each sample and of its gradient, [n] each; they must be the same all over the sample."""
    x = 3 * jnp.ones((n, 2, 2, 3))
    out, backward = jax.vjp(functools.partial(apply, module, seed=seed), x)
    (grad,) = backward(2 * jnp.ones_like(out))
    out, grad = (np.asarray(value).reshape(n, -1) for value in (out / 3, grad / 2))
    assert (out == out[:, :1]).all() and (grad == grad[:, :1]).all()
    return out[:, 0], grad[:, 0]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


MODULES = [noise.DropPath(0.3), noise.ShakeDrop(0.3), noise.SignalAugment(0.3)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_samples_are_independent_and_the_key_decides(module):
    out, _ = factors(module)
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 4 / N**0.5
    np.testing.assert_array_equal(out, factors(module)[0])
    assert np.mean(out != factors(module, seed=1)[0]) > 0.3


@pytest.mark.parametrize(
    ("module", "scale"),
    [(noise.DropPath(0.9), 1.0), (noise.SignalAugment(0.9), 1.0), (noise.ShakeDrop(0.9), 0.1)],
    ids=lambda value: type(value).__name__,
)
def test_evaluation_takes_the_mean_and_needs_no_key(module, scale):
    x = normal(8, 2, 2, 3)
    np.testing.assert_allclose(module.apply({}, x, train=False), scale * x, rtol=1e-6)
    out, _ = factors(module)
    assert abs(out.mean() - scale) < 4 * out.std() / N**0.5


@pytest.mark.parametrize("train", [True, False])
def test_rates_of_zero_change_nothing_and_need_no_key(train):
    x = normal(8, 2, 2, 3)
    for module in (noise.DropPath(0.0), noise.ShakeDrop(0.0), noise.SignalAugment(0.0)):
        assert module.apply({}, x, train=train) is x
    assert noise.DropBlock(0.0, 7).apply({}, x, 1.0, train=train) is x
    assert noise.DropBlock(0.5, 7).apply({}, x, 1.0, train=False) is x


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_type_stays(dtype, x64):
    x = jax.ShapeDtypeStruct((4, 8, 8, 3), dtype)
    calls = [functools.partial(apply, module) for module in MODULES]
    for call in (*calls, lambda x: apply(noise.DropBlock(0.3, 3), x, jnp.float32(0.5))):
        assert jax.eval_shape(call, x).dtype == dtype
        assert jax.eval_shape(jax.grad(lambda x, call=call: call(x).sum()), x).dtype == dtype


def test_drop_path_drops_whole_samples_with_their_gradient():
    rate = 0.3
    out, grad = factors(noise.DropPath(rate))
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs((out > 0).mean() - (1 - rate)) < 4 * (rate * (1 - rate) / N) ** 0.5
    np.testing.assert_array_equal(grad, out)


def test_shake_drop_multiplies_by_alpha_forward_and_by_beta_backward():
    rate = 0.6
    alpha, beta = factors(noise.ShakeDrop(rate))
    shaken = alpha != 1
    np.testing.assert_array_equal(beta != 1, shaken)  # forward and backward shake the same samples
    assert abs(shaken.mean() - rate) < 4 * (rate * (1 - rate) / N) ** 0.5
    alpha, beta = alpha[shaken], beta[shaken]
    quantiles = np.linspace(0, 1, 11)
    np.testing.assert_allclose(np.quantile(alpha, quantiles), 2 * quantiles - 1, atol=0.08)
    np.testing.assert_allclose(np.quantile(beta, quantiles), quantiles, atol=0.04)
    for function in (np.abs, np.positive):  # they are independent
        assert abs(np.corrcoef(function(alpha), beta)[0, 1]) < 4 / len(alpha) ** 0.5


def test_signal_augmentation_is_a_normal_gain_that_the_gradient_ignores():
    std = 0.4
    gain, grad = factors(noise.SignalAugment(std))
    np.testing.assert_array_equal(grad, 1.0)
    z = (gain - 1) / std
    np.testing.assert_allclose(np.quantile(z, [0.023, 0.159, 0.5, 0.841, 0.977]), [-2, -1, 0, 1, 2], atol=0.15)
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=4 / N**0.5)


def squares(shape, corners, side):
    """The union of squares whose top left corners are the True places of `corners`."""
    dropped = np.zeros(shape, bool)
    for i in range(side):
        for j in range(side):
            dropped[:, i : i + corners.shape[1], j : j + corners.shape[2]] |= corners
    return dropped


def holes(out):
    """Where a map of ones was dropped."""
    return np.asarray(out) == 0


def test_drop_block_drops_squares_within_the_map():
    side, shape = 3, (300, 12, 9, 4)
    dropped = holes(apply(noise.DropBlock(0.05, side), jnp.ones(shape), 1.0))
    windows = np.lib.stride_tricks.sliding_window_view(dropped, (side, side), axis=(1, 2))
    np.testing.assert_array_equal(squares(shape, windows.all((-1, -2)), side), dropped)
    sizes = dropped.sum((1, 2))
    assert sizes[sizes > 0].min() == side**2  # the border cuts none
    assert (sizes == side**2).mean() > 0.2


@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_drop_block_drops_each_place_as_often_as_the_paper_says(progress):
    rate, side, shape = 0.3, 3, (1500, 8, 6, 4)
    dropped = holes(apply(noise.DropBlock(rate, side), jnp.ones(shape), progress))
    gamma = rate * progress / side**2 * (8 * 6) / ((8 - side + 1) * (6 - side + 1))
    covering = np.zeros((8, 6))  # how many squares can drop each place
    for i in range(8 - side + 1):
        for j in range(6 - side + 1):
            covering[i : i + side, j : j + side] += 1
    expected = 1 - (1 - gamma) ** covering
    np.testing.assert_allclose(dropped.mean((0, 3)), expected, atol=4 * 0.5 / (1500 * 4) ** 0.5)
    assert rate * progress * 0.75 < dropped.mean() < rate * progress


def test_drop_block_keeps_the_mean_of_each_sample():
    out = np.asarray(apply(noise.DropBlock(0.3, 3), jnp.ones((200, 8, 8, 4)), 1.0))
    np.testing.assert_allclose(out.mean((1, 2, 3)), 1.0, rtol=1e-5)
    assert len(np.unique(out[out > 0])) > 20  # each sample has its own factor


def test_drop_block_is_drawn_for_each_sample_and_channel():
    dropped = holes(apply(noise.DropBlock(0.3, 3), jnp.ones((N, 6, 6, 2)), 1.0))[:, 3, 3].astype(float)
    assert abs(np.corrcoef(dropped[:, 0], dropped[:, 1])[0, 1]) < 4 / N**0.5
    assert abs(np.corrcoef(dropped[:-1, 0], dropped[1:, 0])[0, 1]) < 4 / N**0.5


def test_drop_block_of_a_map_smaller_than_its_square_drops_the_whole_map():
    rate = 0.25
    dropped = holes(apply(noise.DropBlock(rate, 7), jnp.ones((N, 4, 5, 2)), 1.0)).reshape(N, 20, 2)
    np.testing.assert_array_equal(dropped.all(1), dropped.any(1))
    assert abs(dropped.mean() - rate) < 4 * (rate * (1 - rate) / (2 * N)) ** 0.5
    both = apply(noise.DropBlock(rate, 7), jnp.ones((N, 4, 5, 2)), 1.0)[dropped.all((1, 2))]
    assert len(both) and not np.any(both)  # nothing is left to rescale, but nothing divides by zero


def test_drop_block_ramps_up_from_nothing():
    x, module = normal(50, 8, 8, 4), noise.DropBlock(0.2, 3)
    ramp = functools.partial(apply, module)
    np.testing.assert_array_equal(ramp(x, jnp.float32(0.0)), x)
    shares = [holes(ramp(jnp.ones((400, 8, 8, 4)), jnp.float32(progress))).mean() for progress in (0.25, 0.5, 1.0)]
    np.testing.assert_allclose(shares, [0.05, 0.1, 0.2], rtol=0.2)


def test_drop_blocks_gradient_passes_where_the_map_does():
    module, x = noise.DropBlock(0.3, 3), normal(20, 8, 8, 4)
    grad = jax.grad(lambda x: apply(module, x, 1.0).sum())(x)
    np.testing.assert_allclose(grad, apply(module, jnp.ones_like(x), 1.0), rtol=1e-6)
