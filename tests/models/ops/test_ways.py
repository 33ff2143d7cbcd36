"""Every platform's way against the plain formula, as `ops.TABLE` lists them."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import ops
from skipnet_jax.models.ops import plain
from skipnet_jax.training import xla_options

QUICKLY = {**xla_options.compiler_options("cpu"), "xla_backend_optimization_level": 0}  # to compile, not to run
PLATFORMS = ("cpu", "cuda", "tpu")


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def image_and_kernel(size, kernel, *, width=1, groups=1, features=1, batch=2):
    return normal(batch, *size, groups * width), normal(kernel, kernel, width, groups * features, seed=1)


def images_for_pooling(height, width):
    """Random pixels, many equal ones, few values, a constant, and images below 0."""
    x = normal(2, height, width, 3)
    whole = jnp.asarray(np.random.default_rng(2).integers(0, 3, x.shape), jnp.float32)
    return jnp.concatenate([x, jnp.maximum(x - 0.8, 0), whole, jnp.full_like(x, -2), -1 - jnp.abs(x)])


def norm_operands(*shape):
    """The groups, or the pixels, have different means and variances."""
    different = 1 + jnp.arange(shape[0], dtype=jnp.float32).reshape(-1, *[1] * (len(shape) - 1))
    return 3 * different * normal(*shape) + 2, normal(shape[-1], seed=1), normal(shape[-1], seed=2)


def gate_operands(states, branch_logit=None):
    logits = normal(2, 1 + states, 5)
    if branch_logit is not None:
        logits = logits.at[:, 0].set(branch_logit)
    return logits, normal(2, 3, 4, 5, seed=1), tuple(normal(2, 3, 4, 5, seed=2 + k) for k in range(states))


AROUND_0 = jnp.concatenate([jnp.linspace(-6, 6, 240), jnp.zeros(1)])

# Operation -> (arrays, settings). The first case of each also runs in float32 and in bfloat16.
CASES = {
    plain.convolve: [
        (image_and_kernel((7, 8), 3, width=5, features=4), (1, 1, 1)),
        (image_and_kernel((5, 9), 3, width=5, features=4), (2, 1, 1)),
        (image_and_kernel((8, 8), 4, width=5, features=4), (4, 0, 1)),
        # few groups: all together, in two parts, a prime number of them, too wide to join, narrower, wider
        (image_and_kernel((7, 8), 3, groups=2, width=4, features=4), (1, 1, 2)),
        (image_and_kernel((7, 8), 3, groups=16, width=4, features=4), (2, 1, 16)),
        (image_and_kernel((7, 8), 3, groups=7, width=4, features=4), (1, 0, 7)),
        (image_and_kernel((7, 8), 3, groups=2, width=40, features=40), (1, 1, 2)),
        (image_and_kernel((7, 8), 3, groups=6, width=8, features=4), (1, 1, 6)),
        (image_and_kernel((7, 8), 3, groups=4, width=3, features=6), (2, 1, 4)),
        # depthwise: images larger and smaller than the kernel, even kernels, stride 2, several outputs for each input
        (image_and_kernel((7, 8), 3, groups=5), (1, 1, 5)),
        (image_and_kernel((7, 8), 7, groups=5), (1, 3, 5)),
        (image_and_kernel((3, 5), 7, groups=5), (1, 3, 5)),
        (image_and_kernel((7, 8), 4, groups=5), (1, 1, 5)),
        (image_and_kernel((7, 8), 3, groups=5), (1, 3, 5)),
        (image_and_kernel((7, 8), 7, groups=5), (2, 3, 5)),
        (image_and_kernel((7, 8), 3, groups=5, features=2), (1, 1, 5)),
    ],
    plain.max_pool: [
        ((images_for_pooling(*size),), ()) for size in [(9, 8), (8, 11), (7, 6), (1, 1), (1, 4), (2, 1), (3, 2)]
    ],
    plain.relu: [((AROUND_0,), ())],
    plain.gelu: [((AROUND_0,), ())],
    plain.batch_norm: [
        (norm_operands(3, 4, 3, 5, 6), (1e-5, False)),
        (norm_operands(3, 4, 3, 5, 6), (0.1, True)),
        (norm_operands(4, 8, 6), (1e-5, False)),
        (norm_operands(1, 4, 1, 1, 6), (0.1, True)),
    ],
    plain.layer_norm: [(norm_operands(2, 3, 5, 6), (1e-5,)), (norm_operands(4, 6), (0.1,))],
    plain.gated_sum: [
        (gate_operands(states=3), (True, True)),
        (gate_operands(states=2), (False, True)),
        (gate_operands(states=1), (False, False)),
        (gate_operands(states=2, branch_logit=-40.0), (True, True)),
        (gate_operands(states=2, branch_logit=8.0), (True, False)),
    ],
    plain.materialize: [((AROUND_0,), ())],
    plain.materialize_gradient: [((AROUND_0,), ())],
}
WAYS = [
    pytest.param(operation, way, id=f"{operation.__name__}-{'+'.join(p for p in ways if ways[p] is way)}")
    for operation, ways in ops.TABLE.items()
    for way in dict.fromkeys(ways.values())
]


def outputs_and_gradients(function, settings, arrays):
    """The gradients of all arrays, for random gradients of all outputs."""
    outputs, vjp = jax.vjp(lambda *arrays: function(*arrays, *settings), *arrays)
    seeds = iter(range(20, 30))
    return outputs, vjp(jax.tree.map(lambda out: jnp.cos(7 * normal(*out.shape, seed=next(seeds), dtype=out.dtype)), outputs))


def both(way, operation, settings, arrays, exact_dtype=None):
    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(arrays):
        exact = jax.tree.map(lambda x: x.astype(exact_dtype or x.dtype), arrays)
        return outputs_and_gradients(way, settings, arrays), outputs_and_gradients(operation, settings, exact)

    got, wanted = run(arrays)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    return list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))


def cast(arrays, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), arrays)


def test_every_operation_has_cases():
    assert CASES.keys() == ops.TABLE.keys()


@pytest.mark.parametrize(("operation", "way"), WAYS)
def test_in_float64_a_way_is_the_plain_formula(operation, way, x64):
    for arrays, settings in CASES[operation]:
        for got, wanted in both(way, operation, settings, cast(arrays, jnp.float64)):
            assert got.dtype == wanted.dtype == jnp.float64
            np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11, err_msg=f"{settings}")


@pytest.mark.parametrize(("operation", "way"), WAYS)
def test_in_float32_a_way_is_the_plain_formula(operation, way):
    arrays, settings = CASES[operation][0]
    for got, wanted in both(way, operation, settings, arrays):
        assert got.dtype == wanted.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
