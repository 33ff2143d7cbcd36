import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skipnet_jax.models.ops import convolution
from skipnet_jax.models.ops.convolution import convolve
from skipnet_jax.training import sharding, xla_options

QUICKLY = {"xla_backend_optimization_level": 0}  # compiled, not run


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def reference(x, kernel, stride, padding, groups):
    """What `convolve` is to be, with JAX's own gradients."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def output_and_gradients(convolution, x, kernel, *, stride, padding, groups):
    """Of sum(output * fixed random numbers), by the image and by the kernel."""
    out, vjp = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, padding, groups), x, kernel)
    return out, *vjp(normal(*out.shape, seed=2, dtype=out.dtype))


def operands(*, groups, width, features, kernel, size=(7, 8), batch=2, dtype=jnp.float32):
    """An image of `groups * width` channels and a kernel to `groups * features`."""
    x = normal(batch, *size, groups * width, dtype=dtype)
    return x, normal(kernel, kernel, width, groups * features, seed=1, dtype=dtype)


def assert_same_as_jax(x, kernel, *, stride, padding, groups):
    @functools.partial(jax.jit, compiler_options={**xla_options.compiler_options("cpu"), **QUICKLY})
    def run(x, kernel):
        return [
            output_and_gradients(convolution, x, kernel, stride=stride, padding=padding, groups=groups)
            for convolution in (convolve, reference)
        ]

    for name, got, wanted in zip(("output", "image's", "kernel's"), *run(x, kernel), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("size", [(7, 8), (5, 9)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (4, 4, 0)])
def test_without_groups_as_jax(size, kernel, stride, padding, x64):
    x, kernel = operands(groups=1, width=5, features=4, kernel=kernel, size=size, dtype=jnp.float64)
    assert_same_as_jax(x, kernel, stride=stride, padding=padding, groups=1)


@pytest.mark.parametrize(
    ("groups", "width", "features"),
    [(2, 4, 4), (8, 4, 4), (16, 4, 4), (7, 4, 4), (5, 7, 7), (3, 24, 24), (2, 40, 40), (6, 8, 4), (4, 3, 6)],
    ids=["all together", "32 together", "two parts", "prime", "prime, apart", "24", "40", "narrower", "wider"],
)
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0)])
def test_few_groups_as_jax(groups, width, features, stride, padding, x64):
    x, kernel = operands(groups=groups, width=width, features=features, kernel=3, dtype=jnp.float64)
    assert_same_as_jax(x, kernel, stride=stride, padding=padding, groups=groups)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "multiplier"),
    [
        (1, 1, 0, 1),
        (3, 1, 0, 1),
        (3, 1, 1, 1),
        (3, 1, 3, 1),
        (7, 1, 3, 1),
        (7, 1, 0, 1),
        (4, 1, 1, 1),
        (3, 2, 1, 1),
        (7, 2, 3, 1),
        (3, 1, 1, 2),
        (3, 2, 1, 2),
    ],
)
def test_depthwise_as_jax(kernel, stride, padding, multiplier, x64):
    x, kernel = operands(groups=5, width=1, features=multiplier, kernel=kernel, dtype=jnp.float64)
    assert_same_as_jax(x, kernel, stride=stride, padding=padding, groups=5)


@pytest.mark.parametrize(("groups", "width"), [(8, 4), (5, 1)], ids=["grouped", "depthwise"])
def test_in_bfloat16_the_kernels_gradient_is_summed_in_float32(groups, width):
    x = jnp.ones((8, 16, 16, groups * width), jnp.bfloat16)
    kernel = jnp.ones((3, 3, width, groups * width), jnp.bfloat16)
    run = functools.partial(output_and_gradients, convolve, stride=1, padding=1, groups=groups)
    out, dx, dkernel = jax.jit(run)(x, kernel)
    assert {out.dtype, dx.dtype, dkernel.dtype} == {jnp.dtype(jnp.bfloat16)}
    dy = np.float64(normal(*out.shape, seed=2, dtype=jnp.bfloat16))
    # the middle of the kernel sees every pixel: 2048 numbers of either sign, whose sum is small
    np.testing.assert_allclose(np.float64(dkernel[1, 1, 0]), dy.sum((0, 1, 2)), rtol=0.01)


def both(groups, x, kernel):
    """Convolution and its gradients, to look at the program."""
    out, vjp = jax.vjp(lambda x, kernel: convolve(x, kernel, 1, 1, groups), x, kernel)
    return out, vjp(out)


def group_counts(text):
    return [int(count) for count in re.findall(r"(?:feature|batch)_group_count = (\d+)", text)]


@pytest.mark.parametrize(("groups", "width", "parts"), [(16, 4, 2), (3, 40, 3)])
def test_on_a_cpu_no_convolution_has_groups(groups, width, parts):
    x, kernel = operands(groups=groups, width=width, features=width, kernel=3)
    lowered = jax.jit(functools.partial(both, groups)).lower(x, kernel)
    assert set(group_counts(lowered.as_text())) == {1}
    assert lowered.as_text().count("stablehlo.convolution") == 3 * parts  # output and two gradients
    assert "conditional" not in lowered.compile().as_text()  # the platform is chosen while compiling


def test_on_a_cpu_a_depthwise_one_is_no_convolution():
    x, kernel = operands(groups=5, width=1, features=1, kernel=3)
    assert "stablehlo.convolution" not in jax.jit(functools.partial(both, 5)).lower(x, kernel).as_text()


def convolutions(platform, x, kernel, *, stride, padding, groups):
    """Shapes of the kernels, or of what takes their place, in the program for a platform."""
    run = functools.partial(output_and_gradients, convolve, stride=stride, padding=padding, groups=groups)
    text = jax.export.export(jax.jit(run), platforms=(platform,))(x, kernel).mlir_module()
    found = re.findall(r"stablehlo.convolution.*: \(tensor<\w+>, tensor<(\w+)x\w+>\)", text)
    return [tuple(map(int, shape.split("x"))) for shape in found]


@pytest.mark.parametrize(("kernel", "padding"), [(7, 3), (3, 1), (5, 2)])
@pytest.mark.parametrize("size", [(32, 32), (33, 40), (17, 15)])
def test_as_gpus_make_it_of_blocks_it_is_the_same(kernel, padding, size, x64):
    x, kernel = operands(groups=1, width=3, features=4, kernel=kernel, size=size, dtype=jnp.float64)
    native = functools.partial(convolution._native, 2, padding, 1)
    out, vjp = jax.vjp(functools.partial(convolution._in_blocks, padding), x, kernel)
    wanted, wanted_vjp = jax.vjp(native, x, kernel)
    np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-12)
    for got, right in zip(vjp(jnp.cos(wanted)), wanted_vjp(jnp.cos(wanted)), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("platform", "width", "stride", "dtype", "in_blocks"),
    [
        ("cuda", 3, 2, jnp.bfloat16, True),
        ("cuda", 3, 2, jnp.float32, False),
        ("cuda", 8, 2, jnp.bfloat16, False),
        ("cuda", 3, 1, jnp.bfloat16, False),
        ("cpu", 3, 2, jnp.bfloat16, False),
        ("tpu", 3, 2, jnp.bfloat16, False),
    ],
)
def test_only_gpus_make_it_of_blocks_and_only_of_images(platform, width, stride, dtype, in_blocks):
    x, kernel = operands(groups=1, width=width, features=4, kernel=7, size=(32, 32), dtype=dtype)
    kernels = convolutions(platform, x, kernel, stride=stride, padding=3, groups=1)
    assert ((4, 4, 4, 16) in kernels or (4, 4, 16, 4) in kernels) == in_blocks


@pytest.mark.parametrize("size", [(3, 5), (7, 7), (8, 12)])
def test_as_gpus_make_the_gradients_of_small_images_they_are_the_same(size, x64):
    x, kernel = operands(groups=6, width=1, features=1, kernel=7, size=size, dtype=jnp.float64)
    dy = normal(*x.shape, seed=2, dtype=jnp.float64)
    ours = convolution._gradients_of_small_images(3, 6, x, kernel, dy)
    wanted = convolution._gradients(functools.partial(convolution._native, 1, 3, 6), x, kernel, dy)
    for got, right in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(("groups", "width"), [(16, 4), (5, 1)], ids=["grouped", "depthwise"])
def test_on_other_platforms_it_stays_as_it_is(platform, groups, width):
    x, kernel = operands(groups=groups, width=width, features=width, kernel=3)
    text = jax.export.export(jax.jit(functools.partial(both, groups)), platforms=(platform,))(x, kernel).mlir_module()
    assert text.count("stablehlo.convolution") == 3
    # each has both counts; those of the output and the image's gradient are of features, the kernel's one of the batch
    assert sorted(group_counts(text)) == [1, 1, 1, groups, groups, groups]
    assert "stablehlo.optimization_barrier" not in text
    assert "stablehlo.concatenate" not in text


@pytest.mark.parametrize(
    ("groups", "width", "stride"),
    [(1, 8, 1), (16, 4, 1), (5, 1, 1), (5, 1, 2)],
    ids=["no groups", "grouped", "depthwise", "depthwise, stride 2"],
)
def test_eight_devices_compute_the_same_gradients_without_the_whole_batch(groups, width, stride, x64):
    x, kernel = operands(groups=groups, width=width, features=width, kernel=3, batch=16, dtype=jnp.float64)

    def run(x, kernel):
        out, vjp = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, 1, groups), x, kernel)
        return out, *vjp(jnp.sin(out))

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    split, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    program = (
        jax.jit(run, in_shardings=(split, everywhere), out_shardings=(split, split, everywhere))
        .lower(x, kernel)
        .compile(compiler_options=xla_options.compiler_options("cpu"))
    )
    assert "all-reduce" in program.as_text()
    assert "all-gather" not in program.as_text()
    several = program(jax.device_put(x, split), jax.device_put(kernel, everywhere))
    for got, wanted in zip(several, jax.jit(run)(x, kernel), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11)
