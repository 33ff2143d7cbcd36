"""Layers with torch's conventions, against naive loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.models import layers


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def naive_conv(x, kernel, *, stride, pad, groups):
    """Convolution [b, h, w, c] x [k, k, c / groups, d], output pixel by output pixel, in float64."""
    x = np.pad(np.float64(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kernel = np.float64(kernel)
    side, _, width, features = kernel.shape
    h, w = ((size - side) // stride + 1 for size in x.shape[1:3])
    out = np.zeros((len(x), h, w, features))
    for i in range(h):
        for j in range(w):
            window = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
            for feature in range(features):
                first = feature // (features // groups) * width
                picked = window[..., first : first + width]
                out[:, i, j, feature] = (picked * kernel[..., feature]).sum((1, 2, 3))
    return out


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 2, 1), (3, 1, 1), (3, 2, 3), (7, 1, 3), (7, 2, 1)])
def test_convolution_pads_symmetrically(kernel, stride, groups):
    x = normal(2, 5, 8, 6)
    conv = layers.Conv(9, kernel, stride, groups, use_bias=True)
    variables = conv.init(jax.random.key(0), x)
    weights, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    expected = naive_conv(x, weights, stride=stride, pad=kernel // 2, groups=groups) + bias
    np.testing.assert_allclose(conv.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_patches_do_not_overlap():
    x = normal(2, 8, 13, 3)  # the last column does not fill a patch
    patch = layers.batch_norm_relu(jnp.float32, 0).patch_conv(5, 4, name="patch")
    variables = patch.init(jax.random.key(0), x)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    expected = naive_conv(x, kernel, stride=4, pad=0, groups=1) + bias
    np.testing.assert_allclose(patch.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_bias", [False, True])
def test_linear_layer(use_bias):
    x = normal(2, 3, 4, 5)
    dense = layers.Dense(7, use_bias)
    variables = dense.init(jax.random.key(0), x)
    params = variables["params"]
    assert set(params) == ({"kernel", "bias"} if use_bias else {"kernel"})
    expected = np.einsum("bhwc,cd->bhwd", x, params["kernel"]) + np.asarray(params.get("bias", 0))
    np.testing.assert_allclose(dense.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "channels", "fan_in"),
    [
        (layers.Conv(600, 3, use_bias=True), 16, 9 * 16),
        (layers.Conv(640, 3, groups=8, use_bias=True), 64, 9 * 8),
        (layers.Conv(2000, 7, groups=2000, use_bias=True), 2000, 49),
        (layers.Dense(3000), 50, 50),
    ],
    ids=["conv", "grouped", "depthwise", "linear"],
)
def test_weights_and_biases_start_uniform_by_fan_in(layer, channels, fan_in):
    params = layer.init(jax.random.key(3), jnp.zeros((1, 1, 1, channels)))["params"]
    bound = fan_in**-0.5
    for name in ("kernel", "bias"):
        values = np.float64(params[name]).ravel() / bound
        assert params[name].dtype == jnp.float32
        assert np.abs(values).max() <= 1 + 1e-6
        # a uniform sample's deciles, mean and independence of its neighbours
        np.testing.assert_allclose(np.quantile(values, [0, 0.1, 0.5, 0.9, 1]), [-1, -0.8, 0, 0.8, 1], atol=0.13)
        np.testing.assert_allclose([values.mean(), values.std()], [0, 3**-0.5], atol=0.05)
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.13
    other = layer.init(jax.random.key(4), jnp.zeros((1, 1, 1, channels)))["params"]
    assert not np.isin(params["kernel"], other["kernel"]).any() or np.mean(params["kernel"] == other["kernel"]) < 0.01
    count = min(params["kernel"].size, params["bias"].size)
    assert not np.array_equal(params["kernel"].ravel()[:count], params["bias"].ravel()[:count])


def batch_norm(x, *, group_size, params=None, stats=None):
    """The output and the new statistics, in training."""
    c = x.shape[-1]
    params = params or {"scale": jnp.ones(c, x.dtype), "bias": jnp.zeros(c, x.dtype)}
    stats = stats or {"mean": jnp.zeros(c, x.dtype), "var": jnp.ones(c, x.dtype)}
    norm = layers.BatchNorm(group_size, dtype=x.dtype)
    variables = {"params": params, "batch_stats": stats}
    out, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    return out, updates["batch_stats"]


@pytest.mark.parametrize("shape", [(8, 3, 5, 4), (8, 4)])
def test_batch_norm_normalises_and_moves_statistics_as_torch_does(shape):
    x = 3 * normal(*shape) + 2
    params = {"scale": normal(4, seed=1), "bias": normal(4, seed=2)}
    stats = {"mean": normal(4, seed=3), "var": jnp.abs(normal(4, seed=4))}
    out, updated = batch_norm(x, group_size=0, params=params, stats=stats)
    flat = np.float64(x).reshape(-1, 4)
    mean, var = flat.mean(0), flat.var(0)
    expected = (flat - mean) / np.sqrt(var + 1e-5) * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(np.asarray(out).reshape(-1, 4), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["mean"], 0.9 * np.asarray(stats["mean"]) + 0.1 * mean, rtol=1e-5, atol=1e-6)
    unbiased = flat.var(0, ddof=1)
    np.testing.assert_allclose(updated["var"], 0.9 * np.asarray(stats["var"]) + 0.1 * unbiased, rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics():
    x = normal(2, 3, 5, 4)
    params = {"scale": normal(4, seed=1), "bias": normal(4, seed=2)}
    stats = {"mean": normal(4, seed=3), "var": jnp.abs(normal(4, seed=4))}
    out = layers.BatchNorm(0).apply({"params": params, "batch_stats": stats}, x, train=False)
    scale, bias, mean, var = (np.float64(v) for v in (params["scale"], params["bias"], stats["mean"], stats["var"]))
    np.testing.assert_allclose(out, (np.float64(x) - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)


def test_groups_are_separate_batch_norms_of_consecutive_examples():
    x = normal(12, 2, 2, 3) * jnp.arange(1, 13)[:, None, None, None]
    out, updated = batch_norm(x, group_size=4)
    parts = [batch_norm(part, group_size=0) for part in jnp.split(x, 3)]
    np.testing.assert_allclose(out, jnp.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        separate = np.mean([np.asarray(stats[name]) for _, stats in parts], axis=0)
        np.testing.assert_allclose(updated[name], separate, rtol=1e-5, atol=1e-6)
    whole, _ = batch_norm(x, group_size=0)
    assert float(jnp.abs(out - whole).max()) > 0.1


@pytest.mark.parametrize("group_size", [8, 9])
def test_a_batch_within_one_group_is_one_group(group_size):
    x = normal(8, 2, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, batch_norm(x, group_size=group_size), batch_norm(x, group_size=0))


def test_a_batch_that_is_no_multiple_of_the_group_is_an_error():
    with pytest.raises(UserError, match=r"batch_size: got a batch of 12.*multiple of model\.bn_group_size \(8\)"):
        batch_norm(normal(12, 2, 2, 3), group_size=8)


@pytest.mark.parametrize(("shape", "group_size"), [((1, 3), 0), ((4, 1, 1, 3), 1)])
def test_a_single_value_has_no_variance(shape, group_size):
    with pytest.raises(UserError, match=r"batch_size: got batch norm with one value per channel"):
        batch_norm(normal(*shape), group_size=group_size)


def test_batch_norm_in_bfloat16_computes_in_float32():
    x = (100 + normal(64, 2, 2, 3)).astype(jnp.bfloat16)
    norm = layers.BatchNorm(0, dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    out, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    flat = np.float64(x).reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(np.float64(out).reshape(-1, 3), expected, atol=0.02)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    assert updates["batch_stats"]["mean"].dtype == jnp.float32


def test_initialising_leaves_the_running_statistics_alone():
    stats = layers.BatchNorm(0).init(jax.random.key(0), 5 + normal(8, 2, 2, 3), train=True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_layer_norm_over_channels(epsilon):
    family = layers.layer_norm_gelu(epsilon, jnp.float32, 128)
    x = 1e-3 * normal(2, 3, 3, 6)  # small, so that the epsilon counts
    norm = family.norm(name="norm")
    params = {"scale": normal(6, seed=1), "bias": normal(6, seed=2)}
    out = norm.apply({"params": params}, x, train=True)
    v = np.float64(x)
    expected = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(out, expected * np.asarray(params["scale"]) + np.asarray(params["bias"]), rtol=1e-4)


def test_gelu_is_the_exact_one():
    gelu = layers.layer_norm_gelu(1e-6, jnp.float32, 128).act
    x = jnp.linspace(-4, 4, 81)
    np.testing.assert_allclose(gelu(x), x * jax.scipy.stats.norm.cdf(x), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(gelu(x) - jax.nn.gelu(x, approximate=True)).max()) > 1e-4


def test_squeeze_excite():
    x = normal(2, 4, 5, 6)
    layer = layers.SqueezeExcite(3, layers.batch_norm_relu(jnp.float32, 0))
    variables = layer.init(jax.random.key(0), x)
    p = jax.tree.map(np.float64, variables["params"])
    v = np.maximum(np.float64(x).mean((1, 2)) @ p["reduce"]["kernel"] + p["reduce"]["bias"], 0)
    scale = 1 / (1 + np.exp(-(v @ p["expand"]["kernel"] + p["expand"]["bias"])))
    assert p["reduce"]["kernel"].shape == (6, 3)
    np.testing.assert_allclose(layer.apply(variables, x), x * scale[:, None, None], rtol=1e-5, atol=1e-6)


def test_mean_pool_sums_in_float32():
    x = jnp.full((1, 64, 64, 2), 1.01, jnp.bfloat16)
    pooled = layers.mean_pool(x)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, float(x[0, 0, 0, 0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(jnp.bfloat16, "float32"), (jnp.float32, "float32"), (jnp.float64, "float64")]
)
def test_parameters_are_float32_at_least(dtype, expected, x64):
    assert layers.param_dtype(dtype) == expected
    x = jnp.zeros((2, 3, 3, 4), dtype)
    for layer in (layers.Conv(5, 3, use_bias=True, dtype=dtype), layers.Dense(5, dtype=dtype)):
        out, variables = layer.init_with_output(jax.random.key(0), x)
        assert out.dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(expected)}


def test_an_image_that_shrinks_too_far_is_an_error():
    with pytest.raises(UserError, match=r"data\.image_size: got images that shrink to 3 x 9 pixels"):
        layers.Conv(8, 4, stride=4, padding=0).init(jax.random.key(0), jnp.zeros((1, 3, 9, 3)))
