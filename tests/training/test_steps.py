import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from skipnet_jax import specs
from skipnet_jax.models import create_model
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.specs import Statistics
from skipnet_jax.training import mixing, objectives, sharding, steps

CLASSES = 10
SIZE = 8
BATCH = 32
STATISTICS = Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        x = nn.Dropout(0.2, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(CLASSES, name="classifier")(x)


class NormOnly(nn.Module):
    """Normalises the images themselves."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(images)
        return nn.Dense(CLASSES, name="classifier")(jnp.mean(x, axis=(1, 2)))


class Linear(nn.Module):
    """A network without batch norm, in float64 where asked to."""

    @nn.compact
    def __call__(self, images, *, train):
        dense = nn.Dense(CLASSES, param_dtype=jnp.result_type(float), name="classifier")
        return dense(images.reshape(len(images), -1))


def make_spec(
    *,
    name="tiny",
    seed=0,
    bn_group_size=0,
    cutmix_prob=0.5,
    drop_block=0.0,
    optimizer="sgd",
    accumulate_steps=1,
    ema_decay=0.0,
):
    return specs.TrainSpec(
        model=specs.ModelSpec(name=name, num_classes=CLASSES, bn_group_size=bn_group_size, drop_block=drop_block),
        data=specs.DataSpec(name="digits", image_size=SIZE, pad_crop=1),
        mixing=specs.MixingSpec(cutmix_prob=cutmix_prob, label_smoothing=0.1),
        optim=specs.OptimSpec(name=optimizer, lr=0.05, warmup_epochs=1),
        batch_size=BATCH,
        epochs=8,
        seed=seed,
        accumulate_steps=accumulate_steps,
        ema_decay=ema_decay,
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
    schedule = schedules.make_schedule(spec.optim, batch_size=BATCH, epochs=spec.epochs, steps_per_epoch=2)
    optimizer = optimizers.make_optimizer(spec.optim, schedule)
    state = steps.init_state(model, optimizer, image_size=SIZE, seed=spec.seed, mesh=mesh, average=spec.ema_decay > 0)
    train_step = steps.make_train_step(
        model, optimizer, schedule, spec, steps_per_epoch=2, mesh=mesh, statistics=STATISTICS
    )
    return state, train_step, mesh


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
    images = (batch["image"] / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)

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
    assert state.step == 1 and state.batch_stats == {} and state.average == {}


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


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_old_state_is_given_up(ema_decay):
    state, train_step, mesh = set_up(spec=make_spec(ema_decay=ema_decay))
    new_state, _ = train_step(state, sharding.to_global(make_batch(), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


def assert_same_update(spec, other, *, model, **tolerance):
    """Two recipes make the same steps."""
    (state, history), (other_state, other_history) = (run(2, model=model, spec=one) for one in (spec, other))
    assert_trees_close(state, other_state, **tolerance)
    assert_trees_close(history, other_history, **tolerance)


@pytest.mark.parametrize(("parts", "optimizer"), [(2, "sgd"), (4, "sam")])
def test_accumulation_is_the_step_of_the_whole_batch(parts, optimizer, x64):
    whole = make_spec(optimizer=optimizer)
    in_parts = dataclasses.replace(whole, accumulate_steps=parts)
    assert_same_update(whole, in_parts, model=Linear(), rtol=1e-10, atol=1e-12)


def test_batch_norm_sees_the_parts_and_moves_once_for_each():
    """Of two parts the first is every other example from the first on: a tenth of its mean, then of the second's."""
    state, train_step, mesh = set_up(spec=make_spec(accumulate_steps=2, cutmix_prob=0.0), model=NormOnly())
    batch = make_batch()
    pixels = ((batch["image"] / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)).reshape(BATCH, -1, 3)
    state, _ = train_step(state, sharding.to_global(batch, mesh))
    even, odd = pixels[0::2].mean((0, 1)), pixels[1::2].mean((0, 1))
    np.testing.assert_allclose(state.batch_stats["norm"]["mean"], 0.9 * 0.1 * even + 0.1 * odd, rtol=1e-4, atol=1e-6)


def test_parts_have_noise_of_their_own():
    """All images are equal, so that equal noise would make the two halves of the batch equal."""

    class Noise(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            noise = jax.random.normal(self.make_rng("dropout"), (len(images), CLASSES)) if train else 0.0
            return noise + nn.Dense(CLASSES, name="classifier")(jnp.mean(images, axis=(1, 2)))

    spec = make_spec(accumulate_steps=2, cutmix_prob=0.0)
    state, _, _ = set_up(model=Noise(), spec=spec)
    optimizer = optimizers.make_optimizer(spec.optim, lambda step: 0.1)
    images, targets = jnp.ones((BATCH, SIZE, SIZE, 3)), jnp.full((BATCH, CLASSES), 1 / CLASSES)
    update = functools.partial(steps.update, model=Noise(), optimizer=optimizer, spec=spec)
    _, logits, _ = update(state.replace(opt_state=optimizer.init(state.params)), images, targets, jax.random.key(0))
    assert len(np.unique(np.asarray(logits)[:, 0])) == BATCH


def test_parts_of_the_batch_stay_on_their_devices():
    """Only sums over the batch cross devices: no images, no logits."""
    state, train_step, mesh = set_up(model=Linear(), spec=make_spec(accumulate_steps=4, cutmix_prob=0.0))
    program = train_step.lower(state, sharding.to_global(make_batch(), mesh)).compile().as_text()
    assert "all-reduce" in program
    for traffic in ("all-gather", "all-to-all", "collective-permute"):
        assert traffic not in program


def test_parts_that_do_not_divide_among_the_devices_are_refused():
    with pytest.raises(ValueError, match=r"got 8, .* 4 examples, .*--config\.accumulate_steps"):
        set_up(spec=make_spec(accumulate_steps=8))


def test_sam_takes_the_gradient_uphill():
    spec = make_spec(optimizer="sam", cutmix_prob=0.0)
    state, train_step, mesh = set_up(model=Linear(), spec=spec)
    params, batch = jax.device_get(state.params), make_batch()
    images = (batch["image"] / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)

    def mean_loss(params):
        logits = images.reshape(BATCH, -1) @ params["classifier"]["kernel"] + params["classifier"]["bias"][None, :]
        targets = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.01
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=1))

    grads = jax.grad(mean_loss)(params)
    norm = optax.tree.norm(grads)
    above = jax.tree.map(lambda p, g: p + 0.05 * g / norm, params, grads)
    state, metrics = train_step(state, sharding.to_global(batch, mesh))
    np.testing.assert_allclose(metrics["loss"] / BATCH, mean_loss(params), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_uphill"] / BATCH, mean_loss(above), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert metrics["loss_uphill"] > 1.01 * metrics["loss"]
    for name, decay in (("kernel", spec.optim.weight_decay), ("bias", 0.0)):
        before, gradient = params["classifier"][name], jax.grad(mean_loss)(above)["classifier"][name]
        expected = before - 0.025 * 1.9 * (gradient + decay * before)
        np.testing.assert_allclose(state.params["classifier"][name], expected, rtol=1e-3, atol=1e-6)


def test_both_passes_of_sam_move_the_running_statistics():
    """What is normalised here does not depend on parameters, so both passes move towards the same mean."""
    once, _ = run(1, model=NormOnly(), spec=make_spec(optimizer="sgd"))
    twice, _ = run(1, model=NormOnly(), spec=make_spec(optimizer="sam"))
    np.testing.assert_allclose(twice.batch_stats["norm"]["mean"], 1.9 * once.batch_stats["norm"]["mean"], rtol=1e-5)


def test_the_average_follows_parameters_and_statistics():
    spec = make_spec(ema_decay=0.25)
    state, train_step, mesh = set_up(spec=spec)
    expected = jax.device_get(state.variables)
    assert_trees_close(state.average, expected, rtol=0)
    for step in range(4):
        state, _ = train_step(state, sharding.to_global(make_batch(step), mesh))
        decay = min(0.25, (1 + step) / (10 + step))  # the first steps forget the random start
        expected = jax.tree.map(lambda o, n, d=decay: d * o + (1 - d) * np.asarray(n), expected, state.variables)
    assert_trees_close(state.average, expected, rtol=1e-5, atol=1e-7)
    assert np.any(state.average["batch_stats"]["norm"]["mean"] != state.batch_stats["norm"]["mean"])

    eval_step = steps.make_eval_step(TinyNet(), mesh=mesh, statistics=STATISTICS)
    batch = sharding.to_global(make_batch() | {"mask": np.ones(BATCH, bool)}, mesh)
    assert eval_step(state.average, batch)["loss"] != eval_step(state.variables, batch)["loss"]


def test_an_average_does_not_disturb_training():
    (plain, _), (averaged, _) = run(2), run(2, spec=make_spec(ema_decay=0.9))
    assert plain.average == {}
    assert_trees_close(averaged.replace(average={}), plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("drop_block", [0.0, 0.1])
def test_noise_that_grows_is_told_the_share_of_the_epochs(drop_block):
    """Two steps an epoch, eight epochs: step 7 is in the fourth, before which three are done."""
    shares = []

    class Growing(nn.Module):
        @nn.compact
        def __call__(self, images, *, train, progress=None):
            if progress is not None:
                jax.debug.callback(lambda share: shares.append(float(share)), progress)
            return nn.Dense(CLASSES, name="classifier")(jnp.mean(images, axis=(1, 2)))

    spec = make_spec(drop_block=drop_block)
    state, train_step, mesh = set_up(model=Growing(), spec=spec, devices=jax.devices()[:1])
    state = state.replace(step=sharding.replicate(jnp.asarray(7, jnp.int32), mesh))
    jax.block_until_ready(train_step(state, sharding.to_global(make_batch(), mesh)))
    jax.effects_barrier()
    assert shares == ([3 / 8] if drop_block else [])


def test_an_image_without_a_label_counts_for_nothing():
    """Neither does what it looks like matter, to a network without batch norm."""
    spec = make_spec(cutmix_prob=0.0)
    batch = make_batch()
    batch["label"][:8] = -1
    other = {"image": np.where(batch["label"][:, None, None, None] < 0, 0, batch["image"]), "label": batch["label"]}
    results = []
    for images in (batch, other):
        state, train_step, mesh = set_up(model=Linear(), spec=spec)
        results.append(train_step(state, sharding.to_global(images, mesh)))
    assert_trees_close(*results, rtol=1e-6, atol=1e-8)
    state, _, _ = set_up(model=Linear(), spec=spec)
    _, metrics = results[0]
    assert metrics["count"] == BATCH - 8
    images = jnp.asarray(
        (batch["image"][8:] / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std), jnp.float32
    )
    logits = Linear().apply(state.variables, images, train=True)
    targets = 0.9 * np.eye(CLASSES)[batch["label"][8:]] + 0.01
    np.testing.assert_allclose(metrics["loss"], -jnp.sum(jax.nn.log_softmax(logits) * targets), rtol=1e-5)
    assert metrics["correct"] == np.sum(np.argmax(logits, axis=1) == batch["label"][8:])


def test_lighting_shifts_the_colours():
    """By what is a whole number of byte steps, so that shifted images say the same."""
    batch = make_batch()
    batch["image"] %= 128
    offsets = np.random.default_rng(1).integers(0, 100, (BATCH, 3))
    shifted = {"image": (batch["image"] + offsets[:, None, None, :]).astype(np.uint8), "label": batch["label"]}
    state, train_step, mesh = set_up(model=Linear())
    lit = batch | {"lighting": (offsets / 255).astype(np.float32)}
    results = [train_step(jax.tree.map(jnp.copy, state), sharding.to_global(b, mesh)) for b in (lit, shifted)]
    assert_trees_close(*results, rtol=1e-4, atol=1e-6)


def test_a_step_moves_nothing_between_host_and_device():
    state, train_step, mesh = set_up()
    eval_step = steps.make_eval_step(TinyNet(), mesh=mesh, statistics=STATISTICS)
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
    images = (whole["image"] / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)
    logits = np.asarray(model.apply(variables, jnp.asarray(images, jnp.float32), train=False))
    ranks = np.sum(logits > logits[np.arange(43), whole["label"]][:, None], axis=1)
    losses = -jax.nn.log_softmax(logits)[np.arange(43), whole["label"]]

    eval_step = steps.make_eval_step(model, mesh=mesh, statistics=STATISTICS)
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
    eval_step = steps.make_eval_step(Linear(), mesh=mesh, statistics=STATISTICS)
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
    metrics = steps.make_eval_step(ThreeWay(), mesh=mesh, statistics=STATISTICS)({}, sharding.to_global(batch, mesh))
    assert metrics["correct_top5"] == BATCH


class Mean(nn.Module):
    """Scores four classes by hand: by the colours, and 0 for the last."""

    @nn.compact
    def __call__(self, images, *, train):
        return jnp.pad(jnp.mean(images, axis=(1, 2)), ((0, 0), (0, 1)))


def score(labels, *, classes=None, mask=None):
    """Metrics of four equal images, of which colour 1 is the brightest, then 0, then 2, then nothing."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    eval_step = steps.make_eval_step(Mean(), mesh=mesh, statistics=Statistics((0.0,) * 3, (1.0,) * 3), classes=classes)
    images = np.broadcast_to(np.array([102, 204, 51], np.uint8), (4, SIZE, SIZE, 3))
    mask = np.ones(4, bool) if mask is None else mask
    batch = {"image": images, "label": np.asarray(labels, np.int32), "mask": mask}
    return jax.device_get(eval_step({}, sharding.to_global(batch, mesh)))


LOG_PROBABILITIES = np.array([0.4, 0.8, 0.2, 0.0]) - np.log(np.sum(np.exp([0.4, 0.8, 0.2, 0.0])))


def test_several_right_answers():
    metrics = score([[1, -1], [0, 1], [0, 2], [-1, -1]], mask=np.array([True, True, True, True]))
    assert metrics["correct"] == 2 and metrics["count"] == 3  # an image without an answer is not scored
    expected = -(LOG_PROBABILITIES[1] + LOG_PROBABILITIES[[0, 1]].mean() + LOG_PROBABILITIES[[0, 2]].mean())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert metrics["correct_top5"] == 3


def test_one_right_answer_in_a_list_is_one_right_answer():
    listed, plain = score([[1, -1], [0, -1], [3, -1], [2, -1]]), score([1, 0, 3, 2])
    jax.tree.map(np.testing.assert_array_equal, listed, plain)
    assert plain["correct"] == 1 and plain["count"] == 4


def test_restricted_to_the_classes_of_the_data_set():
    """Without class 1, class 0 is the best; labels stay numbers among all."""
    metrics = score([0, 0, 2, 3], classes=(0, 2, 3), mask=np.array([True, True, True, False]))
    assert metrics["correct"] == 2 and metrics["correct_top5"] == metrics["count"] == 3
    scores = np.array([0.4, 0.2, 0.0]) - np.log(np.sum(np.exp([0.4, 0.2, 0.0])))
    np.testing.assert_allclose(metrics["loss"], -(2 * scores[0] + scores[1]), rtol=1e-5)


def evaluation(devices, batch, *, part, flip=False, per_example=False, classes=None):
    """Sums over a batch that is scored in parts of so many examples, the last one padded; and the predictions."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model, count = TinyNet(), len(batch["label"])
    variables = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    eval_step = steps.make_eval_step(
        model, mesh=mesh, classes=classes, flip=flip, per_example=per_example, statistics=STATISTICS
    )
    total, predictions = None, []
    for start in range(0, count, part):
        rows = np.arange(start, start + part)
        padded = {name: array[rows % count] for name, array in batch.items()} | {"mask": rows < count}
        sums = jax.device_get(eval_step(sharding.replicate(variables, mesh), sharding.to_global(padded, mesh)))
        predictions.append(sums.pop("predictions", {}))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if per_example:
        whole = {name: np.concatenate([rows[name] for rows in predictions]) for name in predictions[0]}
        return total, {name: rows[whole["answer"] >= 0] for name, rows in whole.items()}
    return total


def test_with_flip_the_scores_are_the_mean_of_those_of_the_image_and_its_mirror_image():
    batch = make_batch(batch=16)
    mirrored = batch | {"image": np.ascontiguousarray(batch["image"][:, :, ::-1])}
    model = TinyNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)

    def logits(images):
        return model.apply(variables, jnp.asarray((images / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std), jnp.float32),
                           train=False)  # fmt: skip

    mean = (logits(batch["image"]) + logits(mirrored["image"])) / 2
    expected = -jnp.sum(jax.nn.log_softmax(mean)[np.arange(16), batch["label"]])
    flipped = evaluation(8, batch, part=16, flip=True)
    np.testing.assert_allclose(flipped["loss"], expected, rtol=1e-5)
    assert flipped["correct"] == np.sum(jnp.argmax(mean, axis=1) == batch["label"])
    again = evaluation(8, mirrored, part=16, flip=True)
    np.testing.assert_allclose(again["loss"], flipped["loss"], rtol=1e-6)
    assert evaluation(8, batch, part=16)["loss"] != flipped["loss"]


@pytest.mark.parametrize("classes", [None, (1, 3, 4, 8)])
def test_predictions_are_the_same_on_any_number_of_devices_and_in_parts_of_any_size(classes):
    batch = make_batch(batch=43)
    sums, predictions = evaluation(8, batch, part=16, per_example=True, classes=classes)
    _, on_one_device = evaluation(1, batch, part=43, per_example=True, classes=classes)
    for name, rows in predictions.items():
        np.testing.assert_allclose(rows, on_one_device[name], rtol=1e-5)
    labels = batch["label"]
    if classes:
        labels = np.searchsorted(classes, labels[np.isin(labels, classes)])
    np.testing.assert_array_equal(predictions["answer"], labels)
    assert len(labels) == sums["count"]
    assert np.sum(predictions["answer"] == predictions["prediction"]) == sums["correct"]
    assert evaluation(8, batch, part=16, classes=classes) == sums


def test_predictions_gather_no_scores_from_other_devices():
    mesh = sharding.make_mesh()
    batch = make_batch(batch=16) | {"mask": np.ones(16, bool)}
    variables = TinyNet().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    eval_step = steps.make_eval_step(TinyNet(), mesh=mesh, per_example=True, statistics=STATISTICS)
    lines = eval_step.lower(variables, sharding.to_global(batch, mesh)).compile().as_text().splitlines()
    gathered = [line for line in lines if "all-gather" in line]
    assert gathered and not any(f",{CLASSES}]" in line for line in gathered)


def test_without_flip_and_predictions_nothing_of_them_is_in_the_program():
    """Word for word the program of the four sums."""
    mesh, batch = sharding.make_mesh(), make_batch(batch=16) | {"mask": np.ones(16, bool)}
    variables = TinyNet().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)

    def eval_step(variables, batch, model, statistics):
        images = mixing.normalize_images(batch["image"], statistics, jnp.float32)
        logits = model.apply(variables, images, train=False)
        labels = batch["label"].reshape(len(images), -1)
        losses = objectives.cross_entropy(logits, objectives.uniform_targets(labels, CLASSES, logits.dtype))
        mask = batch["mask"] & jnp.any(labels >= 0, axis=1)
        return {
            "loss": jnp.sum(jnp.where(mask, losses, 0)),
            "correct": steps._count(mask & objectives.any_topk_correct(logits, labels, 1)),
            "correct_top5": steps._count(mask & objectives.any_topk_correct(logits, labels, 5)),
            "count": steps._count(mask),
        }

    by_hand = jax.jit(
        functools.partial(eval_step, model=TinyNet(), statistics=STATISTICS),
        in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
    plain = steps.make_eval_step(TinyNet(), mesh=mesh, statistics=STATISTICS)
    assert plain.lower(variables, batch).as_text() == by_hand.lower(variables, batch).as_text()


def convolutions(jaxpr):
    """Types of what every convolution of a program takes and gives, those of inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield {variable.aval.dtype for variable in (*equation.invars, *equation.outvars)}
        for inner in jaxprs_in_params(equation.params):
            yield from convolutions(inner)


def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32():
    spec = make_spec(name="skip_resnet20", ema_decay=0.9)
    model = create_model("skip_resnet20", num_classes=CLASSES, dtype=jnp.bfloat16)
    model = model.clone(plan=dataclasses.replace(model.plan, blocks=model.plan.blocks[:2]))
    state, train_step, mesh = set_up(model=model, spec=spec)
    batch = sharding.to_global(make_batch(), mesh)
    types = list(convolutions(train_step.trace(state, batch).jaxpr.jaxpr))
    assert len(types) > 3 * 4  # forward, and two backward but for the images, of five
    assert all(kinds == {jnp.dtype(jnp.bfloat16)} for kinds in types)
    after, metrics = jax.eval_shape(train_step, state, batch)
    for leaf in jax.tree.leaves((after, metrics, after.average)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    optimizer = optimizers.make_optimizer(spec.optim, lambda step: 0.1)
    images, targets = jnp.zeros((BATCH, SIZE, SIZE, 3)), jnp.zeros((BATCH, CLASSES))
    update = functools.partial(steps.update, model=model, optimizer=optimizer, spec=spec)
    _, logits, _ = jax.eval_shape(update, state, images, targets, jax.random.key(0))
    assert logits.dtype == jnp.float32
