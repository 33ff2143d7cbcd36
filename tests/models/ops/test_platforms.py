"""Which way a program takes on which platform, and what XLA makes of it."""

import collections
import functools
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import create_model, ops
from skipnet_jax.models.ops import cpu, gpu, plain
from skipnet_jax.training import sharding, xla_options
from tests.compilers import needs_libtpu

ROOT = pathlib.Path(__file__).parents[3]
OPTIONS = xla_options.for_training("cpu")
X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5)), jnp.float32)
# JAX fills in zeros for what only other platforms' gradients keep; XLA drops them.
IGNORED = ("case", "return", "constant", "broadcast_in_dim")


def kernels(*, groups, width, stride=1, padding=1, batch=2, size=8, dtype=jnp.float32):
    """An image, a 3x3 kernel, and the settings of their convolution."""
    x = jnp.ones((batch, size, size, groups * width), dtype)
    return (x, jnp.ones((3, 3, width, groups * width), dtype)), (stride, padding, groups)


def gradients(function, settings, *arrays):
    outputs, vjp = jax.vjp(lambda *arrays: function(*arrays, *settings), *arrays)
    return outputs, vjp(outputs)


def program(function, arrays, settings, platform):
    """The output and its gradients, as they are lowered for a platform."""
    traced = jax.jit(functools.partial(gradients, function, settings)).trace(*arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def operations(text):
    counts = collections.Counter(re.findall(r"stablehlo\.(\w+)", text))
    return {name: count for name, count in counts.items() if name not in IGNORED}


VECTOR, MAPS = jnp.ones(6), jnp.ones((2, 4, 4, 6))
# Public operation -> its plain formula, and arguments for it.
CALLS = {
    "convolve": (plain.convolve, *kernels(groups=4, width=2)),
    "max_pool": (plain.max_pool, (MAPS,), ()),
    "relu": (plain.relu, (MAPS,), ()),
    "gelu": (plain.gelu, (MAPS,), ()),
    "batch_norm": (plain.batch_norm, (MAPS, VECTOR, VECTOR, VECTOR), (0.1, True)),
    "batch_norm_max_pool": (plain.batch_norm_max_pool, (MAPS[None], VECTOR, VECTOR, VECTOR), (0.1,)),
    "deferred_batch_norm": (plain.deferred_batch_norm, (MAPS[None], VECTOR, VECTOR, VECTOR), (0.1,)),
    "layer_norm": (plain.layer_norm, (MAPS, VECTOR, VECTOR), (0.1,)),
    "gated_sum": (plain.gated_sum, (jnp.ones((2, 3, 6)), (MAPS, None, None), (MAPS, MAPS)), (True, True)),
    "materialize": (plain.materialize, (MAPS,), ()),
    "materialize_gradient": (plain.materialize_gradient, (MAPS,), ()),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_platform_gets_its_way_and_no_other(name):
    assert {operation for operation, *_ in CALLS.values()} == ops.TABLE.keys()
    operation, arrays, settings = CALLS[name]
    for platform in ("cpu", "cuda", "tpu"):
        way = ops.TABLE[operation].get(platform, operation)
        chosen = program(getattr(ops, name), arrays, settings, platform)
        assert operations(chosen) == operations(program(way, arrays, settings, platform)), platform


@pytest.mark.parametrize("name", CALLS)
def test_tracing_for_one_platform_leaves_the_others_out(name):
    _, arrays, settings = CALLS[name]
    for_any = program(getattr(ops, name), arrays, settings, "cpu")
    with ops.traced_for("cpu"):
        traced = jax.make_jaxpr(functools.partial(gradients, getattr(ops, name), settings))(*arrays)
        for_cpu = program(getattr(ops, name), arrays, settings, "cpu")
    assert "platform_index" not in str(traced)
    assert operations(for_cpu) == operations(for_any)
    with ops.traced_for("gpu"):  # CUDA or ROCm
        for_gpu = program(getattr(ops, name), arrays, settings, "cuda")
    assert operations(for_gpu) == operations(program(getattr(ops, name), arrays, settings, "cuda"))


@pytest.mark.parametrize(("name", "on_cpu", "on_gpu"), [("relu", 2, 1), ("gated_sum", 4, 2), ("max_pool", 1, 0)])
def test_only_a_cpu_gets_barriers_that_put_results_in_memory(name, on_cpu, on_gpu):
    _, arrays, settings = CALLS[name]
    for platform, barriers in (("cpu", on_cpu), ("cuda", on_gpu)):
        assert program(getattr(ops, name), arrays, settings, platform).count("optimization_barrier") == barriers


def network(ways, x, kernel, grouped, logits):
    """Three small blocks, the middle one with a grouped convolution, and norms of both kinds."""
    vector = jnp.ones(8)
    for each, groups in ((kernel, 1), (grouped, 4), (kernel, 1)):
        y, _, _ = ways.batch_norm(ways.convolve(x, each, 1, 1, groups)[None], vector, vector, vector, 0.1, True)
        y = ways.convolve(y[0], kernel, 1, 1, 1)
        (y, factor, offset), _, _, _ = ways.deferred_batch_norm(y[None], vector, vector, vector, 0.1)
        y = y[0], jnp.repeat(factor, len(x), 0), jnp.repeat(offset, len(x), 0)
        out, _ = ways.gated_sum(logits, y, (x, ways.relu(x)), True, True)
        x = ways.materialize(out)
    return ways.gelu(ways.max_pool(ways.materialize_gradient(x))).sum()


def test_on_a_cpu_the_choice_costs_neither_memory_nor_other_programs():
    arrays = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 8, 8)), jnp.ones((3, 3, 2, 8)), jnp.ones((2, 3, 8))
    direct = types.SimpleNamespace(**{operation.__name__: ways["cpu"] for operation, ways in ops.TABLE.items()})
    chosen, wanted = (
        jax.jit(jax.grad(functools.partial(network, ways), argnums=(0, 1, 2, 3)))
        .lower(*arrays)
        .compile(compiler_options={**OPTIONS, "xla_backend_optimization_level": 0})
        for ways in (ops, direct)
    )
    assert "conditional" not in chosen.as_text()
    assert chosen.memory_analysis().temp_size_in_bytes == wanted.memory_analysis().temp_size_in_bytes
    # XLA rewrites convolutions for Eigen in the main program only: those of other layouts it runs in slow loops
    layouts = [
        collections.Counter(re.findall(r" convolution\(.*dim_labels=(\w+->\w+)", each.as_text()))
        for each in (chosen, wanted)
    ]
    assert layouts[0] == layouts[1] == {"b01f_01io->b01f": 18}


@pytest.mark.parametrize("transform", [jax.vmap, jax.remat])
@pytest.mark.parametrize("name", ["relu", "gelu", "materialize", "materialize_gradient"])
def test_gradients_inside_of_a_transformation(name, transform):
    gradient = jax.grad(lambda ways, x: (getattr(ways, name)(jnp.sin(x)) ** 2).sum(), argnums=1)
    np.testing.assert_allclose(transform(functools.partial(gradient, ops))(X), gradient(plain, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("groups", "width", "parts"), [(16, 4, 2), (3, 40, 3)])
def test_on_a_cpu_no_convolution_has_groups(groups, width, parts):
    text = program(cpu.convolve, *kernels(groups=groups, width=width), "cpu")
    found = re.findall(r"batch_group_count = (\d+) : i64, feature_group_count = (\d+)", text)
    assert found == [("1", "1")] * 3 * parts  # the output and two gradients


def test_on_a_cpu_a_depthwise_convolution_is_none():
    assert "stablehlo.convolution" not in program(cpu.convolve, *kernels(groups=5, width=1), "cpu")


@pytest.mark.parametrize(
    ("width", "stride", "dtype", "in_blocks"),
    [
        (3, 2, jnp.bfloat16, True),
        (3, 2, jnp.float32, False),
        (8, 2, jnp.bfloat16, False),
        (3, 1, jnp.bfloat16, False),
    ],
)
def test_on_a_gpu_only_stems_in_bfloat16_run_over_blocks(width, stride, dtype, in_blocks):
    text = program(gpu.convolve, *kernels(groups=1, width=width, stride=stride, dtype=dtype), "cuda")
    kernel = re.search(r"stablehlo.convolution.*, tensor<(\w+)x\w+>\) ->", text).group(1)
    assert kernel == (f"{width}x2x2x16" if in_blocks else f"3x3x{width}x{width}")


def test_on_a_gpu_grouped_convolutions_stay_as_they_are():
    ours, plainly = (program(way, *kernels(groups=16, width=4), "cuda") for way in (gpu.convolve, plain.convolve))
    assert operations(ours) == operations(plainly)


@pytest.mark.parametrize(("width", "stride", "barriers"), [(128, 2, 1), (128, 1, 0), (64, 2, 0)])
def test_only_tpu_v6e_keeps_apart_the_gradient_that_crashes_its_compiler(width, stride, barriers):
    arguments = kernels(groups=1, width=width, stride=stride)
    for platform, expected in (("tpu_v6e", barriers), ("tpu", 0)):
        with ops.traced_for(platform):
            assert program(ops.convolve, *arguments, "tpu").count("optimization_barrier") == expected


def test_tpu_v6e_takes_the_ways_of_other_tpus_where_it_has_none():
    operation, arrays, settings = CALLS["gated_sum"]
    with ops.traced_for("tpu_v6e"):
        chosen = program(ops.gated_sum, arrays, settings, "tpu")
    assert operations(chosen) == operations(program(ops.TABLE[operation]["tpu"], arrays, settings, "tpu"))


@pytest.mark.parametrize("name", ["batch_norm", "batch_norm_max_pool", "deferred_batch_norm", "layer_norm"])
@pytest.mark.parametrize(("platform", "groups", "joined"), [("tpu_v6e", 4, True), ("tpu", 2, False), ("cpu", 4, False)])
def test_on_a_tpu_a_norm_of_several_groups_on_a_chip_is_a_part_of_its_caller(name, platform, groups, joined):
    operation = getattr(ops, name)
    x, vector = jnp.ones((groups, 3, 4, 4, 5)), jnp.ones(5)
    settings = {"batch_norm": (vector, 1e-5, True), "layer_norm": (1e-5,)}.get(name, (vector, 1e-5))
    with ops.traced_for(platform, devices=2):
        traced = jax.make_jaxpr(lambda x: operation(x, vector, vector, *settings))(x)
    functions = [equation.params["name"] for equation in traced.eqns if "name" in equation.params]
    assert (name not in functions) == (joined and name != "layer_norm")


BYTES_OF_GROUPS = """
import jax
import jax.numpy as jnp

from skipnet_jax.analysis import optimised_programs, program_costs, topologies
from skipnet_jax.models import ops
from skipnet_jax.training import sharding

mesh = sharding.make_mesh(topologies.open_topology("v5e:1x1").devices)


def norm(x, vector, groups, with_relu):
    vector = vector[: x.shape[-1]]
    in_groups = x.reshape(groups, -1, *x.shape[1:])
    return ops.batch_norm(in_groups, vector, vector, vector, 1e-5, with_relu)[0].reshape(x.shape)


def loss(groups, x, kernels, vector):
    "Of a block of a ResNet-50."
    y = norm(ops.convolve(x, kernels[0], 1, 0, 1), vector, groups, True)
    y = norm(ops.convolve(y, kernels[1], 1, 1, 1), vector, groups, True)
    y = norm(ops.convolve(y, kernels[2], 1, 0, 1), vector, groups, False)
    return jnp.square(ops.relu(x + y).mean((1, 2), dtype="float32")).mean()


def bytes_moved(groups):
    shapes = [(256, 56, 56, 256), [(1, 1, 256, 64), (3, 3, 64, 64), (1, 1, 64, 256)]]
    x, kernels = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, "bfloat16"), shapes, is_leaf=lambda shape: isinstance(shape, tuple)
    )
    with ops.traced_for("tpu"):
        step = jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0, in_shardings=sharding.replicated(mesh))
        lowered = step.lower(groups, x, kernels, jax.ShapeDtypeStruct([256], "float32"))
    return program_costs.read(optimised_programs.optimise(lowered).text).bytes


print(bytes_moved(2) / bytes_moved(1))
"""


@pytest.mark.slow
@needs_libtpu
def test_batch_norms_of_two_groups_on_a_chip_move_no_more_than_those_of_one():
    done = subprocess.run([sys.executable, "-c", BYTES_OF_GROUPS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) < 1.05, done.stdout + done.stderr[-1000:]


COMPILE_FOR_V6E = """
import jax
import jax.numpy as jnp

from skipnet_jax.analysis import topologies
from skipnet_jax.models import ops
from skipnet_jax.training import sharding

mesh = sharding.make_mesh(topologies.open_topology("v6e:1x1").devices)


def loss(x, first, second, vector):
    y, _, _ = ops.batch_norm(ops.convolve(x, first, 1, 0, 1)[None], vector, vector, vector, 1e-5, True)
    return jnp.square(ops.convolve(y[0], second, 2, 1, 1)).mean(dtype="float32")


shapes = [(8, 56, 56, 256), (1, 1, 256, 128), (3, 3, 128, 128)]
arguments = [*(jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes), jax.ShapeDtypeStruct([128], "float32")]
with ops.traced_for(sharding.platform(mesh)):
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)), in_shardings=sharding.replicated(mesh))
    gradients.lower(*arguments).compile()
"""


@pytest.mark.slow
@needs_libtpu
def test_the_compiler_for_tpu_v6e_survives_a_strided_convolution_behind_a_norm():
    done = subprocess.run([sys.executable, "-c", COMPILE_FOR_V6E], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


PLACES = pytest.mark.parametrize(
    ("operation", "backward"), [(cpu.materialize, False), (cpu.materialize, True), (cpu.materialize_gradient, True)]
)


def optimised(operation, backward, options):
    """Cheap operations with a barrier between them: without it, XLA makes one loop of all."""

    def between(x):
        return (operation(jnp.sin(x)) ** 2).sum()

    return jax.jit(jax.grad(between) if backward else between).lower(X).compile(compiler_options=options).as_text()


@PLACES
def test_xla_keeps_barriers_when_told_to(operation, backward):
    # All savings of time and memory on CPUs rest on this. If a new XLA fails here, look for its new option.
    assert "opt-barrier" in optimised(operation, backward, OPTIONS)


@PLACES
def test_xla_removes_barriers_when_not_told(operation, backward):
    # If a new XLA fails here, it no longer needs the option.
    assert "opt-barrier" not in optimised(operation, backward, {})


def test_each_barrier_stands_where_it_is_meant():
    def barriers(operation, function):
        return jax.jit(functools.partial(function, operation)).lower(X).as_text().count("optimization_barrier")

    def backward(operation, x):
        return jax.vjp(operation, x)[1](x)

    assert barriers(cpu.materialize, lambda operation, x: operation(x)) == 1
    assert barriers(cpu.materialize, backward) == 0
    assert barriers(cpu.materialize_gradient, lambda operation, x: operation(x)) == 0
    assert barriers(cpu.materialize_gradient, backward) == 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("max_pool", ((jnp.asarray(np.random.default_rng(0).standard_normal((16, 6, 7, 3))),), ())),
        ("convolve", kernels(groups=5, width=1, batch=16)),
        pytest.param("convolve", kernels(groups=1, width=8, batch=16), marks=SLOW),
        pytest.param("convolve", kernels(groups=16, width=4, batch=16), marks=SLOW),
        pytest.param("convolve", kernels(groups=5, width=1, stride=2, batch=16), marks=SLOW),
    ],
    ids=["max pool", "depthwise", "no groups", "grouped", "depthwise, stride 2"],
)
def test_eight_devices_compute_the_same_gradients_without_the_whole_batch(operation, call):
    (x, *others), settings = call
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    split, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    run = functools.partial(gradients, getattr(ops, operation), settings)
    arrays = [jax.device_put(x, split), *(jax.device_put(each, everywhere) for each in others)]
    compiled = jax.jit(run).lower(*arrays).compile(compiler_options=OPTIONS)
    assert "all-gather" not in compiled.as_text()
    several, alone = compiled(*arrays), jax.jit(run)(x, *others)
    for got, wanted in zip(jax.tree.leaves(several), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


@SLOW
def test_remat_needs_less_memory_for_the_same_gradients():
    images = jnp.asarray(np.random.default_rng(1).standard_normal((32, 8, 8, 3)), jnp.float32)
    variables = create_model("skip_resnet20", num_classes=10).lazy_init(jax.random.key(0), images, train=False)

    def compiled(remat):
        model = create_model("skip_resnet20", num_classes=10, remat=remat)

        def loss(params):
            given = {**variables, "params": params}
            logits, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
            return (logits**2).sum()

        options = {**OPTIONS, "xla_backend_optimization_level": 0}  # what is kept in memory is decided before
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
