import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipnet_jax import sharding, specs, steps
from skipnet_jax.models import create_model
from skipnet_jax.optim import optimizers, schedules

CLASSES = 10
SIZE = 8
BATCH = 32
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        x = nn.Dropout(0.2, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(CLASSES, name="classifier")(x)


class Linear(nn.Module):
    """A network without batch norm."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(CLASSES, name="classifier")(images.reshape(len(images), -1))


def make_spec(*, name="tiny", seed=0, bn_group_size=128, cutmix_prob=0.5):
    return specs.TrainSpec(
        model=specs.ModelSpec(name=name, num_classes=CLASSES, bn_group_size=bn_group_size),
        data=specs.DataSpec(name="digits", image_size=SIZE, pad_crop=1),
        mixing=specs.MixingSpec(cutmix_prob=cutmix_prob, label_smoothing=0.1),
        optim=specs.OptimSpec(lr=0.05, warmup_epochs=1),
        batch_size=BATCH,
        epochs=8,
        seed=seed,
    )


def make_batch(seed=0, batch=BATCH):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, batch).astype(np.int32)}


def set_up(*, model=None, spec=None, devices=None):
    """A fresh state, a jitted training step and the mesh of both."""
    spec = spec or make_spec()
    model = model or TinyNet()
    mesh = sharding.make_mesh(devices)
    schedule = schedules.cosine_by_epoch(spec.optim, epochs=spec.epochs, steps_per_epoch=2)
    optimizer = optimizers.make_optimizer(spec.optim, schedule, optimizers.decay_mask)
    state = steps.init_state(model, optimizer, image_size=SIZE, seed=spec.seed, mesh=mesh)
    return state, steps.make_train_step(model, optimizer, schedule, spec, mesh=mesh, **STATISTICS), mesh


def run(count, **kwargs):
    """The state after some steps, each on a batch of its own, and the metrics of each step."""
    state, train_step, mesh = set_up(**kwargs)
    history = []
    for step in range(count):
        state, metrics = train_step(state, sharding.to_global(make_batch(step), mesh))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def test_initial_state_is_that_of_the_network_and_its_seed():
    state, _, mesh = set_up()
    again, _, _ = set_up(devices=jax.devices()[:1])
    other, _, _ = set_up(spec=make_spec(seed=1))
    expected = TinyNet().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    jax.tree.map(np.testing.assert_array_equal, state.variables, expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(again))
    assert np.any(state.params["conv"]["kernel"] != other.params["conv"]["kernel"])
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert all(len(leaf.addressable_shards) == mesh.size for leaf in jax.tree.leaves(state))


def test_metrics_are_those_of_the_mixed_batch_before_the_step():
    spec = make_spec(cutmix_prob=0.0)
    state, train_step, mesh = set_up(model=Linear(), spec=spec)
    params, batch = jax.device_get(state.params), make_batch()
    images = (batch["image"] / 255 - STATISTICS["mean"]) / STATISTICS["std"]

    def total(params):
        logits = images.reshape(BATCH, -1) @ params["classifier"]["kernel"] + params["classifier"]["bias"][None, :]
        targets = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.01
        return -jnp.sum(jax.nn.log_softmax(logits) * targets), logits

    (loss, logits), grads = jax.value_and_grad(total, has_aux=True)(params)
    state, metrics = train_step(state, sharding.to_global(batch, mesh))
    assert set(metrics) == {"loss", "correct", "count", "grad_norm", "learning_rate"}
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads) / BATCH, rtol=1e-5)
    assert metrics["correct"] == np.sum(np.argmax(logits, axis=1) == batch["label"])
    assert metrics["count"] == BATCH
    assert metrics["correct"].dtype == metrics["count"].dtype == jnp.int32
    np.testing.assert_allclose(metrics["learning_rate"], 0.025, rtol=1e-6)  # the first of two warm-up fractions
    # Nesterov from rest: (1 + momentum) * (gradient + decay), decay on the kernel alone.
    for name, decay in (("kernel", spec.optim.weight_decay), ("bias", 0.0)):
        before, gradient = params["classifier"][name], grads["classifier"][name] / BATCH
        expected = before - 0.025 * 1.9 * (gradient + decay * before)
        np.testing.assert_allclose(state.params["classifier"][name], expected, rtol=1e-4, atol=1e-7)
    assert state.step == 1 and state.batch_stats == {}


def test_correct_counts_labels_before_mixing():
    """With zero weights class 0 wins everywhere, whatever CutMix makes of the targets."""
    state, train_step, mesh = set_up(model=Linear(), spec=make_spec(cutmix_prob=1.0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    batch = make_batch()
    _, metrics = train_step(state, sharding.to_global(batch, mesh))
    assert metrics["correct"] == np.sum(batch["label"] == 0)
    np.testing.assert_allclose(metrics["loss"], BATCH * np.log(CLASSES), rtol=1e-6)


def test_equal_states_and_batches_give_equal_bits():
    state, train_step, mesh = set_up()
    copy = jax.tree.map(jnp.copy, state)
    batch = sharding.to_global(make_batch(), mesh)
    jax.tree.map(np.testing.assert_array_equal, train_step(state, batch), train_step(copy, batch))


def test_every_step_and_every_seed_draws_its_own_numbers():
    """CutMix is all that differs: the state is put together anew each time."""
    state, first, mesh = set_up(spec=make_spec(seed=0, cutmix_prob=1.0), model=Linear())
    _, second, _ = set_up(spec=make_spec(seed=1, cutmix_prob=1.0), model=Linear())
    batch = sharding.to_global(make_batch(), mesh)

    def loss(train_step, step):
        start = jax.tree.map(jnp.copy, state).replace(step=sharding.replicate(jnp.asarray(step, jnp.int32), mesh))
        return train_step(start, batch)[1]["loss"].item()

    assert len({loss(first, 0), loss(first, 1), loss(second, 0)}) == 3
    assert loss(first, 1) == loss(first, 1)


def test_the_number_of_devices_does_not_matter():
    one, one_history = run(3, devices=jax.devices()[:1])
    many, many_history = run(3, devices=jax.devices()[:8])
    assert_trees_close(many_history, one_history, rtol=1e-4)
    assert_trees_close(many, one, rtol=1e-3, atol=1e-5)


def test_the_number_of_devices_does_not_matter_for_a_gated_network_with_groups():
    """Groups of 16 of a batch of 32 straddle the eight devices, which hold four images each."""
    spec = make_spec(name="skip_resnet20", bn_group_size=16)
    model = create_model("skip_resnet20", num_classes=CLASSES, bn_group_size=16)
    model = model.clone(
        plan=dataclasses.replace(model.plan, blocks=model.plan.blocks[:3])
    )  # one section compiles faster
    one, one_history = run(2, model=model, spec=spec, devices=jax.devices()[:1])
    many, many_history = run(2, model=model, spec=spec, devices=jax.devices()[:8])
    assert_trees_close(many_history, one_history, rtol=1e-3)
    assert_trees_close(many.variables, one.variables, rtol=1e-2, atol=1e-3)


def test_the_old_state_is_given_up():
    state, train_step, mesh = set_up()
    new_state, _ = train_step(state, sharding.to_global(make_batch(), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


def test_a_step_moves_nothing_between_host_and_device():
    state, train_step, mesh = set_up()
    eval_step = steps.make_eval_step(TinyNet(), mesh=mesh, **STATISTICS)
    batches = [sharding.to_global(make_batch(step), mesh) for step in range(3)]
    padded = sharding.to_global(make_batch() | {"mask": np.ones(BATCH, bool)}, mesh)
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, _ = train_step(state, batch)
        eval_step(state.variables, padded)


def test_a_repeated_batch_is_learnt():
    state, train_step, mesh = set_up(spec=make_spec(cutmix_prob=0.0), model=Linear())
    losses = []
    for _ in range(10):
        state, metrics = train_step(state, sharding.to_global(make_batch(), mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_training_moves_the_running_statistics():
    state, _ = run(1)
    assert np.all(state.batch_stats["norm"]["mean"] != 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_example_once(devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model = TinyNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    whole = make_batch(batch=43)
    images = (whole["image"] / 255 - STATISTICS["mean"]) / STATISTICS["std"]
    logits = np.asarray(model.apply(variables, jnp.asarray(images, jnp.float32), train=False))
    ranks = np.sum(logits > logits[np.arange(43), whole["label"]][:, None], axis=1)
    losses = -jax.nn.log_softmax(logits)[np.arange(43), whole["label"]]

    eval_step = steps.make_eval_step(model, mesh=mesh, **STATISTICS)
    totals = {"loss": 0.0, "correct": 0, "correct_top5": 0, "count": 0}
    for start in range(0, 43, 16):
        real = min(16, 43 - start)
        batch = {name: rows[start : start + real] for name, rows in whole.items()} | {"mask": np.ones(real, bool)}
        batch = {name: np.concatenate([rows, np.zeros((16 - real, *rows.shape[1:]), rows.dtype)])
                 for name, rows in batch.items()}  # fmt: skip
        for name, value in eval_step(sharding.replicate(variables, mesh), sharding.to_global(batch, mesh)).items():
            assert name == "loss" or value.dtype == jnp.int32
            totals[name] += value.item()
    assert totals["count"] == 43
    assert totals["correct"] == np.sum(ranks < 1)
    assert totals["correct_top5"] == np.sum(ranks < 5)
    np.testing.assert_allclose(totals["loss"], np.sum(losses), rtol=1e-5)


def test_padding_cannot_spoil_the_loss():
    """An infinite loss in a masked row must not turn the sum into NaN."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    kernel = jnp.zeros((SIZE * SIZE * 3, CLASSES)).at[:, 1].set(jnp.inf)
    variables = {"params": {"classifier": {"kernel": kernel, "bias": jnp.zeros(CLASSES)}}, "batch_stats": {}}
    eval_step = steps.make_eval_step(Linear(), mesh=mesh, **STATISTICS)
    metrics = eval_step(variables, sharding.to_global(make_batch() | {"mask": np.zeros(BATCH, bool)}, mesh))
    assert metrics["loss"] == 0 and metrics["count"] == 0 and metrics["correct"] == 0


def test_fewer_than_five_classes():
    class ThreeWay(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return jnp.mean(images, axis=(1, 2))

    mesh = sharding.make_mesh()
    batch = make_batch() | {"mask": np.ones(BATCH, bool)}
    batch["label"] %= 3
    metrics = steps.make_eval_step(ThreeWay(), mesh=mesh, **STATISTICS)({}, sharding.to_global(batch, mesh))
    assert metrics["correct_top5"] == BATCH
