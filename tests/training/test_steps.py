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
from skipnet_jax.errors import UserError
from skipnet_jax.models import create_model
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.specs import Statistics
from skipnet_jax.training import sharding, steps

CLASSES = 10
SIZE = 8
BATCH = 32
STATISTICS = Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


class TinyNet(nn.Module):
    """Has the interface of the project's networks, and compiles a hundred times faster."""

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
    """A network without batch norm, which computes in float64 if JAX does."""

    @nn.compact
    def __call__(self, images, *, train):
        dense = nn.Dense(CLASSES, param_dtype=jnp.result_type(float), name="classifier")
        return dense(images.reshape(len(images), -1))


def make_spec(*, name="tiny", seed=0, bn_group_size=0, cutmix_prob=0.0, drop_block=0.0, optimizer="sgd", **changes):
    return specs.TrainSpec(
        model=specs.ModelSpec(name=name, num_classes=CLASSES, bn_group_size=bn_group_size, drop_block=drop_block),
        data=specs.DataSpec(name="digits", image_size=SIZE, pad_crop=1),
        mixing=specs.MixingSpec(cutmix_prob=cutmix_prob, label_smoothing=0.1),
        optim=specs.OptimSpec(name=optimizer, lr=0.05, warmup_epochs=1),
        batch_size=BATCH,
        epochs=8,
        seed=seed,
        **changes,
    )


def make_batch(seed=0, batch=BATCH):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, batch).astype(np.int32)}


def normalize(images):
    return ((images / 255 - np.asarray(STATISTICS.mean)) / np.asarray(STATISTICS.std)).astype(np.float32)


@functools.cache
def compile_step(model, spec, devices, x64):
    """The optimiser, the compiled training step and its mesh; `x64` is only there to keep both kinds apart."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    schedule = schedules.make_schedule(spec.optim, batch_size=BATCH, epochs=spec.epochs, steps_per_epoch=2)
    optimizer = optimizers.make_optimizer(spec.optim, schedule)
    train_step = steps.make_train_step(
        model, optimizer, schedule, spec, steps_per_epoch=2, mesh=mesh, statistics=STATISTICS
    )
    return optimizer, train_step, mesh


def set_up(model, spec, devices=8):
    """A new state, the compiled training step and the mesh of both."""
    optimizer, train_step, mesh = compile_step(model, spec, devices, jax.config.jax_enable_x64)
    state = steps.init_state(model, optimizer, image_size=SIZE, seed=spec.seed, mesh=mesh, average=spec.ema_decay > 0)
    return state, train_step, mesh


def run(count, model, spec, devices=8):
    """The state after some steps, each on a different batch, and the metrics of each step."""
    state, train_step, mesh = set_up(model, spec, devices)
    history = []
    for step in range(count):
        state, metrics = train_step(state, sharding.to_global(make_batch(step), mesh))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def test_the_initial_state_depends_only_on_the_seed():
    state, _, mesh = set_up(TinyNet(), make_spec())
    on_one_device, _, _ = set_up(TinyNet(), make_spec(), devices=1)
    other, _, _ = set_up(TinyNet(), make_spec(seed=1))
    expected = TinyNet().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    jax.tree.map(np.testing.assert_array_equal, state.variables, expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(on_one_device))
    assert np.any(state.params["conv"]["kernel"] != other.params["conv"]["kernel"])
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert all(len(leaf.addressable_shards) == mesh.size for leaf in jax.tree.leaves(state))


def mean_loss(params, batch):
    """The loss of `Linear` by hand."""
    logits = normalize(batch["image"]).reshape(BATCH, -1) @ params["classifier"]["kernel"]
    logits += params["classifier"]["bias"][None, :]
    targets = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.01
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=1)), logits


def require_first_update(state, params, grads, spec, **tolerance):
    """Nesterov momentum from rest: (1 + momentum) * (gradient + decay), with decay on the kernel alone."""
    for name, decay in (("kernel", spec.optim.weight_decay), ("bias", 0.0)):
        before, gradient = params["classifier"][name], grads["classifier"][name]
        expected = before - 0.025 * 1.9 * (gradient + decay * before)
        np.testing.assert_allclose(state.params["classifier"][name], expected, **tolerance)


def test_metrics_and_update_of_a_step():
    spec = make_spec()
    state, train_step, mesh = set_up(Linear(), spec)
    params, batch = jax.device_get(state.params), make_batch()
    (loss, logits), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, batch)
    state, metrics = train_step(state, sharding.to_global(batch, mesh))
    assert set(metrics) == {"loss", "correct", "count", "grad_norm", "learning_rate"}
    np.testing.assert_allclose(metrics["loss"], BATCH * loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    assert metrics["correct"] == np.sum(np.argmax(logits, axis=1) == batch["label"])
    assert metrics["count"] == BATCH
    assert metrics["correct"].dtype == metrics["count"].dtype == jnp.int32
    np.testing.assert_allclose(metrics["learning_rate"], 0.025, rtol=1e-6)  # half of lr in the first epoch of two
    require_first_update(state, params, grads, spec, rtol=1e-4, atol=1e-7)
    assert state.step == 1 and state.batch_stats == {} and state.average == {}


def test_correct_counts_labels_before_mixing():
    """With zero weights class 0 always wins, whatever CutMix does to the targets."""
    state, train_step, mesh = set_up(Linear(), make_spec(cutmix_prob=1.0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    batch = make_batch()
    _, metrics = train_step(state, sharding.to_global(batch, mesh))
    assert metrics["correct"] == np.sum(batch["label"] == 0)
    np.testing.assert_allclose(metrics["loss"], BATCH * np.log(CLASSES), rtol=1e-6)


def test_every_step_and_every_seed_draws_its_own_numbers():
    """Only the random numbers of CutMix differ: all start from the same state."""
    state, first, mesh = set_up(Linear(), make_spec(cutmix_prob=1.0))
    _, second, _ = set_up(Linear(), make_spec(cutmix_prob=1.0, seed=1))
    batch = sharding.to_global(make_batch(), mesh)

    def loss(train_step, step):
        start = jax.tree.map(jnp.copy, state).replace(step=sharding.replicate(jnp.asarray(step, jnp.int32), mesh))
        return train_step(start, batch)[1]["loss"].item()

    assert len({loss(first, 0), loss(first, 1), loss(second, 0)}) == 3
    assert loss(first, 1) == loss(first, 1)


def test_the_number_of_devices_does_not_matter():
    spec = make_spec(cutmix_prob=0.5)
    one, one_history = run(3, TinyNet(), spec, devices=1)
    many, many_history = run(3, TinyNet(), spec, devices=8)
    assert_trees_close(many_history, one_history, rtol=1e-4)
    assert_trees_close(many, one, rtol=1e-3, atol=1e-5)


def first_blocks(model, count):
    """A network cut short, which compiles faster."""
    return model.clone(architecture=dataclasses.replace(model.architecture, blocks=model.architecture.blocks[:count]))


@pytest.mark.slow
def test_the_number_of_devices_does_not_matter_for_a_gated_network_with_batch_norm_groups():
    """Groups of 16 span several of the eight devices, which hold four images each."""
    spec = make_spec(name="skip_resnet20", bn_group_size=16, cutmix_prob=0.5)
    model = first_blocks(create_model("skip_resnet20", num_classes=CLASSES, bn_group_size=16), 3)
    one, one_history = run(2, model, spec, devices=1)
    many, many_history = run(2, model, spec, devices=8)
    assert_trees_close(many_history, one_history, rtol=1e-3)
    assert_trees_close(many.variables, one.variables, rtol=1e-2, atol=1e-3)


def test_a_step_donates_its_state():
    state, train_step, mesh = set_up(TinyNet(), make_spec(ema_decay=0.25))
    new_state, _ = train_step(state, sharding.to_global(make_batch(), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


@pytest.mark.parametrize(("parts", "optimizer"), [(2, "sgd"), (4, "sam")])
def test_accumulation_gives_the_update_of_the_whole_batch(parts, optimizer, x64):
    whole = make_spec(optimizer=optimizer)
    in_parts = dataclasses.replace(whole, accumulate_steps=parts)
    assert_trees_close(run(2, Linear(), in_parts), run(2, Linear(), whole), rtol=1e-10, atol=1e-12)


def test_batch_norm_normalises_within_a_part_and_updates_its_statistics_once_per_part():
    """The first of two parts has every other example, starting with the first."""
    state, train_step, mesh = set_up(NormOnly(), make_spec(accumulate_steps=2))
    batch = make_batch()
    pixels = normalize(batch["image"]).reshape(BATCH, -1, 3)
    state, _ = train_step(state, sharding.to_global(batch, mesh))
    even, odd = pixels[0::2].mean((0, 1)), pixels[1::2].mean((0, 1))
    np.testing.assert_allclose(state.batch_stats["norm"]["mean"], 0.9 * 0.1 * even + 0.1 * odd, rtol=1e-4, atol=1e-6)


def test_each_part_draws_its_own_noise():
    """All images are equal, so equal noise would make the two halves of the batch equal."""

    class Noise(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            noise = jax.random.normal(self.make_rng("dropout"), (len(images), CLASSES)) if train else 0.0
            return noise + nn.Dense(CLASSES, name="classifier")(jnp.mean(images, axis=(1, 2)))

    spec = make_spec(accumulate_steps=2)
    state, _, _ = set_up(Noise(), spec)
    optimizer = optimizers.make_optimizer(spec.optim, lambda step: 0.1)
    images, targets = jnp.ones((BATCH, SIZE, SIZE, 3)), jnp.full((BATCH, CLASSES), 1 / CLASSES)
    update = functools.partial(steps.update, model=Noise(), optimizer=optimizer, spec=spec)
    _, logits, _ = update(state.replace(opt_state=optimizer.init(state.params)), images, targets, jax.random.key(0))
    assert len(np.unique(np.asarray(logits)[:, 0])) == BATCH


def test_the_parts_of_the_batch_stay_on_their_devices():
    """Only sums over the batch cross devices: no images, no logits."""
    state, train_step, mesh = set_up(Linear(), make_spec(accumulate_steps=4))
    program = train_step.lower(state, sharding.to_global(make_batch(), mesh)).compile().as_text()
    assert "all-reduce" in program
    for traffic in ("all-gather", "all-to-all", "collective-permute"):
        assert traffic not in program


def test_parts_that_cannot_be_split_over_the_devices_are_refused():
    with pytest.raises(UserError, match="accumulate_steps: got 8, which makes parts of 4 examples"):
        set_up(Linear(), make_spec(accumulate_steps=8))


def test_sam_takes_its_gradient_at_the_perturbed_parameters():
    spec = make_spec(optimizer="sam")
    state, train_step, mesh = set_up(Linear(), spec)
    params, batch = jax.device_get(state.params), make_batch()
    (loss, _), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, batch)
    norm = optax.tree.norm(grads)
    perturbed = jax.tree.map(lambda p, g: p + 0.05 * g / norm, params, grads)
    (loss_uphill, _), grads = jax.value_and_grad(mean_loss, has_aux=True)(perturbed, batch)
    state, metrics = train_step(state, sharding.to_global(batch, mesh))
    np.testing.assert_allclose(metrics["loss"] / BATCH, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_uphill"] / BATCH, loss_uphill, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert metrics["loss_uphill"] > 1.01 * metrics["loss"]
    require_first_update(state, params, grads, spec, rtol=1e-3, atol=1e-6)


def test_both_passes_of_sam_update_the_running_statistics():
    """The normalised numbers do not depend on parameters, so both passes move towards the same mean."""
    once, _ = run(1, NormOnly(), make_spec(optimizer="sgd"))
    twice, _ = run(1, NormOnly(), make_spec(optimizer="sam"))
    np.testing.assert_allclose(twice.batch_stats["norm"]["mean"], 1.9 * once.batch_stats["norm"]["mean"], rtol=1e-5)


def test_the_average_follows_parameters_and_statistics():
    state, train_step, mesh = set_up(TinyNet(), make_spec(ema_decay=0.25))
    expected = jax.device_get(state.variables)
    assert_trees_close(state.average, expected, rtol=0)
    for step in range(4):
        state, _ = train_step(state, sharding.to_global(make_batch(step), mesh))
        decay = min(0.25, (1 + step) / (10 + step))  # the first steps forget the random start
        expected = jax.tree.map(lambda o, n, d=decay: d * o + (1 - d) * np.asarray(n), expected, state.variables)
    assert_trees_close(state.average, expected, rtol=1e-5, atol=1e-7)
    assert np.any(state.average["batch_stats"]["norm"]["mean"] != state.batch_stats["norm"]["mean"])


@pytest.mark.parametrize("drop_block", [0.0, 0.1])
def test_drop_block_gets_the_share_of_the_epochs_that_are_done(drop_block):
    """There are eight epochs of two steps. Step 7 is in the fourth epoch, so three are done."""
    shares = []

    class Growing(nn.Module):
        @nn.compact
        def __call__(self, images, *, train, progress=None):
            if progress is not None:
                jax.debug.callback(lambda share: shares.append(float(share)), progress)
            return nn.Dense(CLASSES, name="classifier")(jnp.mean(images, axis=(1, 2)))

    state, train_step, mesh = set_up(Growing(), make_spec(drop_block=drop_block), devices=1)
    state = state.replace(step=sharding.replicate(jnp.asarray(7, jnp.int32), mesh))
    jax.block_until_ready(train_step(state, sharding.to_global(make_batch(), mesh)))
    jax.effects_barrier()
    assert shares == ([3 / 8] if drop_block else [])


def test_an_image_without_a_label_counts_for_nothing():
    """Nor do its pixels matter, to a network without batch norm."""
    batch = make_batch()
    batch["label"][:8] = -1
    black = {"image": np.where(batch["label"][:, None, None, None] < 0, 0, batch["image"]), "label": batch["label"]}
    results = []
    for images in (batch, black):
        state, train_step, mesh = set_up(Linear(), make_spec())
        variables = jax.device_get(state.variables)
        results.append(train_step(state, sharding.to_global(images, mesh)))
    assert_trees_close(*results, rtol=1e-6, atol=1e-8)
    _, metrics = results[0]
    assert metrics["count"] == BATCH - 8
    logits = Linear().apply(variables, normalize(batch["image"][8:]), train=True)
    targets = 0.9 * np.eye(CLASSES)[batch["label"][8:]] + 0.01
    np.testing.assert_allclose(metrics["loss"], -jnp.sum(jax.nn.log_softmax(logits) * targets), rtol=1e-5)
    assert metrics["correct"] == np.sum(np.argmax(logits, axis=1) == batch["label"][8:])


def test_lighting_shifts_the_colours():
    """The offsets are whole bytes here, so adding them to the images does the same."""
    batch = make_batch()
    batch["image"] %= 128
    offsets = np.random.default_rng(1).integers(0, 100, (BATCH, 3))
    shifted = {"image": (batch["image"] + offsets[:, None, None, :]).astype(np.uint8), "label": batch["label"]}
    state, train_step, mesh = set_up(Linear(), make_spec())
    lit = batch | {"lighting": (offsets / 255).astype(np.float32)}
    results = [train_step(jax.tree.map(jnp.copy, state), sharding.to_global(b, mesh)) for b in (lit, shifted)]
    assert_trees_close(*results, rtol=1e-4, atol=1e-6)


def test_a_step_transfers_nothing_between_host_and_device():
    state, train_step, mesh = set_up(TinyNet(), make_spec(cutmix_prob=0.5))
    eval_step = steps.make_eval_step(TinyNet(), mesh=mesh, statistics=STATISTICS)
    batches = [sharding.to_global(make_batch(step), mesh) for step in range(3)]
    padded = sharding.to_global(make_batch() | {"mask": np.ones(BATCH, bool)}, mesh)
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, _ = train_step(state, batch)
        eval_step(state.variables, padded)


def convolutions(jaxpr):
    """The types of the inputs and outputs of every convolution in a program, inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield {variable.aval.dtype for variable in (*equation.invars, *equation.outvars)}
        for inner in jaxprs_in_params(equation.params):
            yield from convolutions(inner)


def test_bfloat16_is_for_the_computation_alone():
    spec = make_spec(name="skip_resnet20", ema_decay=0.9)
    model = first_blocks(create_model("skip_resnet20", num_classes=CLASSES, dtype=jnp.bfloat16), 2)
    state, train_step, mesh = set_up(model, spec)
    batch = sharding.to_global(make_batch(), mesh)
    types = list(convolutions(train_step.trace(state, batch).jaxpr.jaxpr))
    assert len(types) > 3 * 4  # five convolutions: each once forward and twice backward, but for the images' gradient
    assert all(found == {jnp.dtype(jnp.bfloat16)} for found in types)
    after, metrics = jax.eval_shape(train_step, state, batch)
    for leaf in jax.tree.leaves((after, metrics, after.average)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    optimizer = optimizers.make_optimizer(spec.optim, lambda step: 0.1)
    images, targets = jnp.zeros((BATCH, SIZE, SIZE, 3)), jnp.zeros((BATCH, CLASSES))
    update = functools.partial(steps.update, model=model, optimizer=optimizer, spec=spec)
    _, logits, _ = jax.eval_shape(update, state, images, targets, jax.random.key(0))
    assert logits.dtype == jnp.float32


@functools.cache
def tiny_variables():
    return TinyNet().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)


def tiny_logits(images):
    return np.asarray(TinyNet().apply(tiny_variables(), normalize(images), train=False))


def evaluate(batch, *, devices=8, part=16, flip=False, per_example=False, classes=None):
    """Scores `TinyNet` in batches of `part` examples, the last one padded; returns the sums, and the predictions."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    eval_step = steps.make_eval_step(
        TinyNet(), mesh=mesh, classes=classes, flip=flip, per_example=per_example, statistics=STATISTICS
    )
    count, total, predictions = len(batch["label"]), None, []
    for start in range(0, count, part):
        rows = np.arange(start, start + part)
        padded = {name: array[rows % count] for name, array in batch.items()} | {"mask": rows < count}
        sums = jax.device_get(eval_step(sharding.replicate(tiny_variables(), mesh), sharding.to_global(padded, mesh)))
        predictions.append(sums.pop("predictions", {}))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    whole = {name: np.concatenate([rows[name] for rows in predictions]) for name in predictions[0]}
    return total, {name: rows[whole["answer"] >= 0] for name, rows in whole.items()}


@pytest.mark.parametrize("classes", [None, (1, 3, 4, 8)])
def test_evaluation_counts_every_example_once(classes):
    """In padded batches on eight devices, and in one batch on one device."""
    batch = make_batch(batch=43)
    sums, predictions = evaluate(batch, per_example=True, classes=classes)
    _, on_one_device = evaluate(batch, devices=1, part=43, per_example=True, classes=classes)
    for name, rows in predictions.items():
        np.testing.assert_allclose(rows, on_one_device[name], rtol=1e-5)
    logits, labels = tiny_logits(batch["image"]), batch["label"]
    if classes:
        kept = np.isin(labels, classes)
        logits, labels = logits[kept][:, classes], np.searchsorted(classes, labels[kept])
    rows = np.arange(len(labels))
    ranks = np.sum(logits > logits[rows, labels][:, None], axis=1)
    assert {name: sums[name] for name in ("count", "correct", "correct_top5")} == {
        "count": len(labels),
        "correct": np.sum(ranks < 1),
        "correct_top5": np.sum(ranks < 5),
    }
    assert all(value.dtype == np.int32 for name, value in sums.items() if name != "loss")
    np.testing.assert_allclose(sums["loss"], -np.sum(jax.nn.log_softmax(logits)[rows, labels]), rtol=1e-5)
    np.testing.assert_array_equal(predictions["answer"], labels)
    np.testing.assert_array_equal(predictions["prediction"], np.argmax(logits, axis=1))
    assert evaluate(batch, classes=classes) == (sums, {})


def test_flip_averages_the_logits_of_an_image_and_its_mirror_image():
    batch = make_batch(batch=16)
    mirrored = batch | {"image": np.ascontiguousarray(batch["image"][:, :, ::-1])}
    mean = (tiny_logits(batch["image"]) + tiny_logits(mirrored["image"])) / 2
    flipped, _ = evaluate(batch, flip=True)
    np.testing.assert_allclose(
        flipped["loss"], -np.sum(jax.nn.log_softmax(mean)[np.arange(16), batch["label"]]), rtol=1e-5
    )
    assert flipped["correct"] == np.sum(np.argmax(mean, axis=1) == batch["label"])
    assert evaluate(batch)[0]["loss"] != flipped["loss"]


def test_predictions_gather_no_scores_from_other_devices():
    mesh = sharding.make_mesh()
    batch = sharding.to_global(make_batch(batch=16) | {"mask": np.ones(16, bool)}, mesh)
    eval_step = steps.make_eval_step(TinyNet(), mesh=mesh, per_example=True, statistics=STATISTICS)
    lines = eval_step.lower(tiny_variables(), batch).compile().as_text().splitlines()
    gathered = [line for line in lines if "all-gather" in line]
    assert gathered and not any(f",{CLASSES}]" in line for line in gathered)


def test_an_infinite_loss_in_a_masked_row_does_not_spoil_the_sum():
    mesh = sharding.make_mesh(jax.devices()[:1])
    kernel = jnp.zeros((SIZE * SIZE * 3, CLASSES)).at[:, 1].set(jnp.inf)
    variables = {"params": {"classifier": {"kernel": kernel, "bias": jnp.zeros(CLASSES)}}, "batch_stats": {}}
    eval_step = steps.make_eval_step(Linear(), mesh=mesh, statistics=STATISTICS)
    metrics = eval_step(variables, sharding.to_global(make_batch() | {"mask": np.zeros(BATCH, bool)}, mesh))
    assert metrics["loss"] == 0 and metrics["count"] == 0 and metrics["correct"] == 0


class Mean(nn.Module):
    """The scores of the first three classes are the mean colours, and the score of the fourth is 0."""

    @nn.compact
    def __call__(self, images, *, train):
        return jnp.pad(jnp.mean(images, axis=(1, 2)), ((0, 0), (0, 1)))


SCORES = np.array([0.4, 0.8, 0.2, 0.0])


def score(labels, *, classes=None, mask=(True,) * 4):
    """Metrics of four equal images, for which `Mean` computes `SCORES`."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    eval_step = steps.make_eval_step(Mean(), mesh=mesh, statistics=Statistics((0.0,) * 3, (1.0,) * 3), classes=classes)
    images = np.broadcast_to(np.uint8(SCORES[:3] * 255), (4, SIZE, SIZE, 3))
    batch = {"image": images, "label": np.asarray(labels, np.int32), "mask": np.asarray(mask)}
    return jax.device_get(eval_step({}, sharding.to_global(batch, mesh)))


def test_several_right_answers():
    metrics = score([[1, -1], [0, 1], [0, 2], [-1, -1]])
    assert metrics["correct"] == 2 and metrics["count"] == 3  # an image without an answer is not scored
    logs = np.asarray(jax.nn.log_softmax(SCORES))
    np.testing.assert_allclose(metrics["loss"], -(logs[1] + logs[[0, 1]].mean() + logs[[0, 2]].mean()), rtol=1e-5)
    assert metrics["correct_top5"] == 3  # of four classes


def test_a_list_of_one_right_answer_is_one_right_answer():
    listed, plain = score([[1, -1], [0, -1], [3, -1], [2, -1]]), score([1, 0, 3, 2])
    jax.tree.map(np.testing.assert_array_equal, listed, plain)
    assert plain["correct"] == 1 and plain["count"] == 4


def test_restricted_to_the_classes_of_the_data_set():
    """Without class 1, class 0 is the best. Labels keep their numbers among all classes."""
    metrics = score([0, 0, 2, 3], classes=(0, 2, 3), mask=(True, True, True, False))
    assert metrics["correct"] == 2 and metrics["correct_top5"] == metrics["count"] == 3
    logs = jax.nn.log_softmax(SCORES[[0, 2, 3]])
    np.testing.assert_allclose(metrics["loss"], -(2 * logs[0] + logs[1]), rtol=1e-5)
