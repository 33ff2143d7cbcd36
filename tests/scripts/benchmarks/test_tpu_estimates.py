import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts.benchmarks import linen_resnet, tpu_estimates
from scripts.benchmarks.contenders import Setting
from skipnet_jax.models import model_info
from tests import quick
from tests.compilers import needs_libtpu


@pytest.mark.slow
@needs_libtpu
def test_a_tpu_takes_less_for_its_own_operations_than_for_the_plain_formulas():
    setting = Setting(batch=128, dtype="bfloat16")
    ours, plain = (
        tpu_estimates.compile_step("skip_resnet20", setting, "v5e:2x2", plain=plain) for plain in (False, True)
    )
    assert ours.cycles / plain.cycles < 0.8


def test_the_network_of_linen_layers_is_a_resnet50():
    _, (state, _) = linen_resnet.make_step(2, 224, "bfloat16")
    assert sum(math.prod(param.shape) for param in jax.tree.leaves(state["params"])) == model_info("resnet50").params


@pytest.mark.slow
def test_the_network_of_linen_layers_learns():
    step, (shapes, batch) = linen_resnet.make_step(4, 32, "float32")
    chance = np.random.default_rng(0)
    state = jax.tree.map(lambda shape: chance.normal(0, 0.02, shape.shape).astype(np.float32), shapes)
    state["batch_stats"] = jax.tree.map(np.ones_like, state["batch_stats"])
    images = chance.normal(0, 1, batch["images"].shape).astype(np.float32)
    step = quick.jit(step)
    losses = []
    for _ in range(5):
        state, metrics = step(state, {"images": images, "labels": jnp.arange(4)})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
