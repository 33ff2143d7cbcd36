import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import stems
from skipnet_jax.models.layers import batch_norm_relu, layer_norm_gelu

RELU = batch_norm_relu(jnp.float32, 0)
GELU = layer_norm_gelu(1e-6, jnp.float32, 0)


@pytest.mark.parametrize(
    ("stem", "odd", "even"),
    [
        (stems.SmallStem(6, RELU), (9, 11), (8, 12)),
        (stems.LargeStem(6, RELU), (9, 11), (8, 12)),
        (stems.DeepStem(6, RELU), (9, 11), (8, 12)),
        (stems.RegNetStem(6, RELU), (9, 11), (8, 12)),
        (stems.PatchStem(6, GELU), (9, 11), (8, 12)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sizes(stem, odd, even):
    stride = {stems.SmallStem: 1, stems.RegNetStem: 2}.get(type(stem), 4)
    for size in (odd, even):
        shape = jax.eval_shape(
            lambda size=size: stem.init_with_output(jax.random.key(0), jnp.zeros((2, *size, 3)), train=False)[0]
        ).shape
        # padded convolutions round up, patches that are not full are cut
        expected = [s // stride if isinstance(stem, stems.PatchStem) else -(-s // stride) for s in size]
        assert shape == (2, *expected, 6)


def test_widths_of_the_deep_stem():
    params = stems.DeepStem(64, RELU).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    shapes = [params[f"conv{i}"]["kernel"].shape for i in (1, 2, 3)]
    assert shapes == [(3, 3, 3, 32), (3, 3, 32, 32), (3, 3, 32, 64)]


def test_stems_of_pre_activation_networks_have_no_activation():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 3)), jnp.float32)
    variables = stems.SmallStem(8, RELU).init(jax.random.key(0), images, train=False)
    plain = stems.SmallStem(8, RELU, act=False).apply(variables, images, train=False)
    assert float(plain.min()) < 0
    np.testing.assert_array_equal(stems.SmallStem(8, RELU).apply(variables, images, train=False), jnp.maximum(plain, 0))


def test_max_pool_pads_one_pixel_on_every_side():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 10, 3)), jnp.float32)
    variables = stems.LargeStem(2, RELU).init(jax.random.key(0), images, train=False)
    kernel = variables["params"]["conv"]["kernel"]
    x = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = np.maximum(np.asarray(x) / np.sqrt(1 + 1e-5), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    out = stems.LargeStem(2, RELU).apply(variables, images, train=False)
    np.testing.assert_allclose(out, windows.max((-1, -2)), rtol=1e-5, atol=1e-6)


def test_patch_stem_norms_without_activation():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)
    out, variables = stems.PatchStem(8, GELU).init_with_output(jax.random.key(0), images, train=False)
    assert set(variables["params"]["conv"]) == {"kernel", "bias"}
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(-1), 1, rtol=1e-2)
