"""Networks with all operations of all families, but few blocks, run by ONNX Runtime."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from skipnet_jax.exports import onnx_graph
from skipnet_jax.models import abstract_variables
from skipnet_jax.models.families import convnext, pyramidnet, regnet, resnet, swin, wide_resnet
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.network import Network


def make_network(plan, junction, *kept):
    plan = dataclasses.replace(plan, blocks=tuple(plan.blocks[k] for k in kept))
    return Network(
        plan, JUNCTIONS[junction], 10, jnp.float32, 0, plan.gate_reduction, 0.0, 0.0, 0.0, 0.0, 7, 0.0, False
    )


def draw_variables(model, image_size):
    """Numbers as a trained network has them: a signal that neither vanishes nor grows."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        size = np.sqrt(np.prod(leaf.shape[:-1])) if name == "kernel" else 10
        return jnp.asarray(rng.standard_normal(leaf.shape) / size, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model, image_size))


def run(function, image_size, images):
    """What ONNX Runtime computes, which has seen the model's bytes alone."""
    model = onnx_graph.convert(function, image_size)
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


def require_same_network(model, image_size):
    def function(variables, images):
        return model.apply(variables, images, train=False)

    require_same(function, image_size, draw_variables(model, image_size))


NETWORKS = {
    "bottleneck, deep stem, average pool": (resnet.NETWORKS["resnet50d"], (0, 3), 32),
    "max pool, squeeze-excite, groups": (resnet.NETWORKS["seresnext50_32x4d"], (0, 3), 32),
    "wide": (wide_resnet.NETWORKS["wide_resnet28_10"], (0, 1), 8),
    "pyramid": (pyramidnet.NETWORKS["pyramidnet110_a48"], (0, 1, 18), 8),
    "regnet": (regnet.NETWORKS["regnety_008"], (0, 1), 32),
    "convnext": (convnext.NETWORKS["convnext_tiny"], (0, 3), 16),
    "swin, shifted and padded windows": (swin.NETWORKS["swin_tiny"], (0, 2, 4), 60),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_each_family_computes_the_same(name):
    plan, kept, image_size = NETWORKS[name]
    require_same_network(make_network(plan, "skip", *kept), image_size)


@pytest.mark.parametrize("junction", JUNCTIONS)
def test_a_network_of_each_junction_computes_the_same(junction):
    require_same_network(make_network(resnet.NETWORKS["resnet20"], junction, 0, 1), 8)


def test_noise_that_scales_in_evaluation_is_kept():
    model = make_network(resnet.NETWORKS["resnet20"], "add", 0, 1)
    require_same_network(model.clone(shake_drop=0.5), 8)


def test_what_depends_on_parameters_alone_is_computed_beforehand():
    model = make_network(swin.NETWORKS["swin_tiny"], "add", 0, 2)
    variables = draw_variables(model, 28)
    proto = onnx_graph.convert(lambda images: model.apply(variables, images, train=False), 28)
    kinds = [node.op_type for node in proto.graph.node]
    assert "Gather" not in kinds and "Where" not in kinds  # of the position bias, and of the windows' mask
    assert "Expand" not in kinds


def test_the_model_says_its_names_and_that_the_batch_is_free():
    proto = onnx_graph.convert(lambda images: images.mean((1, 2)), 4)
    [images], [logits] = proto.graph.input, proto.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    shapes = [[d.dim_param or d.dim_value for d in of.type.tensor_type.shape.dim] for of in (images, logits)]
    assert shapes == [["b", 4, 4, 3], ["b", 3]]
    assert proto.opset_import[0].version == 18 and proto.ir_version == 10


RANDOM = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (
            jnp.broadcast_to(RANDOM[None], (x.shape[0], 3, 4)).reshape(x.shape[0], 12) + x.mean((1, 2, 3))[:, None]
        ),
        lambda x: jnp.concatenate([jnp.ones((2 * x.shape[0], 1)), x.reshape(-1, 24)], axis=1),  # twice the batch
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1)), constant_values=3.0)[:, ::2][:, :, 1:],
        lambda x: jnp.where(RANDOM.T[None, :, :, None].transpose(0, 1, 3, 2) > 0, x, x**3).sum(1),
        lambda x: jnp.einsum("bhwc,bwhd->bcd", x, x),
        lambda x: x[:, jnp.array([3, 0, 1])].max((1, 2)),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 3, 1), (1, 1, 2, 1), ((0, 0), (1, 0), (1, 1), (0, 0))),
        lambda x: lax.erfc(x) - jax.nn.gelu(x, approximate=False) * lax.rsqrt(x * x + 1),
        lambda x: x.astype(jnp.int32).astype(jnp.float32),
        lambda x: lax.conv_general_dilated(
            x, np.ones((2, 3, 3, 2), np.float32), (2, 1), ((1, 0), (0, 2)), None, (1, 1), ("NHWC", "HWIO", "NHWC")
        ),
    ],
)
def test_operations_in_forms_beyond_those_of_the_networks(function):
    require_same(function, 4)


def test_an_operation_without_translation_is_named():
    with pytest.raises(ValueError, match="got onnx for a network with the operation 'sort', which has no translation"):
        onnx_graph.convert(lambda images: jnp.sort(images, axis=1), 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.asarray(RANDOM)[lax.stop_gradient(x[:, 0, 0, 0].astype(int))], "without|no translation"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "with the padding"),
        (lambda x: lax.conv_transpose(x, np.ones((2, 2, 3, 3), np.float32), (2, 2), "SAME"), "transposed convolution"),
    ],
)
def test_forms_without_translation_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        onnx_graph.convert(function, 4)


def test_the_weights_of_a_very_large_network_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_EXTERNAL_FROM", 1000)
    weights = np.random.default_rng(3).standard_normal((48, 40)).astype(np.float32)
    model = onnx_graph.convert(lambda x: x.reshape(-1, 48) @ weights, 4)
    onnx_graph.save(model, str(tmp_path / "network.onnx"))
    assert (tmp_path / "weights.bin").stat().st_size >= weights.nbytes > (tmp_path / "network.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    images = np.ones((2, 4, 4, 3), np.float32)
    [result] = session.run(None, {"images": images})
    np.testing.assert_allclose(result, images.reshape(2, 48) @ weights, atol=1e-5)
