import dataclasses
import json

import pytest
from etils import epath

from skipnet_jax import files, specs
from skipnet_jax.analysis import runs
from skipnet_jax.analysis.runs import EvalSet, Score
from skipnet_jax.runs import workdir
from tests.analysis import made_runs

DIGITS = EvalSet("digits")
IMAGENET = {"class_names": [f"n{i:08}" for i in range(1000)], "training_images": 1_281_167}


def read_all(*paths):
    return [runs.read(path) for path in paths]


def test_without_an_evaluation_the_last_test_of_training_counts(tmp_path):
    run = runs.read(made_runs.write(tmp_path, made_runs.DIGITS, accuracies=(0.95, 0.9)))
    assert run.finished
    assert run.scores == {(DIGITS, 16): Score(0.9, 20, None, "metrics.jsonl")}


def test_an_evaluation_counts_before_the_test_of_training(tmp_path):
    scored = [("digits", 16, 0.8), ("digits", 24, 0.7)]
    run = runs.read(made_runs.write(tmp_path, made_runs.DIGITS, accuracies=(0.5, 0.9), scored=scored))
    assert run.scores == {
        (DIGITS, 16): Score(0.8, 20, 1000, "results.json"),
        (DIGITS, 24): Score(0.7, 20, 1000, "results.json"),
    }


@pytest.mark.parametrize("order", [(10, 20), (20, 10)])
def test_of_several_checkpoints_the_newest_counts_not_the_best(tmp_path, order):
    for step in order:
        made_runs.write(tmp_path, made_runs.DIGITS, scored=[("digits", 16, 0.9 if step == 10 else 0.8)], step=step)
    [score] = runs.read(tmp_path).scores.values()
    assert (score.step, score.accuracy) == (20, 0.8)


def test_the_moving_average_counts_where_there_is_one(tmp_path):
    spec = dataclasses.replace(made_runs.DIGITS, ema_decay=0.9)
    assert [s.accuracy for s in runs.read(made_runs.write(tmp_path / "a", spec)).scores.values()] == [0.91]
    scored = made_runs.write(tmp_path / "b", spec, scored=[("digits", 16, 0.7)])
    assert [s.accuracy for s in runs.read(scored).scores.values()] == [0.71]


def test_finished_is_a_run_whose_last_epoch_is_tested(tmp_path):
    under_way = runs.read(made_runs.write(tmp_path, made_runs.DIGITS, accuracies=(0.5,)))
    assert not under_way.finished
    lines = [*under_way.metrics, {"step": 20, "epoch": 2.0, "train/loss": 1.0}]  # trained, and killed before its test
    files.write_lines(epath.Path(tmp_path) / workdir.METRICS, lines)
    assert not runs.read(tmp_path).finished
    (tmp_path / workdir.METRICS).unlink()
    assert not runs.read(tmp_path).finished


def test_seeds_make_a_group_in_the_order_of_the_networks(tmp_path):
    for seed in (2, 0, 1):
        for network in ("skip_resnet20", "resnet20"):
            spec = made_runs.spec_of(network, "digits", 10, 16, seed=seed)
            made_runs.write(tmp_path / f"{network}-{seed}", spec)
    groups = runs.group(read_all(*sorted(tmp_path.iterdir(), reverse=True)))
    assert [group.label for group in groups] == ["ResNet-20", "Skip-ResNet-20"]
    assert [[run.spec.seed for run in group.runs] for group in groups] == [[0, 1, 2], [0, 1, 2]]


def test_what_a_run_may_change_when_it_goes_on_is_no_difference(tmp_path):
    other = dataclasses.replace(made_runs.DIGITS, seed=1, eval_batch_size=7, log_every_steps=3)
    other = dataclasses.replace(other, data=dataclasses.replace(other.data, dir="/elsewhere"))
    a, b = made_runs.write(tmp_path / "a", made_runs.DIGITS), made_runs.write(tmp_path / "b", other)
    [group] = runs.group(read_all(a, b))
    assert len(group.runs) == 2


def test_runs_of_other_configs_stay_apart_and_say_in_what(tmp_path):
    spec = made_runs.DIGITS
    warm = dataclasses.replace(spec, optim=specs.OptimSpec(lr=0.2), init_from="runs/first", seed=1)
    a, b = made_runs.write(tmp_path / "a", spec), made_runs.write(tmp_path / "b", warm)
    labels = [group.label for group in runs.group(read_all(a, b))]
    assert labels == [
        "Skip-ResNet-20 (optim.lr=0.1, init_from='')",
        "Skip-ResNet-20 (optim.lr=0.2, init_from=runs/first)",
    ]


def test_runs_on_other_images_stay_apart(tmp_path):
    """The name of the data set and its folder do not tell."""
    spec = made_runs.spec_of("resnet20", "folder", 2, 16)
    a = made_runs.write(tmp_path / "a", spec, learnt={"class_names": ["cat", "dog"], "training_images": 10})
    other = dataclasses.replace(spec, seed=1)
    b = made_runs.write(tmp_path / "b", other, learnt={"class_names": ["cat", "dog"], "training_images": 11})
    labels = [group.label for group in runs.group(read_all(a, b))]
    assert labels == ["ResNet-20 (data.json: training_images=10)", "ResNet-20 (data.json: training_images=11)"]


def test_the_same_run_twice_is_refused(tmp_path):
    a, b = (made_runs.write(tmp_path / name, made_runs.DIGITS) for name in "ab")
    with pytest.raises(ValueError, match=r"the same run twice: .*/a and .*/b have the same config and seed 0"):
        runs.group(read_all(a, b))
    with pytest.raises(ValueError, match="the same run twice"):
        runs.group(read_all(a, a))


def test_the_cifars_share_labels(tmp_path):
    """CIFAR-10 and CIFAR-100 differ by themselves; what else differs is said of both."""
    for data, classes, epochs in (("cifar10", 10, 2), ("cifar100", 100, 2), ("cifar100", 100, 3)):
        spec = made_runs.spec_of("resnet110", data, classes, 32, epochs=epochs)
        learnt = {"class_names": [str(i) for i in range(classes)], "training_images": 50_000}
        made_runs.write(tmp_path / f"{data}-{epochs}", spec, accuracies=(0.5,) * epochs, learnt=learnt)
    groups = runs.group(read_all(*sorted(tmp_path.iterdir())))
    assert [group.label for group in groups] == [
        "ResNet-110 (epochs=2)",
        "ResNet-110 (epochs=2)",
        "ResNet-110 (epochs=3)",
    ]


@pytest.mark.parametrize(("count", "data"), [(50_000, "imagenet2012"), (10_000, "tfrecords")])
def test_imagenet_in_shards_is_imagenet(tmp_path, count, data):
    """Unless another number of images was scored, as of ImageNet-V2 in the same place."""
    spec = made_runs.spec_of("resnet50", "tfrecords", 1000, 224)
    scored = [("tfrecords", 256, 0.7)]
    run = runs.read(made_runs.write(tmp_path, spec, scored=scored, count=count, learnt=IMAGENET))
    assert {(eval_set.data, size) for eval_set, size in run.scores} == {("imagenet2012", 224), (data, 256)}


def test_mirror_images_are_a_test_of_their_own(tmp_path):
    for flip, accuracy in ((True, 0.9), (False, 0.8)):
        made_runs.write(tmp_path, made_runs.DIGITS, scored=[("digits", 16, accuracy)], flip=flip)
    scores = {eval_set.title: score.accuracy for (eval_set, _), score in runs.read(tmp_path).scores.items()}
    assert scores == {"Digits": 0.8, "Digits, with mirror images": 0.9}


def test_titles():
    assert EvalSet("imagenet_a", (), "own").title == "ImageNet-A, among its own classes"
    assert EvalSet("digits", ("0", "1")).title == "Digits, classes 0, 1"
    assert EvalSet("folder", tuple("abcdefg")).title == "folder, classes a, b, c, d, e, ... (7)"
    assert EvalSet("cifar10").table == EvalSet("cifar100").table == "CIFAR"
    assert EvalSet("cifar10", ("3",)).table == "CIFAR-10, classes 3"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "no valid JSON"),
        ("metrics.jsonl", "{]\n", r"metrics\.jsonl, line 1"),
        ("metrics.jsonl", '{"step": 1, "epoch": 1}\n{"step": 2}\n', r"metrics\.jsonl, line 2: got epoch=None"),
        ("data.json", '{"class_names": 3}', r"data\.json: got no class_names"),
        (
            "results.json",
            json.dumps([{"data": "digits"}]),
            r"results\.json: .* not complete \(KeyError: 'eval_classes'",
        ),
        ("results.json", json.dumps({"data": "digits"}), r"results\.json: got a record that is not complete"),
    ],
)
def test_a_broken_workdir_is_told(tmp_path, file, content, message):
    made_runs.write(tmp_path, made_runs.DIGITS)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        runs.read(tmp_path)
