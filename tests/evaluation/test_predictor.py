import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.data import sources
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import predictor
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.models import abstract_variables, build_network
from skipnet_jax.runs import checkpoint, weights, workdir
from tests import tiny_runs

SPEC = tiny_runs.make_spec()
TEN = Preprocessing.of_data("tiny", SPEC.data, tuple("abcdefghij"))


class PyramidNet(nn.Module):
    """The interface of the project's networks, with two sections."""

    @nn.compact
    def _run(self, images, classify):
        x = nn.relu(nn.Conv(16, (3, 3), name="conv")(images))
        maps = [x, nn.relu(nn.Conv(8, (3, 3), strides=2, name="last")(x))]
        return nn.Dense(10, name="classifier")(maps[-1].reshape(len(x), -1)) if classify else maps

    def __call__(self, images, *, train):
        return self._run(images, True)

    def features(self, images, *, train):
        return self._run(images, False)


def make_predictor(batch_size=predictor.BATCH_SIZE):
    model = PyramidNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    return predictor.Predictor(model, variables, TEN, batch_size)


def make_images(number):
    return np.random.default_rng(0).integers(0, 256, (number, 8, 8, 3), np.uint8)


def write_checkpoint(path, spec, variables):
    workdir.open_for_training(path, spec)
    with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, 7, variables, {"accuracy": 0.5})


def test_the_network_sees_normalised_images():
    network, images = make_predictor(), make_images(3)
    normalized = (images / np.float32(255) - np.float32(0.3054)) / np.float32(0.3237)
    expected = network.model.apply(network.variables, normalized, train=False)
    np.testing.assert_allclose(network.logits(images), expected, rtol=1e-4, atol=1e-5)
    stages = network.model.apply(network.variables, normalized, train=False, method="features")
    for got, wanted in zip(network.features(images), stages, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_batches_change_nothing_and_compile_one_program():
    images, whole, parts = make_images(11), make_predictor(), make_predictor(batch_size=4)
    np.testing.assert_allclose(parts.logits(images), whole.logits(images), rtol=1e-5, atol=1e-6)
    for got, wanted in zip(parts.features(images), whole.features(images), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    parts.logits(images[:6])
    assert parts._program._cache_size() == 2, "one for logits, one for features"


def test_the_most_probable_classes_come_first():
    network, images = make_predictor(), make_images(5)
    rows = network.predict(images, top=3)
    for row, logits in zip(rows, network.logits(images), strict=True):
        shares = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-shares)[:3]
        assert [name for name, _ in row] == ["abcdefghij"[number] for number in order]
        assert [share for _, share in row] == pytest.approx(list(shares[order]), rel=1e-5)
    assert [len(row) for row in network.predict(images, top=11)] == [10] * 5


def test_of_equals_the_first_class_comes_first_and_large_logits_do_not_overflow():
    logits = np.array([[1000.0, 1000.0, -1000.0]], np.float32)
    assert predictor.most_probable(logits, ("a", "b", "c"), 3) == [[("a", 0.5), ("b", 0.5), ("c", 0.0)]]


def test_no_classes_and_no_images_are_refused():
    with pytest.raises(UserError, match="top: got 0"):
        make_predictor().predict(make_images(1), top=0)
    for ask in (make_predictor().logits, make_predictor().features):
        with pytest.raises(UserError, match="images: got none"):
            ask(make_images(0))


def test_a_run_predicts_as_it_is_evaluated_with_its_average(finished_run, monkeypatch):
    tiny_runs.use_network(monkeypatch, tiny_runs.TinyNet())
    source = sources.load(SPEC.data, "test")
    network = predictor.load_workdir(finished_run)
    network_itself = weights.load(finished_run, averaged=False)
    evaluated = {line["step"]: line.get("test/average_accuracy") for line in workdir.read_metrics(finished_run)}
    accuracy = np.mean(network.logits(source.images).argmax(1) == source.labels)
    assert accuracy == evaluated[network_itself.step]
    kernel = network_itself.variables["params"]["conv"]["kernel"]
    assert not np.array_equal(kernel, network.variables["params"]["conv"]["kernel"])
    assert network.preprocessing.class_names == source.class_names
    assert network.preprocessing.statistics == source.statistics


def test_a_config_s_network_is_built_as_it_was_trained(tmp_path):
    """Weights alone do not tell the width of a gate. Without data.json, classes are called by their numbers."""
    spec = dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, gate_reduction=4, dtype="bfloat16"))
    model = build_network(spec.model)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(model, 8))
    write_checkpoint(tmp_path, spec, variables)
    network = predictor.load_workdir(tmp_path, "7", batch_size=3)
    assert (network.model, network.batch_size) == (model, 3)
    jax.tree.map(np.testing.assert_array_equal, network.variables, variables)
    assert network.preprocessing.class_names == tuple("0123456789")


@pytest.mark.parametrize(("classes", "mean"), [(10, 0.4914), (4, 0.5071)])
def test_converted_weights_are_given_the_published_data_s_images(tmp_path, monkeypatch, classes, mean):
    tiny_runs.use_network(monkeypatch, PyramidNet())
    variables = PyramidNet().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    weights.save(tmp_path / "converted", weights.Origin("resnet20", classes, "some.pt"), variables)
    told = predictor.load_workdir(tmp_path / "converted").preprocessing
    assert (told.model, told.image_size, len(told.class_names)) == ("resnet20", 32, classes)
    assert told.statistics.mean[0] == mean
