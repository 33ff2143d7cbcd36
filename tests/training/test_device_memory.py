"""A batch that is too big for a device is one line, from real errors of XLA's where this machine can provoke them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from skipnet_jax import errors, train
from skipnet_jax.training import device_memory, sharding, steps
from tests.tiny_runs import TinyNet, make_spec, use_network

STATE = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params={"kernel": jnp.zeros((500, 500))},
    batch_stats={},
    opt_state=({"trace": jnp.zeros((500, 1000))},),
)


class Huge(TinyNet):
    """Needs 2^40 bytes for every image that it is trained on."""

    @nn.compact
    def __call__(self, images, *, train):
        logits = nn.Dense(self.classes, name="classifier")(images.reshape(len(images), -1))
        if train:
            logits += jax.random.normal(jax.random.key(0), (len(images), 2**38)) @ jnp.ones((2**38, 1))
        return logits


def test_a_step_that_a_device_has_no_room_for_is_one_line(tmp_path, monkeypatch):
    use_network(monkeypatch, Huge())
    with pytest.raises(errors.UserError) as refused:
        train.train_and_evaluate(make_spec(), tmp_path)
    assert refused.value.field == "batch_size"
    assert "256 (32 images per device), which needs at least" in refused.value.got
    assert "GB of a device's memory: parameters 0.0 MB" in refused.value.got
    assert "for activations, gradients and images" in refused.value.got
    assert "`model.remat`=True" in refused.value.mend and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 10.00G hbm. Exceeded hbm "
            "capacity by 10.00G.\n\nTotal hbm usage >= 20.48G:\n    reserved 530.00M",
            "64 (8 images per device), which needs at least 21.5 GB of a device's memory: parameters 1.0 MB, optimiser "
            "2.0 MB, 21.5 GB for activations, gradients and images; the device has 10.7 GB",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.50GiB.",
            "64 (8 images per device), which needs at least 1.6 GB of a device's memory: parameters 1.0 MB, optimiser "
            "2.0 MB, 1.6 GB for activations, gradients and images",
        ),
        (
            "RESOURCE_EXHAUSTED: CUDA_ERROR_OUT_OF_MEMORY",
            "64 (8 images per device), which needs too much memory: parameters 1.0 MB, optimiser 2.0 MB",
        ),
    ],
    ids=["TPU, when it compiles", "GPU, at the step", "no size"],
)
def test_the_messages_of_other_platforms(message, said):
    """XLA's words, as these platforms print them."""
    with (
        pytest.raises(errors.UserError) as refused,
        device_memory.explained("batch_size", 64, STATE, sharding.make_mesh()),
    ):
        raise jax.errors.JaxRuntimeError(message)
    assert refused.value.got == said
    assert "twice the `accumulate_steps`, or more devices" in refused.value.mend  # the run may have some already
    # Of 21.5 GB for 8 images per device there are 10.7: for three images, or four, where twice the devices share them.
    fits = "By this estimate a batch of 24 or 32 devices should fit."
    assert (fits in refused.value.mend) == ("Used" in message)


def test_the_batch_and_the_devices_that_fit():
    assert device_memory._fitting(64, 8, 0.5) == " By this estimate a batch of 32 or 16 devices should fit."
    assert device_memory._fitting(96, 8, 0.6) == " By this estimate a batch of 56 or 16 devices should fit."
    assert device_memory._fitting(8, 8, 0.5) == ""  # an image per device is the least


def test_other_errors_stay_what_they_are():
    for error in (jax.errors.JaxRuntimeError("INTERNAL: a bug"), errors.UserError("seed", "1", "2")):
        with (
            pytest.raises(type(error)) as raised,
            device_memory.explained("batch_size", 64, STATE, sharding.make_mesh()),
        ):
            raise error
        assert raised.value is error
