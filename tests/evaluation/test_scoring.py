import dataclasses
import functools
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import scoring
from skipnet_jax.training import sharding, steps
from tests.tiny_runs import TinyNet, make_spec

SPEC = make_spec()
SOURCE = functools.cache(lambda: sources.load(SPEC.data, "test"))


@functools.cache
def make_state(seed=0):
    variables = TinyNet().init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)), train=False)
    return steps.TrainState(step=0, opt_state={}, **variables)


@functools.cache
def make_eval_step(per_example=False):
    statistics = SOURCE().statistics
    return steps.make_eval_step(TinyNet(), statistics=statistics, mesh=sharding.make_mesh(), per_example=per_example)


def evaluate(state, eval_batch_size=256):
    spec = dataclasses.replace(SPEC, eval_batch_size=eval_batch_size)
    return scoring.evaluate_state(make_eval_step(True), state, SOURCE(), spec, sharding.make_mesh())


@pytest.mark.parametrize("eval_batch_size", [7, 64, 1000])  # 7 is rounded up to the 8 devices
def test_every_example_counts_once_whatever_the_batch_size(eval_batch_size):
    source, state = SOURCE(), make_state()
    results, predictions = evaluate(state, eval_batch_size)
    mean, std = np.array(source.statistics.mean), np.array(source.statistics.std)
    images = ((source.images / 255 - mean[None, None, None]) / std[None, None, None]).astype(np.float32)
    logits = np.asarray(TinyNet().apply(state.variables, images, train=False))
    ranks = (logits > logits[np.arange(len(logits)), source.labels][:, None]).sum(-1)
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), source.labels]
    assert results["count"] == source.num_examples == 360
    assert results["accuracy"] == np.mean(ranks < 1)
    assert results["top5_accuracy"] == np.mean(ranks < 5)
    assert results["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    np.testing.assert_array_equal(predictions["answer"], source.labels)
    np.testing.assert_array_equal(predictions["prediction"], logits.argmax(axis=1))
    np.testing.assert_allclose(predictions["confidence"], jax.nn.softmax(logits).max(axis=1), rtol=1e-5)


def test_without_predictions_the_results_are_the_same():
    mesh = sharding.make_mesh()
    plain = scoring.evaluate_state(make_eval_step(), make_state(), SOURCE(), SPEC, mesh)
    assert plain == (evaluate(make_state())[0], {})


def test_the_average_is_scored_on_the_very_batches_of_the_network(monkeypatch):
    """Images are read and decoded once for both, and the predictions are the average's."""
    network, average = make_state(), make_state(seed=1)
    (results, _), (averaged, predictions) = evaluate(network), evaluate(average)
    assert results["loss"] != averaged["loss"]
    passes, original = [], pipeline.eval_batches
    monkeypatch.setattr(pipeline, "eval_batches", lambda *args, **kwargs: passes.append(1) or original(*args, **kwargs))
    found, found_predictions = evaluate(dataclasses.replace(network, average=average.variables))
    assert found == results | {f"average_{name}": averaged[name] for name in ("loss", "accuracy", "top5_accuracy")}
    jax.tree.map(np.testing.assert_array_equal, found_predictions, predictions)
    assert len(passes) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("where", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_terminal_shows_a_bar(monkeypatch, where, shown):
    monkeypatch.setattr(sys, "stderr", where())
    spec = dataclasses.replace(SPEC, eval_batch_size=120)
    assert len(list(scoring.batches(SOURCE(), spec, sharding.make_mesh()))) == 3
    assert ("digits at 8 px:   0%" in sys.stderr.getvalue() and "0/3" in sys.stderr.getvalue()) == shown
    assert (sys.stderr.getvalue() == "") != shown
