import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import create_model
from skipnet_jax.models.ops.memory import (
    anew,
    apart,
    both_in_memory,
    in_memory,
    materialize,
    materialize_gradient,
    wide,
)
from skipnet_jax.training import xla_options

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5)), jnp.float32)
IDENTITIES = pytest.mark.parametrize("identity", [materialize, materialize_gradient, in_memory])


@IDENTITIES
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, jax.remat])
def test_neither_the_numbers_nor_their_gradients_change(identity, transform):
    function = transform(identity)
    out, vjp = jax.vjp(function, X)
    np.testing.assert_array_equal(out, X)
    np.testing.assert_array_equal(vjp(2 * X)[0], 2 * X)


@IDENTITIES
@pytest.mark.parametrize("transform", [jax.vmap, jax.remat])
def test_nor_do_gradients_made_inside_of_a_transformation(identity, transform):
    gradient = transform(jax.grad(lambda x: (identity(jnp.sin(x)) ** 2).sum()))
    np.testing.assert_allclose(gradient(X), np.sin(2 * X), rtol=1e-5, atol=1e-6)


def test_of_two_arrays_each_stays_what_it_is():
    x, y = X, 2 * X.astype(jnp.bfloat16)
    out = jax.jit(both_in_memory)(x, y)
    assert [array.dtype for array in out] == [x.dtype, y.dtype]
    np.testing.assert_array_equal(out[0], x)
    np.testing.assert_array_equal(np.float32(out[1]), np.float32(y))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)]
)
def test_wide_is_float32_at_least(dtype, expected, x64):
    assert wide(jnp.zeros(3, dtype)).dtype == expected


def between(identity, x):
    """Cheap operations and the barrier between them: XLA would make one loop of it."""
    return (identity(jnp.sin(x)) ** 2).sum()


def gradient_between(identity, x):
    """The same on the way back."""
    return jax.grad(functools.partial(between, identity))(x)


PLACES = pytest.mark.parametrize(
    ("identity", "function"),
    [(materialize, between), (materialize, gradient_between), (materialize_gradient, gradient_between)],
)


def optimised(function, options):
    return jax.jit(function).lower(X).compile(compiler_options=options).as_text()


@PLACES
def test_on_a_cpu_xla_keeps_the_barrier_when_it_is_told_to(identity, function):
    # All savings of time and memory on CPUs rest on this. If a new XLA fails here, its option is to be found.
    assert "opt-barrier" in optimised(functools.partial(function, identity), xla_options.compiler_options("cpu"))


@PLACES
def test_on_a_cpu_xla_takes_the_barrier_out_when_it_is_not_told(identity, function):
    # If a new XLA fails here, it needs to be told no longer.
    assert "opt-barrier" not in optimised(functools.partial(function, identity), {})


def test_each_barrier_stands_where_it_is_meant():
    def barriers(identity, function):
        lowered = jax.jit(functools.partial(function, identity)).lower(X)
        return lowered.as_text().count("stablehlo.optimization_barrier")

    assert barriers(materialize, between) == 1
    assert barriers(materialize, gradient_between) == 1  # of the numbers, none of their gradient
    assert barriers(materialize, lambda identity, x: jax.vjp(identity, x)[1](x)) == 0
    assert barriers(materialize_gradient, between) == 0
    assert barriers(materialize_gradient, gradient_between) == 1


@pytest.mark.parametrize(("platform", "barriers"), [("cuda", 1), ("cpu", 1), ("tpu", 0)])
@pytest.mark.parametrize("function", [anew, lambda x: apart(x)[0]], ids=["anew", "apart"])
def test_what_is_made_again_is_not_recognised(platform, barriers, function):
    def run(x):
        return function(x) * x

    text = jax.export.export(jax.jit(run), platforms=(platform,))(X).mlir_module()
    assert text.count("stablehlo.optimization_barrier") == barriers
    np.testing.assert_array_equal(run(X), X * X)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@PLACES
def test_other_platforms_have_no_barrier(platform, identity, function):
    def program(platform):
        run = jax.jit(functools.partial(function, identity))
        return jax.export.export(run, platforms=(platform,))(X).mlir_module()

    assert "optimization_barrier" in program("cpu")
    assert "optimization_barrier" not in program(platform)


def test_remat_needs_less_memory_for_the_same_gradients():
    images = jnp.asarray(np.random.default_rng(1).standard_normal((32, 8, 8, 3)), jnp.float32)
    model = create_model("skip_resnet20", num_classes=10)
    variables = model.lazy_init(jax.random.key(0), images, train=False)

    def compiled(remat):
        model = create_model("skip_resnet20", num_classes=10, remat=remat)

        def loss(params):
            given = {**variables, "params": params}
            logits, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
            return (logits**2).sum()

        # machine code that is made quickly; what is kept in memory is decided before
        options = {**xla_options.compiler_options("cpu"), "xla_backend_optimization_level": 0}
        return jax.jit(jax.grad(loss)).lower(variables["params"]).compile(compiler_options=options)

    programs = {remat: compiled(remat) for remat in (False, True)}
    memory = {remat: program.memory_analysis().temp_size_in_bytes for remat, program in programs.items()}
    assert memory[True] < memory[False] / 2
    gradients = {remat: program(variables["params"]) for remat, program in programs.items()}
    for leaf in jax.tree.leaves(gradients[False]):
        assert np.abs(leaf).max() > 0
    jax.tree.map(
        lambda with_remat, without: np.testing.assert_allclose(with_remat, without, rtol=1e-5, atol=1e-5),
        gradients[True],
        gradients[False],
    )
