import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models.junctions import JUNCTIONS, Gate, Mean, Static, Sum, fit_channels
from skipnet_jax.models.layers import batch_norm_relu, feature_map, layer_norm_gelu

CHANNELS = 12
LAYERS = {"batch norm": batch_norm_relu(jnp.float32, 0), "layer norm": layer_norm_gelu(1e-6, jnp.float32, 0)}


def maps(*widths, seed=0, batch=3):
    """Feature maps of these widths, whose spatial means differ between channels."""
    rng = np.random.default_rng(seed)
    shape = (batch, 4, 5)
    return [
        jnp.asarray(rng.standard_normal((*shape, c)) + rng.standard_normal((batch, 1, 1, c)), jnp.float32)
        for c in widths
    ]


def spread(variables, seed=1):
    """The same tree with random values, so that no 0 or 1 hides a part of the formula."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.3, 1.0, leaf.shape), leaf.dtype), variables)


def run(junction, y, states, *, variables=None, train=False):
    """The output, the weights of the states [b, n, c], and the variables."""
    y, *states = map(feature_map, (y, *states))
    if variables is None:
        variables = spread(junction.init(jax.random.key(0), y, states, train=False))
        variables = {key: variables[key] for key in variables if key != "intermediates"}
    out, sown = junction.apply(variables, y, states, train=train, mutable=["intermediates", "batch_stats"])
    np.testing.assert_allclose(out.pooled, np.asarray(out.value).mean((1, 2)), rtol=1e-5, atol=1e-5)
    return out.value, sown.get("intermediates", {}).get("weights", (None,))[0], variables


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def gate_by_definition(y, states, params, stats, *, gate_reduction):
    """The gate as the paper writes it, which concatenates full maps and then pools; batch norm, evaluation, NumPy."""
    c, n = y.shape[-1], len(states)
    v = np.concatenate([y, *states], axis=-1).mean((1, 2))
    hidden = 8 * int(np.ceil(max(c // gate_reduction, 1) / 8))
    assert params["reduce"]["kernel"].shape == ((1 + n) * c, hidden)
    v = v @ params["reduce"]["kernel"]
    v = (v - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["var"] + 1e-5)
    v = np.maximum(v * params["norm"]["scale"] + params["norm"]["bias"], 0)
    a = (v @ params["expand"]["kernel"] + params["expand"]["bias"]).reshape(-1, 1 + n, c)
    g, p = 1 / (1 + np.exp(-a[:, 0])), softmax(a[:, 1:], axis=1)
    out = g[:, None, None] * y
    for k in range(n):
        out = out + p[:, k, None, None] * states[k]
    return out, p


@pytest.mark.parametrize(("n", "gate_reduction"), [(1, 1), (2, 8), (4, 2)])
def test_gate_is_the_papers_definition(n, gate_reduction):
    y, *states = maps(*[CHANNELS] * (1 + n))
    out, weights, variables = run(Gate(LAYERS["batch norm"], gate_reduction), y, states)
    tree = jax.tree.map(np.float64, variables)
    expected, p = gate_by_definition(
        np.float64(y), np.float64(states), tree["params"], tree["batch_stats"], gate_reduction=gate_reduction
    )
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(weights, p, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "gate_reduction", "hidden"), [(64, 2, 32), (72, 8, 16), (4, 8, 8)])
def test_hidden_width_is_rounded_up_to_eights(channels, gate_reduction, hidden):
    y, state = map(feature_map, maps(channels, channels))
    variables = Gate(LAYERS["batch norm"], gate_reduction).init(jax.random.key(0), y, [state], train=False)
    assert jax.tree.map(jnp.shape, variables["params"]["reduce"]) == {"kernel": (2 * channels, hidden)}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("train", [False, True])
def test_gate_weights_are_a_distribution_over_the_states(layers, train):
    y, *states = maps(*[CHANNELS] * 5)
    _, weights, variables = run(Gate(layers, 2), y, states, train=train)
    assert weights.shape == (3, 4, CHANNELS)
    assert float(weights.min()) > 0
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    assert float(weights.std(0).max()) > 1e-3, "a gate looks at the sample"
    assert ("batch_stats" in variables) == (layers is LAYERS["batch norm"])


def test_dynamic_is_the_gate_without_the_branchs_weight():
    y, *states = maps(*[CHANNELS] * 4)
    skip, weights, variables = run(Gate(LAYERS["batch norm"], 2), y, states)
    dynamic, same_weights, _ = run(Gate(LAYERS["batch norm"], 2, weigh_branch=False), y, states, variables=variables)
    np.testing.assert_array_equal(weights, same_weights)
    np.testing.assert_allclose(
        dynamic, y + sum(weights[:, k, None, None] * states[k] for k in range(3)), rtol=1e-5, atol=1e-5
    )
    bias = variables["params"]["expand"]["bias"].at[:CHANNELS].set(100.0)  # sigmoid -> 1
    variables["params"]["expand"]["bias"] = bias
    opened, _, _ = run(Gate(LAYERS["batch norm"], 2), y, states, variables=variables)
    np.testing.assert_allclose(opened, dynamic, rtol=1e-6)
    assert float(jnp.abs(skip - dynamic).max()) > 1e-2


def test_static_weights_are_a_softmax_of_its_table():
    y, *states = maps(*[CHANNELS] * 4)
    out, weights, variables = run(Static(LAYERS["batch norm"]), y, states)
    logits = np.asarray(variables["params"]["logits"])
    assert logits.shape == (3, CHANNELS)
    expected = softmax(logits, axis=0)
    np.testing.assert_allclose(weights[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        out, y + sum(expected[k] * np.asarray(states[k]) for k in range(3)), rtol=1e-5, atol=1e-6
    )


def test_static_with_equal_logits_is_the_mean():
    y, *states = maps(*[CHANNELS] * 4)
    variables = {"params": {"logits": jnp.full((3, CHANNELS), 0.7)}}
    static, _, _ = run(Static(LAYERS["batch norm"]), y, states, variables=variables)
    mean, _, _ = run(Mean(LAYERS["batch norm"]), y, states)
    np.testing.assert_allclose(static, mean, rtol=1e-5, atol=1e-6)


def test_static_table_starts_standard_normal():
    y, *states = map(feature_map, maps(*[4000] * 3, batch=1))
    logits = Static(LAYERS["batch norm"]).init(jax.random.key(0), y, states, train=False)["params"]["logits"]
    np.testing.assert_allclose([float(logits.mean()), float(logits.std())], [0, 1], atol=0.05)
    assert float(jnp.abs(logits).max()) > 2.5


@pytest.mark.parametrize(("junction", "weight"), [(Sum, 1.0), (Mean, 1 / 3)])
def test_sum_and_mean(junction, weight):
    y, *states = maps(*[CHANNELS] * 4)
    out, weights, variables = run(junction(LAYERS["batch norm"]), y, states)
    assert variables == {}
    np.testing.assert_allclose(out, y + weight * (states[0] + states[1] + states[2]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights, np.full((1, 3, CHANNELS), weight), rtol=1e-6)


def test_a_state_carries_its_mean():
    (value,) = maps(CHANNELS)
    np.testing.assert_allclose(feature_map(value).pooled, np.asarray(value).mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert feature_map(value.astype(jnp.bfloat16)).pooled.dtype == jnp.float32


@pytest.mark.parametrize("channels", [5, CHANNELS, 20])
def test_states_are_cut_or_padded_at_the_end(channels):
    (value,) = maps(CHANNELS)
    fitted = fit_channels(feature_map(value), channels)
    kept = min(channels, CHANNELS)
    assert fitted.value.shape == (3, 4, 5, channels)
    np.testing.assert_array_equal(fitted.value[..., :kept], value[..., :kept])
    assert not fitted.value[..., kept:].any()
    np.testing.assert_allclose(fitted.pooled, np.asarray(fitted.value).mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_a_gate_sows_the_branchs_weight_if_it_has_one():
    (y, *states), layers = map(feature_map, maps(*[CHANNELS] * 3)), LAYERS["batch norm"]
    variables = spread(Gate(layers, 2).init(jax.random.key(0), y, states, train=False))
    variables["params"]["expand"]["kernel"] *= 0
    bias = variables["params"]["expand"]["bias"]
    variables["params"]["expand"]["bias"] = bias.at[:CHANNELS].set(jnp.linspace(-2.0, 2.0, CHANNELS))
    _, sown = Gate(layers, 2).apply(variables, y, states, train=False, mutable=["intermediates"])
    [branch] = sown["intermediates"]["branch"]
    np.testing.assert_allclose(branch, np.tile(1 / (1 + np.exp(-np.linspace(-2, 2, CHANNELS))), (3, 1)), rtol=1e-5)
    dynamic = Gate(layers, 2, weigh_branch=False)
    _, sown = dynamic.apply(variables, y, states, train=False, mutable=["intermediates"])
    assert "branch" not in sown["intermediates"]


@pytest.mark.parametrize("junction", JUNCTIONS)
@pytest.mark.parametrize("train", [False, True])
def test_weights_cost_nothing_unless_asked_for(junction, train, monkeypatch):
    y, *states = map(feature_map, maps(*[CHANNELS] * 3))
    module = JUNCTIONS[junction].make(LAYERS["batch norm"], 2, True, name="junction")
    variables = module.init(jax.random.key(0), y, states, train=False)
    assert set(variables) <= {"params", "batch_stats"}, "initialising does not ask for them"

    def program(*asked):
        collections = [*(["batch_stats"] if train else []), *asked]

        def apply(variables, y, states):  # a new function each time: JAX remembers what it has traced
            return module.apply(variables, y, states, train=train, mutable=collections)

        return jax.jit(apply).lower(variables, y, states).as_text()

    usual, asked = program(), program("intermediates")
    assert usual != asked
    monkeypatch.setattr(nn.Module, "sow", lambda *_: None)
    assert usual == program()
