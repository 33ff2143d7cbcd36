import json

import pytest

from scripts import count_networks
from skipnet_jax.models import list_models, model_info, table
from tests import golden_rules
from tests.models import traced


def test_the_published_tables_print_the_exact_counts():
    """test_complexity compares these exact counts with the networks."""
    exact = {entry["model"]: entry for entry in json.loads((golden_rules.FOLDER / "models_table.json").read_text())}
    published = table.published_results()
    assert len(published) == 34
    for name, printed in published.items():
        if "Swin" in name:
            assert "params" not in printed and "flops" not in printed
            continue
        assert table.format_count(exact[name]["params"]) == printed["params"]
        if "ConvNeXt-B" not in name:  # 15.58G and 15.65G are printed, 10M fewer than the code counts
            assert table.format_count(exact[name]["flops"]) == printed["flops"]


@pytest.mark.parametrize(
    ("value", "text"), [(999_949, "999.9k"), (999_950, "1.000M"), (11_202_430, "11.20M"), (22_423_293_952, "22.42G")]
)
def test_format_count(value, text):
    assert table.format_count(value) == text


def test_published_results_are_of_networks_that_exist():
    infos = {info.published_name: info for info in map(model_info, list_models())}
    for name, result in table.published_results().items():
        assert infos[name].image_size == result["image_size"]


def test_published_top1():
    assert model_info("skip_resnet50").published_top1 == {"ImageNet": 0.8041}  # at 224 pixels, not at 288
    assert model_info("resnet110").published_top1 == {"CIFAR-10": 0.9623, "CIFAR-100": 0.7798}
    assert model_info("resnet20").published_top1 == {}


def test_the_counts_of_all_networks_are_at_hand():
    assert list(table.counts()) == list_models()
    page = count_networks.PAGE.read_text()
    assert count_networks.with_table(page) == page  # else run `python -m scripts.count_networks`
    assert count_networks.serialize(table.counts()) == count_networks.COUNTS.read_text()


# The golden tests count 24 more.
@pytest.mark.parametrize("name", ["resnet20", "mean_resnet32", "static_seresnet34", "sum_regnety_008"])
def test_the_counts_are_the_networks(name):
    assert table.counts()[name] == traced.count(name)


def test_info_counts_the_network():
    info = model_info("skip_resnet20")
    assert (info.published_name, info.image_size, info.num_classes) == ("Skip-ResNet-20", 32, 100)
    assert (info.params, info.flops) == (322564, traced.count("skip_resnet20").flops)


def test_each_column_is_as_wide_as_its_widest_cell():
    infos = [model_info(name) for name in list_models()]
    for column in table.columns(xla=False, features=True):
        assert max(len(column.head), *(len(column.cell(info)) for info in infos)) == column.width
