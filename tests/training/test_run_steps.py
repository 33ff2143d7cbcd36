import dataclasses

import jax
import pytest

from skipnet_jax.data import pipeline, sources, statistics
from skipnet_jax.evaluation import scoring
from skipnet_jax.training import run_steps, sharding, steps
from tests.tiny_runs import TinyNet, make_spec


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_abstract_state_is_the_state_without_its_numbers(ema_decay):
    spec = make_spec(ema_decay=ema_decay)
    model, mesh, size = TinyNet(), sharding.make_mesh(), spec.data.image_size
    made = run_steps.make_run_steps(model, spec, steps_per_epoch=5, statistics=statistics.of_data("digits"), mesh=mesh)
    average = ema_decay > 0
    state = steps.init_state(model, made.optimizer, image_size=size, seed=0, mesh=mesh, average=average)
    assert shapes(run_steps.abstract_state(model, made.optimizer, size, average=average)) == shapes(state)


@pytest.mark.parametrize("lighting", [0.0, 0.1])
def test_the_abstract_batches_are_those_of_the_pipeline(lighting):
    spec = make_spec(eval_batch_size=100)  # which eight devices cannot share
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, lighting=lighting))
    mesh = sharding.make_mesh()
    train, test = sources.load(spec.data, "train"), sources.load(spec.data, "test")
    batch = next(pipeline.train_batches(train, spec.data, batch_size=spec.batch_size, seed=0, start_step=0))
    assert shapes(run_steps.abstract_train_batch(spec)) == shapes(batch)
    batch = next(iter(scoring.batches(test, spec, mesh)))
    assert shapes(run_steps.abstract_eval_batch(spec, mesh)) == shapes(batch)
    assert len(batch["mask"]) == 104
