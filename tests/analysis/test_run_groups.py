import dataclasses
import json

import pytest
from etils import epath

from skipnet_jax import specs
from skipnet_jax.analysis import run_groups
from skipnet_jax.analysis.eval_sets import Condition, EvalSet
from skipnet_jax.analysis.run_groups import Score
from skipnet_jax.runs import workdir
from tests.analysis import made_runs

DIGITS = EvalSet("digits")
IMAGENET = {"class_names": [f"n{i:08}" for i in range(1000)], "training_images": 1_281_167}


def groups_of(*paths):
    return run_groups.group_by_config(map(run_groups.read, paths))


def test_without_an_evaluation_the_last_test_of_training_counts(tmp_path):
    run = run_groups.read(made_runs.write(tmp_path, made_runs.DIGITS, accuracies=(0.95, 0.9)))
    assert run.finished
    assert run.scores == {Condition(DIGITS, 16): Score(0.9, 20, None, "metrics.jsonl")}


def test_an_evaluation_counts_before_the_test_of_training(tmp_path):
    scored = [("digits", 16, 0.8), ("digits", 24, 0.7)]
    run = run_groups.read(made_runs.write(tmp_path, made_runs.DIGITS, accuracies=(0.5, 0.9), scored=scored))
    assert run.scores == {
        Condition(DIGITS, 16): Score(0.8, 20, 1000, "results.json"),
        Condition(DIGITS, 24): Score(0.7, 20, 1000, "results.json"),
    }


@pytest.mark.parametrize("order", [(10, 20), (20, 10)])
def test_the_newest_checkpoint_counts_not_the_best(tmp_path, order):
    for step in order:
        made_runs.write(tmp_path, made_runs.DIGITS, scored=[("digits", 16, 0.9 if step == 10 else 0.8)], step=step)
    [score] = run_groups.read(tmp_path).scores.values()
    assert (score.step, score.accuracy) == (20, 0.8)


def test_images_of_the_run_s_own_place_count_before_others(tmp_path):
    made_runs.write(tmp_path, made_runs.DIGITS, scored=[("digits", 16, 0.8)])
    [record] = json.loads((tmp_path / workdir.RESULTS).read_text())
    workdir.add_results(epath.Path(tmp_path), record | {"dir": "/elsewhere", "accuracy": 0.1})
    [score] = run_groups.read(tmp_path).scores.values()
    assert score.accuracy == 0.8


def test_averaged_parameters_count(tmp_path):
    spec = dataclasses.replace(made_runs.DIGITS, ema_decay=0.9)
    [score] = run_groups.read(made_runs.write(tmp_path / "a", spec)).scores.values()
    assert score.accuracy == 0.91
    [score] = run_groups.read(made_runs.write(tmp_path / "b", spec, scored=[("digits", 16, 0.7)])).scores.values()
    assert score.accuracy == 0.71


def test_a_run_is_finished_once_its_last_epoch_is_tested(tmp_path):
    assert not run_groups.read(made_runs.write(tmp_path, made_runs.DIGITS, accuracies=(0.5,))).finished
    with (tmp_path / workdir.METRICS).open("a") as file:  # the last epoch is trained, but not tested
        file.write('{"step": 20, "epoch": 2.0, "train/loss": 1.0}\n')
    assert not run_groups.read(tmp_path).finished
    (tmp_path / workdir.METRICS).unlink()
    assert not run_groups.read(tmp_path).finished


def test_seeds_make_a_group_and_groups_are_in_the_order_of_the_networks(tmp_path):
    paths = []
    for seed in (2, 0):
        for network in ("skip_resnet20", "resnet20"):
            spec = made_runs.spec_of(network, "digits", 10, 16, seed=seed)
            paths.append(made_runs.write(tmp_path / f"{network}-{seed}", spec))
    groups = groups_of(*paths)
    assert [group.label for group in groups] == ["ResNet-20", "Skip-ResNet-20"]
    assert [[run.spec.seed for run in group.runs] for group in groups] == [[0, 2], [0, 2]]


def test_fields_that_may_change_in_a_run_make_no_difference(tmp_path):
    other = dataclasses.replace(made_runs.DIGITS, seed=1, eval_batch_size=7, log_every_steps=3)
    other = dataclasses.replace(other, data=dataclasses.replace(other.data, dir="/elsewhere"))
    [group] = groups_of(made_runs.write(tmp_path / "a", made_runs.DIGITS), made_runs.write(tmp_path / "b", other))
    assert len(group.runs) == 2


def test_labels_tell_the_difference_between_configs(tmp_path):
    spec = made_runs.DIGITS
    warm = dataclasses.replace(spec, optim=specs.OptimSpec(lr=0.2), init_from="runs/first", seed=1)
    groups = groups_of(made_runs.write(tmp_path / "a", spec), made_runs.write(tmp_path / "b", warm))
    assert [group.label for group in groups] == [
        "Skip-ResNet-20 (optim.lr=0.1, init_from='')",
        "Skip-ResNet-20 (optim.lr=0.2, init_from=runs/first)",
    ]


def test_labels_tell_the_difference_between_images(tmp_path):
    """The name of the data set and its folder do not tell it."""
    paths = []
    for seed in range(2):
        spec = made_runs.spec_of("resnet20", "folder", 2, 16, seed=seed)
        learnt = {"class_names": ["cat", "dog"], "training_images": 10 + seed}
        paths.append(made_runs.write(tmp_path / str(seed), spec, learnt=learnt))
    labels = [group.label for group in groups_of(*paths)]
    assert labels == ["ResNet-20 (data.json: training_images=10)", "ResNet-20 (data.json: training_images=11)"]


def test_different_configs_never_share_a_label(tmp_path):
    """A row and a curve are found by their label, so one of two runs would be lost."""
    paths = []
    for number in range(2):
        long = f"/home/alice/experiments/skipnet/pretraining_{number}/imagenet/skip_resnet50_300_epochs"
        paths.append(made_runs.write(tmp_path / f"{number}", dataclasses.replace(made_runs.DIGITS, init_from=long)))
    assert [group.label.count(f"pretraining_{i}") for i, group in enumerate(groups_of(*paths))] == [1, 1]
    paths = []
    for data in ("cifar10", "cifar10:3.0.2"):
        spec = made_runs.spec_of("resnet110", data, 10, 32)
        paths.append(made_runs.write(tmp_path / data, spec))
    labels = [group.label for group in groups_of(*paths)]
    assert labels == ["ResNet-110 (data.name=cifar10)", "ResNet-110 (data.name=cifar10:3.0.2)"]


def test_the_same_run_twice_is_refused(tmp_path):
    a, b = (made_runs.write(tmp_path / name, made_runs.DIGITS) for name in "ab")
    with pytest.raises(ValueError, match=r"the same run twice: .*/a and .*/b have the same config and seed 0"):
        groups_of(a, b)


def test_the_two_cifars_differ_without_a_label(tmp_path):
    paths = []
    for data, classes, epochs in (("cifar10", 10, 2), ("cifar100", 100, 2), ("cifar100", 100, 3)):
        spec = made_runs.spec_of("resnet110", data, classes, 32, epochs=epochs)
        learnt = {"class_names": [str(i) for i in range(classes)], "training_images": 50_000}
        paths.append(made_runs.write(tmp_path / f"{data}-{epochs}", spec, accuracies=(0.5,) * epochs, learnt=learnt))
    labels = [group.label for group in groups_of(*paths)]
    assert labels == ["ResNet-110 (epochs=2)", "ResNet-110 (epochs=2)", "ResNet-110 (epochs=3)"]


@pytest.mark.parametrize(("count", "data"), [(50_000, "imagenet2012"), (10_000, "tfrecords")])
def test_imagenet_in_shards_is_imagenet(tmp_path, count, data):
    """Unless another number of images was scored, such as ImageNet-V2 in its place."""
    spec = made_runs.spec_of("resnet50", "tfrecords", 1000, 224)
    scored = [("tfrecords", 256, 0.7)]
    run = run_groups.read(made_runs.write(tmp_path, spec, scored=scored, count=count, learnt=IMAGENET))
    assert run.scores.keys() == {Condition(EvalSet("imagenet2012"), 224), Condition(EvalSet(data), 256)}


def test_a_class_without_images_has_no_accuracy(tmp_path):
    """`--mode=evaluate --details` writes null for it."""
    made_runs.write(tmp_path, made_runs.DIGITS, scored=[("digits", 16, 0.9)])
    [record] = json.loads((tmp_path / workdir.RESULTS).read_text())
    details = {"calibration_error": 0.1, "class_accuracy": {"0": 0.5, "1": None}}
    (tmp_path / workdir.RESULTS).write_text(json.dumps([record | details]))
    [read] = run_groups.read(tmp_path).results
    assert read["class_accuracy"] == {"0": 0.5, "1": None}


def test_mirror_images_are_a_condition_of_their_own(tmp_path):
    for flip, accuracy in ((True, 0.9), (False, 0.8)):
        made_runs.write(tmp_path, made_runs.DIGITS, scored=[("digits", 16, accuracy)], flip=flip)
    scores = {condition.title: score.accuracy for condition, score in run_groups.read(tmp_path).scores.items()}
    assert scores == {"Digits at 16 px": 0.8, "Digits, with mirror images at 16 px": 0.9}


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
        ("metrics.jsonl", '{"step": 1, "epoch": 1}\n{"step": 2}\n', r"metrics\.jsonl, line 2: got no epoch"),
        ("data.json", '{"class_names": 3}', r"data\.json: got class_names=3"),
        ("results.json", json.dumps([{"data": "digits"}]), r"results\.json, record 1: got no image_size"),
    ],
)
def test_a_damaged_workdir_is_refused(tmp_path, file, content, message):
    made_runs.write(tmp_path, made_runs.DIGITS)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        run_groups.read(tmp_path)
