"""Small networks of all families, and single operations, run by ONNX Runtime."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from skipnet_jax.errors import UserError
from skipnet_jax.exports import onnx_convert
from skipnet_jax.models import create_model
from skipnet_jax.models.junctions import JUNCTIONS
from tests.exports.small_networks import SMALL, add_small_networks, make_variables


@pytest.fixture(scope="module", autouse=True)
def networks():
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
        yield


def run(function, image_size, images):
    """Converts the function, and lets ONNX Runtime compute it from the model's bytes."""
    model = onnx_convert.convert(function, image_size)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(["logits"], {"images": batch})[0] for batch in images]


def require_same(function, image_size, variables=None):
    """Compares with JAX at two batch sizes.

    Args:
      function: of images, or of variables and images.
    """
    images = np.random.default_rng(1).standard_normal((5, image_size, image_size, 3)).astype(np.float32)
    of_images = function if variables is None else functools.partial(function, variables)
    alone, together = run(of_images, image_size, [images[:1], images])
    expected = of_images(images) if variables is None else jax.jit(function)(variables, images)
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone[:1], expected[:1], rtol=0, atol=1e-5)


def make_function(name, **settings):
    model = create_model(name, num_classes=10, bn_group_size=0, **settings)
    return lambda variables, images: model.apply(variables, images, train=False)


@pytest.mark.parametrize(
    "name",
    [
        "sum_tiny",
        "dynamic_tinyseresnext",
        *(pytest.param(f"skip_{name}", marks=pytest.mark.slow) for name in SMALL),
        *(
            pytest.param(f"{junction}_tiny", marks=pytest.mark.slow)
            for junction in JUNCTIONS
            if junction not in ("add", "skip", "sum")
        ),
    ],
)
def test_a_network_computes_the_same(name):
    image_size = SMALL[name.partition("_")[2]][2]
    require_same(make_function(name), image_size, make_variables(name))


@pytest.mark.slow
def test_noise_that_scales_in_evaluation_is_kept():
    require_same(make_function("tiny", shake_drop=0.5), 8, make_variables("tiny"))


def test_everything_that_depends_on_parameters_alone_is_computed_beforehand():
    function = functools.partial(make_function("tinyswin"), make_variables("tinyswin"))
    nodes = [node.op_type for node in onnx_convert.convert(function, 60).graph.node]
    assert "Where" not in nodes  # from the mask of the shifted windows
    assert "Expand" not in nodes
    assert nodes.count("Gather") == 4  # the pixels that patch merging joins; position biases would add more


def test_the_model_names_its_input_and_output_and_leaves_the_batch_size_free():
    proto = onnx_convert.convert(lambda images: images.mean((1, 2)), 4)
    [images], [logits] = proto.graph.input, proto.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    shapes = [[d.dim_param or d.dim_value for d in of.type.tensor_type.shape.dim] for of in (images, logits)]
    assert shapes == [["b", 4, 4, 3], ["b", 3]]
    assert proto.opset_import[0].version == 18 and proto.ir_version == 10


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1)), constant_values=3.0)[:, ::2][:, :, 1:],
        lambda x: jnp.einsum("bhwc,bwhd->bcd", x, x),
        lambda x: x[:, jnp.array([3, 0, 1])].max((1, 2)),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 3, 1), (1, 1, 2, 1), ((0, 0), (1, 0), (1, 1), (0, 0))),
        lambda x: lax.erfc(x) - jax.nn.gelu(x, approximate=False) * lax.rsqrt(x * x + 1),
        lambda x: lax.conv_general_dilated(
            x, np.ones((2, 3, 3, 2), np.float32), (2, 1), ((1, 0), (0, 2)), None, (1, 1), ("NHWC", "HWIO", "NHWC")
        ),
    ],
)
def test_operations_in_more_forms_than_the_networks_need(function):
    require_same(function, 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=1), "got onnx for a network with the operation 'sort', expected operations that "),
        (lambda x: jnp.broadcast_to(x[:, :1], x.shape).sum((1, 2)), "the operation 'reduce_sum' on repeated values"),
        (lambda x: jnp.ones((x.shape[0], 3)), "logits that do not depend on the images"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "with the padding"),
        (lambda x: lax.conv_transpose(x, np.ones((2, 2, 3, 3), np.float32), (2, 2), "SAME"), "transposed convolution"),
    ],
)
def test_operations_without_a_translation_are_named(function, message):
    with pytest.raises(UserError, match=message):
        onnx_convert.convert(function, 4)


def test_the_weights_of_a_very_large_network_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_convert, "_EXTERNAL_FROM", 1000)
    weights = np.random.default_rng(3).standard_normal((48, 40)).astype(np.float32)
    model = onnx_convert.convert(lambda x: x.reshape(-1, 48) @ weights, 4)
    onnx_convert.save(model, str(tmp_path / "network.onnx"))
    assert (tmp_path / "weights.bin").stat().st_size >= weights.nbytes > (tmp_path / "network.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    images = np.ones((2, 4, 4, 3), np.float32)
    [result] = session.run(None, {"images": images})
    np.testing.assert_allclose(result, images.reshape(2, 48) @ weights, atol=1e-5)
