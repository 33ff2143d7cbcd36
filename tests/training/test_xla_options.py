import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.training import xla_options


def test_only_cpus_have_options():
    assert xla_options.for_training("cpu") == xla_options.TRAINING["cpu"] != {}
    assert xla_options.for_evaluation("cpu") == xla_options.EVALUATION["cpu"] != {}
    for other in ("gpu", "cuda", "rocm", "tpu"):
        assert xla_options.for_training(other) == xla_options.for_evaluation(other) == {}


@pytest.mark.parametrize("name", xla_options.EVALUATION["cpu"])  # training's are among them
def test_this_xla_knows_the_option(name):
    options = {name: xla_options.for_evaluation("cpu")[name]}
    double = jax.jit(lambda x: 2 * x.sum(), compiler_options=options)
    assert double(jnp.arange(4.0)) == 12
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):  # XLA does report unknown options
        jax.jit(lambda x: x, compiler_options={f"{name}_of_old": options[name]})(1.0)
