import dataclasses

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import evaluate, specs, train
from skipnet_jax.data import sources
from skipnet_jax.evaluation import predictor
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.interop import torch_weights
from skipnet_jax.runs import checkpoint, weights, workdir


class TinyNet(nn.Module):
    """The interface of the project's networks at a hundredth of their compile time."""

    @nn.compact
    def _run(self, images, train, classify):
        x = nn.relu(nn.Conv(16, (3, 3), name="conv")(images))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        maps = [x, nn.relu(nn.Conv(8, (3, 3), strides=2, name="last")(x))]
        return nn.Dense(10, name="classifier")(maps[-1].reshape(len(x), -1)) if classify else maps

    def __call__(self, images, *, train):
        return self._run(images, train, True)

    def features(self, images, *, train):
        return self._run(images, train, False)


SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
    batch_size=256,
    epochs=4,
    ema_decay=0.9,
)
TEN = Preprocessing.of_data("tiny", SPEC.data, tuple("abcdefghij"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of TinyNet with a moving average."""
    path = tmp_path_factory.mktemp("predictor") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "create_model", lambda **_: TinyNet())
        train.train_and_evaluate(SPEC, path)
    return path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(evaluate, "create_model", lambda **_: TinyNet())
    monkeypatch.setattr(predictor, "create_model", lambda **_: TinyNet())


def make_predictor(batch_size=predictor.BATCH_SIZE):
    images = jnp.zeros((1, 8, 8, 3))
    return predictor.Predictor(TinyNet(), TinyNet().init(jax.random.key(0), images, train=False), TEN, batch_size)


def make_images(number):
    return np.random.default_rng(0).integers(0, 256, (number, 8, 8, 3), np.uint8)


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
    assert parts._logits._cache_size() == parts._features._cache_size() == 1
    parts.logits(images[:6])
    assert parts._logits._cache_size() == 1


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


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="top: got 0"):
        make_predictor().predict(make_images(1), top=0)
    for ask in (make_predictor().logits, make_predictor().features):
        with pytest.raises(ValueError, match="images: got none"):
            ask(make_images(0))


def test_a_run_predicts_as_it_is_evaluated_with_its_average(run, tiny):
    source = sources.load(SPEC.data, "test")
    network = predictor.load_workdir(run)
    [result] = evaluate.evaluate_workdir(run)
    logits = network.logits(source.images)
    assert np.mean(logits.argmax(1) == source.labels) == result["average_accuracy"] > 0.3
    own = checkpoint_variables(run, result["step"])
    assert not np.array_equal(own["params"]["conv"]["kernel"], network.variables["params"]["conv"]["kernel"])
    assert network.preprocessing.class_names == source.class_names
    assert (network.preprocessing.mean, network.preprocessing.std) == (source.statistics.mean, source.statistics.std)


def checkpoint_variables(run, step):
    with checkpoint.open_manager(run / workdir.CHECKPOINTS, read_only=True) as manager:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = checkpoint.stored_shapes(manager, step, device)
        return checkpoint.restore(manager, step, {name: shapes[name] for name in ("params", "batch_stats")})


def test_without_an_average_the_network_itself_predicts(run, tiny, tmp_path):
    spec = dataclasses.replace(SPEC, ema_decay=0.0)
    workdir.open_for_training(tmp_path, spec)
    variables = make_predictor().variables
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, 7, {**variables, "average": {}}, {"accuracy": 0.5})
    network = predictor.load_workdir(tmp_path, "7", batch_size=3)
    jax.tree.map(np.testing.assert_array_equal, network.variables, variables)
    assert network.batch_size == 3
    assert network.preprocessing.class_names == tuple("0123456789")  # nothing names them


def test_a_config_s_network_is_built_as_it_was_trained(tmp_path):
    """Weights alone do not tell the width of a gate."""
    spec = dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, gate_reduction=4, dtype="bfloat16"))
    spec = dataclasses.replace(spec, ema_decay=0.0)
    model = predictor.build_network(spec.model)
    variables = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), train=False)
    workdir.open_for_training(tmp_path, spec)
    with checkpoint.open_manager(tmp_path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, 7, variables, {"accuracy": 0.5})
    network = predictor.load_workdir(tmp_path)
    assert network.model == model
    jax.tree.map(np.testing.assert_array_equal, network.variables, variables)


def test_converted_weights_are_given_the_published_data_s_images(tmp_path):
    for name, classes, size, mean in (("resnet20", 10, 32, 0.4914), ("skip_resnet20", 4, 32, 0.5071)):
        shapes = torch_weights.variable_shapes(name, classes)
        zeros = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
        variables = flax.traverse_util.unflatten_dict(zeros)
        weights.save(tmp_path / name, weights.Origin(name, classes, "some.pt"), variables)
        told = predictor.load_workdir(tmp_path / name).preprocessing
        assert (told.model, told.image_size, told.mean[0], len(told.class_names)) == (name, size, mean, classes)


def test_what_is_no_run_is_told_as_such(run, tmp_path, tiny):
    with pytest.raises(ValueError, match=r"no config\.json"):
        predictor.load_workdir(tmp_path)
    with pytest.raises(ValueError, match="--checkpoint: got 'newest'"):
        predictor.load_workdir(run, "newest")
