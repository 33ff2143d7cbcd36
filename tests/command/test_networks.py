import json
import re

import pytest

from skipnet_jax.command.networks import main
from skipnet_jax.models import complexity, list_models
from tests.models import traced

FEATURES = "features: channels/stride"


@pytest.fixture
def lines(monkeypatch, capsys):
    """Runs the command and returns the lines that it prints."""
    monkeypatch.setattr(complexity, "count", traced.count)

    def run(*argv):
        main(argv)
        return capsys.readouterr().out.splitlines()

    return run


def test_json_has_exact_numbers(lines):
    (row,) = json.loads("".join(lines("resnet110", "--format=json")))
    assert row == {
        "name": "resnet110",
        "published_name": "ResNet-110",
        "params": 1736564,
        "flops": 257894756,
        "image_size": 32,
        "num_classes": 100,
        "published_top1": {"CIFAR-10": 0.9623, "CIFAR-100": 0.7798},
        "features": [{"channels": 16, "stride": 1}, {"channels": 32, "stride": 2}, {"channels": 64, "stride": 4}],
        "xla_flops": None,
    }


def test_markdown(lines):
    table = lines("wide_resnet28_10", "--format=markdown", "--features")
    heads, rule, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    assert heads == ["name", "published name", "parameters", "FLOPs", "image size", "published top-1", FEATURES]
    assert rule == ["---", "---", "---:", "---:", "---:", "---", "---"]
    top1 = "CIFAR-10 97.87%, CIFAR-100 84.25%"
    assert row == ["wide_resnet28_10", "WideResNet-28-k10", "36.54M", "5.254G", "32", top1, "160/1, 320/2, 640/4"]


def test_text_aligns_its_columns(lines):
    heads, *rows = lines("s[kt]*_resnet20", "--xla")
    assert [row.split()[0] for row in rows] == ["skip_resnet20", "static_resnet20"]
    end = heads.index("XLA's FLOPs") + len("XLA's FLOPs")
    assert all(row[end - 1] == "M" and row[end] == " " for row in rows)
    assert all(row.index("-ResNet-20") > heads.index("published name") for row in rows)


@pytest.mark.parametrize("style", ["text", "json"])
def test_without_a_pattern_all_networks_are_printed(style, lines, monkeypatch):
    monkeypatch.setattr(complexity, "count", lambda name: traced.count("resnet20"))
    printed = lines(f"--format={style}")
    if style == "json":
        assert [row["name"] for row in json.loads("".join(printed))] == list_models()
    else:
        assert [line.split()[0] for line in printed[1:]] == list_models()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet_50"], r"pattern: got 'resnet_50', .*Nearest: .*resnet50"),
        (["sum_*", "--published"], r"no network that matches sum_\* is in the published tables"),
    ],
)
def test_a_pattern_without_a_match_is_an_error(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(message, captured.err)
