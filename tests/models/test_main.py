import dataclasses
import json

import pytest

from skipnet_jax.analysis import tables
from skipnet_jax.models import list_models, model_info
from skipnet_jax.models.__main__ import main

FEATURES = "features: channels/stride"


def test_json_has_exact_numbers(capsys):
    main(["resnet110", "--format=json"])
    (row,) = json.loads(capsys.readouterr().out)
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
    assert model_info("resnet110").flops == row["flops"]


def test_markdown(capsys):
    main(["wide_resnet28_10", "--format=markdown", "--features"])
    heads, rule, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in _lines(capsys))
    assert heads == ["name", "published name", "parameters", "FLOPs", "image size", "published top-1", FEATURES]
    assert rule == ["---", "---", "---:", "---:", "---:", "---", "---"]
    top1 = "CIFAR-10 97.87%, CIFAR-100 84.25%"
    assert row == ["wide_resnet28_10", "WideResNet-28-k10", "36.54M", "5.254G", "32", top1, "160/1, 320/2, 640/4"]


def test_text_has_a_line_for_each_network_and_aligned_columns(capsys):
    main(["s[kt]*_resnet20", "--xla"])
    heads, *rows = _lines(capsys)
    assert [row.split()[0] for row in rows] == ["skip_resnet20", "static_resnet20"]
    end = heads.index("XLA's FLOPs") + len("XLA's FLOPs")
    assert all(row[end - 1] == "M" and row[end] == " " for row in rows)
    assert all(row.index("-ResNet-20") > heads.index("published name") for row in rows)


def test_a_pattern_without_a_match_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["resnet_50"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "got 'resnet_50'" in captured.err and "resnet50" in captured.err
    assert not captured.out


def test_a_pattern_without_a_published_network_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["sum_*", "--published"])
    assert "none of the networks sum_* is in the published tables" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["text", "json"])
def test_without_a_pattern_all_networks_are_meant(style, monkeypatch, capsys):
    row = tables.make_row("resnet20", xla=False)
    monkeypatch.setattr(tables, "make_row", lambda name, *, xla: dataclasses.replace(row, name=name))
    main([f"--format={style}"])
    printed = capsys.readouterr().out
    if style == "json":
        assert [row["name"] for row in json.loads(printed)] == list_models()
    else:
        assert [line.split()[0] for line in printed.splitlines()[1:]] == list_models()


def _lines(capsys):
    return capsys.readouterr().out.splitlines()
