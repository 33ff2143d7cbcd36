import json

import pytest

from skipnet_jax.analysis import tables
from skipnet_jax.models import list_models, model_info


def test_the_printed_digits_follow_from_the_exact_counts(golden):
    """Those counts are the networks' own: see test_complexity."""
    exact = {entry["model"]: entry for entry in json.loads((golden / "models_table.json").read_text())}
    published = tables.published_results()
    assert len(published) == 24
    for name, printed in published.items():
        assert tables.format_count(exact[name]["params"]) == printed["params"]
        assert tables.format_count(exact[name]["flops"]) == printed["flops"]


@pytest.mark.parametrize(
    ("value", "text"), [(999_949, "999.9k"), (999_950, "1.000M"), (11_202_430, "11.20M"), (22_423_293_952, "22.42G")]
)
def test_format_count(value, text):
    assert tables.format_count(value) == text


def test_published_results_are_of_networks_that_exist():
    infos = {info.published_name: info for info in map(model_info, list_models())}
    for name, result in tables.published_results().items():
        assert infos[name].image_size == result["image_size"]


def test_published_top1():
    assert tables.published_top1("Skip-ResNet-50") == {"ImageNet": 0.8041}  # at 224 pixels, not at 288
    assert tables.published_top1("ResNet-110") == {"CIFAR-10": 0.9623, "CIFAR-100": 0.7798}
    assert tables.published_top1("ResNet-20") == {}


def test_cells_fit_their_columns():
    infos = [model_info(name) for name in list_models()]
    assert max(len(info.name) for info in infos) == tables.NAME.width
    assert max(len(info.published_name) for info in infos) == tables.PUBLISHED_NAME.width
    row = tables.make_row("resnet110", xla=False)
    assert len(tables.PUBLISHED_TOP1.cell(row)) == tables.PUBLISHED_TOP1.width
    for column in tables.columns(xla=True, features=True):
        assert max(len(column.head), len(column.cell(row))) <= column.width
