import dataclasses

import pytest

from skipnet_jax.analysis import result_tables, run_groups
from skipnet_jax.analysis.eval_sets import Condition, EvalSet
from skipnet_jax.analysis.result_tables import Cell, Published
from skipnet_jax.analysis.run_groups import Score
from skipnet_jax.models import complexity, list_models, model_info
from skipnet_jax.models.table import format_count, published_results
from tests.analysis import made_runs


def tables_of(folder):
    return result_tables.build(run_groups.group_by_config(run_groups.read(path) for path in sorted(folder.iterdir())))


def write_imagenet(folder, network, accuracies, **changes):
    """A run for each seed, evaluated at 224 pixels."""
    for seed, accuracy in enumerate(accuracies):
        spec = made_runs.spec_of(network, "imagenet2012", 1000, 224, seed=seed, **changes)
        made_runs.write(folder / f"{network}-{seed}", spec, scored=[("imagenet2012", 224, accuracy)])


def test_the_median_stands_beside_the_published_figure(tmp_path):
    write_imagenet(tmp_path, "skip_resnet50", (0.9, 0.8051, 0.1))
    [table] = tables_of(tmp_path)
    [row] = table.rows
    assert table.title == "ImageNet" and table.has_published
    assert [column.image_size for column in table.columns] == [224, 256, 288, 320]  # laid out like the published one
    assert (row.params, row.flops) == (40_150_000, 4_201_000_000)
    cell = row.cells[0]
    assert (cell.median, cell.published, cell.difference) == (0.8051, Published(0.8041, 5), 0.1)
    assert list(cell.scores) == [0, 1, 2]
    assert row.cells[1].median is None and row.cells[1].difference is None
    assert row.cells[1].published == Published(0.8103, 5)


@pytest.mark.parametrize(("accuracy", "difference"), [(0.804149, 0.0), (0.80405, 0.0), (0.80399, -0.01), (0.9, 9.59)])
def test_the_difference_is_between_printed_figures(accuracy, difference):
    cell = Cell({0: Score(accuracy, 1, None, "")}, Published(0.8041, 5))
    assert str(cell.difference) == str(difference)


def test_published_figures_of_every_table():
    for name, result in published_results().items():
        network = next(n for n in list_models() if model_info(n).published_name == name)
        for data in ("imagenet2012", "imagenet_a", "cifar10", "cifar100"):
            key = {"imagenet2012": "imagenet_top1", "imagenet_a": "imagenet_a_top1"}.get(data, f"{data}_top1")
            expected = result.get(key, {})
            expected = expected if isinstance(expected, dict) else {"32": expected}
            for size in (32, 224, 256, 288, 320, 384):
                got = result_tables.published(network, Condition(EvalSet(data), size))
                assert got == (Published(expected[str(size)], result["runs"]) if str(size) in expected else None)


@pytest.mark.parametrize(
    ("network", "eval_set", "size"),
    [
        ("skip_resnet50", EvalSet("imagenet_a", (), "own"), 224),  # published among all 1000 classes
        ("skip_resnet50", EvalSet("imagenet2012", flip=True), 224),
        ("skip_resnet50", EvalSet("imagenet_v2"), 224),
        ("dense_resnet50", EvalSet("imagenet2012"), 224),
        ("resnet110", EvalSet("cifar10", ("0", "1")), 32),
    ],
)
def test_what_was_not_published(network, eval_set, size):
    assert result_tables.published(network, Condition(eval_set, size)) is None


def test_each_eval_set_has_its_table_and_the_published_ones_come_first(tmp_path):
    spec = made_runs.spec_of("resnet50", "imagenet2012", 1000, 224)
    scored = [("imagenet_v2", 224, 0.6), ("imagenet_a", 320, 0.05), ("imagenet2012", 384, 0.7)]
    made_runs.write(tmp_path / "a", spec, scored=scored)
    titles = {table.title: [column.image_size for column in table.columns] for table in tables_of(tmp_path)}
    assert titles == {
        "ImageNet": [224, 256, 288, 320, 384],
        "ImageNet-A": [224, 256, 288, 320],
        "imagenet_v2": [224],
    }


def test_both_cifars_share_a_row(tmp_path):
    for data, classes in (("cifar10", 10), ("cifar100", 100)):
        for seed in range(2):
            spec = made_runs.spec_of("skip_resnet110", data, classes, 32, seed=seed)
            made_runs.write(tmp_path / f"{data}-{seed}", spec, accuracies=(0.1, classes / 200))
    [table] = tables_of(tmp_path)
    [row] = table.rows
    assert [column.eval_set.title for column in table.columns] == ["CIFAR-10", "CIFAR-100"]
    assert [cell.median for cell in row.cells] == [0.05, 0.5]
    assert [cell.published.accuracy for cell in row.cells] == [0.966, 0.7988]


def test_sizes_of_unpublished_networks_are_counted_as_trained(tmp_path):
    made_runs.write(tmp_path / "a", made_runs.spec_of("resnet20", "digits", 10, 16))
    [table] = tables_of(tmp_path)
    expected = complexity.count("resnet20", image_size=16, num_classes=10)
    assert not table.has_published
    assert (table.rows[0].params, table.rows[0].flops) == (expected.params, expected.flops)


def test_a_changed_network_has_no_known_size(tmp_path):
    spec = made_runs.DIGITS
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, gate_reduction=4))
    made_runs.write(tmp_path / "a", spec)
    [table] = tables_of(tmp_path)
    assert (table.rows[0].params, table.rows[0].flops) == (None, None)


def test_scores_on_different_images_are_refused(tmp_path):
    for seed, count in ((0, 1000), (1, 999)):
        spec = dataclasses.replace(made_runs.DIGITS, seed=seed)
        made_runs.write(tmp_path / str(seed), spec, scored=[("folder", 16, 0.5)], count=count)
    with pytest.raises(ValueError, match="folder at 16 px: got scores on 999 and on 1000 images"):
        tables_of(tmp_path)


def test_rows_name_their_training_data_if_they_differ_in_it(tmp_path):
    for data in ("digits", "folder"):
        spec = made_runs.spec_of("resnet20", data, 10, 16)
        made_runs.write(tmp_path / data, spec, scored=[("tfrecords", 16, 0.5)])
    *_, table = tables_of(tmp_path)
    assert table.title == "tfrecords"
    assert [row.label for row in table.rows] == ["ResNet-20, trained on Digits", "ResNet-20, trained on folder"]


def test_published_sizes():
    results = published_results()
    for network in list_models():
        published_name, size = model_info(network).published_name, result_tables.published_size(network)
        printed = results.get(published_name)
        assert (size is None) == (printed is None or "params" not in printed)
        if size:
            assert [*map(format_count, size)] == [printed["params"], printed["flops"]]
