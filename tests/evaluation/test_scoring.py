import dataclasses
import io
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import specs
from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.training import sharding, steps


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        return nn.Dense(10, name="classifier")(x.reshape(len(x), -1))


SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
    batch_size=256,
    epochs=2,
)


def test_means_weigh_batches_by_their_examples():
    sums = [{"loss": 6.0, "correct": 3, "count": 4}, {"loss": 9.0, "correct": 0, "count": 1}]
    assert scoring.means(sums, {"a": "loss", "b": "correct"}) == {"a": 3.0, "b": 0.6}


@pytest.mark.parametrize("eval_batch_size", [7, 64, 1000])  # 7 is rounded up to the 8 devices
def test_every_example_counts_once_whatever_the_batch_size(eval_batch_size):
    source = sources.load(SPEC.data, "test")
    model, mesh = TinyNet(), sharding.make_mesh()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    eval_step = steps.make_eval_step(model, statistics=source.statistics, mesh=mesh)
    batches = scoring.batches(source, dataclasses.replace(SPEC, eval_batch_size=eval_batch_size), mesh)
    results = scoring.evaluate(eval_step, variables, batches, mesh)

    images = (source.images / 255 - np.array(source.statistics.mean)[None, None, None]) / np.array(
        source.statistics.std
    )[None, None, None]
    logits = np.asarray(model.apply(variables, images.astype(np.float32), train=False))
    ranks = (logits > logits[np.arange(len(logits)), source.labels][:, None]).sum(-1)
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), source.labels]
    assert results["count"] == source.num_examples == 360
    assert results["accuracy"] == np.mean(ranks < 1)
    assert results["top5_accuracy"] == np.mean(ranks < 5)
    assert results["loss"] == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("eval_batch_size", [8, 1000])
def test_details_are_added_up_on_the_device(eval_batch_size):
    """Whatever the number of batches, only a few matrices are there at once."""
    source = sources.load(SPEC.data, "test")
    model, mesh = TinyNet(), sharding.make_mesh()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    eval_step = steps.make_eval_step(model, statistics=source.statistics, mesh=mesh, details=True)
    matrices = []

    def count_matrices():
        matrices.append(sum(array.shape == (10, 10) for array in jax.live_arrays()))

    batches = scoring.batches(source, dataclasses.replace(SPEC, eval_batch_size=eval_batch_size), mesh)
    tally = scoring.Tally()
    results = scoring.evaluate(eval_step, variables, batches, mesh, check=count_matrices, tally=tally)
    assert max(matrices) <= 2 + matrices[0]
    images = (source.images / 255 - np.array(source.statistics.mean)[None, None, None]) / np.array(
        source.statistics.std
    )[None, None, None]
    predictions = np.argmax(model.apply(variables, images.astype(np.float32), train=False), axis=1)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (source.labels, predictions), 1)
    assert tally.total["confusion"].tolist() == expected.tolist()
    assert np.trace(expected) == round(results["accuracy"] * results["count"])


def test_details_without_a_tally_are_dropped():
    source, mesh = sources.load(SPEC.data, "test"), sharding.make_mesh()
    model = TinyNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    found = [
        scoring.evaluate(
            steps.make_eval_step(model, statistics=source.statistics, mesh=mesh, details=details),
            variables,
            scoring.batches(source, SPEC, mesh),
            mesh,
        )
        for details in (False, True)
    ]
    assert found[0] == found[1]


def test_the_average_is_scored_on_the_very_batches_of_the_network(monkeypatch):
    """Images are read and decoded once for both; the details are the average's."""
    source, mesh, model = sources.load(SPEC.data, "test"), sharding.make_mesh(), TinyNet()
    both = [model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)), train=False) for seed in range(2)]
    eval_step = steps.make_eval_step(model, statistics=source.statistics, mesh=mesh, details=True)
    network, average = (
        scoring.evaluate(eval_step, variables, scoring.batches(source, SPEC, mesh), mesh) for variables in both
    )
    assert network["loss"] != average["loss"]
    passes, original = [], pipeline.eval_batches
    monkeypatch.setattr(pipeline, "eval_batches", lambda *args, **kwargs: passes.append(1) or original(*args, **kwargs))
    state = steps.TrainState(step=0, opt_state={}, average=both[1], **both[0])
    tally = scoring.Tally()
    found = scoring.evaluate_state(eval_step, state, source, SPEC, mesh, tally=tally)
    assert found == network | {f"average_{name}": average[name] for name in ("loss", "accuracy", "top5_accuracy")}
    assert np.trace(tally.total["confusion"]) == round(average["accuracy"] * 360)
    assert len(passes) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("where", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_terminal_shows_a_bar(monkeypatch, where, shown):
    source, mesh = sources.load(SPEC.data, "test"), sharding.make_mesh()
    monkeypatch.setattr(sys, "stderr", where())
    batches = scoring.batches(source, dataclasses.replace(SPEC, eval_batch_size=120), mesh)
    assert len(list(batches)) == 3
    assert ("digits at 8 px:   0%" in sys.stderr.getvalue() and "0/3" in sys.stderr.getvalue()) == shown
    assert (sys.stderr.getvalue() == "") != shown
