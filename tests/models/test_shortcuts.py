import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import shortcuts
from skipnet_jax.models.layers import batch_norm_relu, feature_map

RELU = batch_norm_relu(jnp.float32, 0)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def run(shortcut, x):
    out, variables = shortcut.init_with_output(jax.random.key(0), x, train=False)
    return feature_map(out).value, variables.get("params", {})


@pytest.mark.parametrize("kind", [shortcuts.LinearShortcut, shortcuts.AverageLinearShortcut, shortcuts.AverageShortcut])
def test_identity_where_nothing_changes(kind):
    x = normal(2, 5, 6, 4)
    out, params = run(kind(4, 1, RELU), x)
    assert params == {}
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_average_pool_divides_by_the_pixels_there_are(size):
    x = normal(2, *size, 3)
    out = shortcuts.average_pool(x, 2)
    h, w = (-(-s // 2) for s in size)
    assert out.shape == (2, h, w, 3)
    for i in range(h):
        for j in range(w):
            window = np.asarray(x)[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_allclose(out[:, i, j], window.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_average_pool_keeps_the_type(dtype):
    assert shortcuts.average_pool(jnp.ones((1, 3, 3, 2), dtype), 2).dtype == dtype


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_linear_shortcut_takes_every_second_pixel(size):
    x = normal(2, *size, 4)
    out, params = run(shortcuts.LinearShortcut(6, 2, RELU), x)
    expected = np.asarray(x)[:, ::2, ::2] @ np.asarray(params["conv"]["kernel"])[0, 0] / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert set(params) == {"conv", "norm"}


@pytest.mark.parametrize(("features", "stride"), [(6, 1), (4, 2)])
def test_linear_shortcut_appears_when_width_or_stride_changes(features, stride):
    _, params = run(shortcuts.LinearShortcut(features, stride, RELU), normal(2, 5, 7, 4))
    assert set(params) == {"conv", "norm"}


def test_average_linear_shortcut_pools_then_changes_the_width():
    x = normal(2, 5, 7, 4)
    out, params = run(shortcuts.AverageLinearShortcut(6, 2, RELU), x)
    pooled = np.asarray(shortcuts.average_pool(x, 2))
    expected = pooled @ np.asarray(params["conv"]["kernel"])[0, 0] / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    out, params = run(shortcuts.AverageLinearShortcut(4, 2, RELU), x)
    assert params == {}, "no convolution where only the stride changes"
    np.testing.assert_array_equal(out, pooled)


def test_average_shortcut_pads_channels_at_the_end():
    x = normal(2, 5, 7, 4)
    out, params = run(shortcuts.AverageShortcut(6, 2, RELU), x)
    assert params == {}
    np.testing.assert_array_equal(out[..., :4], shortcuts.average_pool(x, 2))
    assert not out[..., 4:].any()
