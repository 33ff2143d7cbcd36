import dataclasses
import json
import os
import re
import shlex
import sys
from html.parser import HTMLParser

import jax
import pytest
from etils import epath

from skipnet_jax import config
from skipnet_jax.analysis import report, run_facts, run_groups
from skipnet_jax.models import abstract_variables, build_network
from tests import chromium
from tests.analysis import made_runs

WILD = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


def make_run(folder, *, name="skip_resnet20", seed=0, accuracy=0.9, gates=True, epochs=2, **fields):
    """Writes a workdir as training, evaluation and explanation leave it."""
    from configs import recipes

    folder.mkdir(parents=True)
    wanted = recipes.digits()
    wanted.model.name, wanted.seed, wanted.epochs = name, seed, epochs
    for field, value in fields.items():
        wanted[field] = value
    (folder / "config.json").write_text(json.dumps(config.to_dict(config.train_spec(wanted))))
    (folder / "data.json").write_text(json.dumps({"class_names": list("0123456789"), "training_images": 1437}))
    lines = [
        line
        for epoch in (1.0, 2.0)
        for line in (
            {"step": int(11 * epoch), "epoch": epoch, "train/loss": 1.0, "train/accuracy": 0.5, "learning_rate": 0.1}
            | {"images_per_second": 600.0 + epoch},
            {"step": int(11 * epoch), "epoch": epoch, "test/loss": 1.0, "test/accuracy": accuracy - 0.1 * (epoch - 1)},
        )
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = {"event": "start", "step": 0, "command": ["main.py", WILD], "git": WILD, "libraries": {"jax": "0.10.2"}}
    stop = {"time": "2026-01-01T00:03:20+00:00", "event": "stop", "step": 22, "why": WILD}
    log = [{"time": "2026-01-01T00:00:00+00:00", **start}, stop]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))
    if gates:
        (folder / "explain").mkdir()
        (folder / "explain" / "gates.png").write_bytes(PIXEL)
    return folder


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.words += f"{data}\n"


def test_a_run(tmp_path):
    page = Page(report.render([make_run(tmp_path / "digits")]))
    for words in ("digits", "Skip-ResNet-20", "80.00%", "90.00%", "3 min 20 s", "602", "316.7k", "cutmix_prob"):
        assert words in page.words, words
    assert "--mode=explain" not in page.words, "the gates are there"


def test_the_page_fetches_nothing_runs_nothing_and_escapes_what_comes_from_outside(tmp_path):
    members = [make_run(tmp_path / "run <b>&x", init_from=WILD), make_run(tmp_path / "other", seed=1)]
    for paths in (members, members[:1]):
        text = report.render(paths)
        page = Page(text)
        assert all(address.startswith(("data:", "#")) for address in page.addresses)
        assert len([address for address in page.addresses if address.startswith("data:image/")]) >= 2
        assert not {"script", "iframe", "object", "embed", "b"} & set(page.tags)
        assert "default-src 'none'" in text
        assert not re.search(r"url\(|@import|<script", text)
        assert page.words.count(WILD) >= 3, "config, git and why"
        assert shlex.quote(WILD) in page.words, "the command can be copied"
        assert "run <b>&x" in page.words


def test_a_folder_s_name_may_be_no_text(tmp_path):
    run = make_run(tmp_path / os.fsdecode(b"run \xff"))
    file = report.write_report([run], tmp_path / "report.html")
    assert r"run \udcff" in Page(file.read_text()).words


def test_a_comparison_shows_the_differences(tmp_path):
    first = make_run(tmp_path / "a", gates=False)
    second = make_run(tmp_path / "b", name="resnet20", accuracy=0.95, gates=False)
    page = Page(report.render([first, second]))
    assert "Comparison of 2 runs" in page.words
    fields = page.words.split("The runs differ in:")[1].split("All ")[0].split()
    assert fields == ["Field", "a", "b", "model.name", "skip_resnet20", "resnet20"]
    commands = re.findall(r"--mode=explain --workdir=(\S+)", page.words)
    assert commands == [str(first)], "a plain network has no gates"


def test_an_unfinished_run_without_anything(tmp_path):
    folder = make_run(tmp_path / "early", gates=False)
    (folder / "metrics.jsonl").unlink()
    (folder / "events.jsonl").unlink()
    page = Page(report.render([folder]))
    assert "The workdir has no record of a start." in page.words
    assert "100.00%" not in page.words and "316.7k" in page.words


def test_a_changed_gate_has_its_own_size(tmp_path):
    model = dataclasses.replace(made_runs.DIGITS.model, gate_reduction=8)
    made_runs.write(tmp_path / "run", dataclasses.replace(made_runs.DIGITS, model=model))
    arrays = jax.tree.leaves(abstract_variables(build_network(model), 16)["params"])
    assert run_facts.read(run_groups.read(tmp_path / "run")).size.params == sum(leaf.size for leaf in arrays)


def test_times_and_tests_of_a_run_that_was_killed_once(tmp_path):
    folder = make_run(tmp_path / "killed")
    times = [("start", 0), ("start", 100), ("stop", 160), ("start", 200), ("stop", 230)]
    log = [
        {"time": f"2026-01-01T00:{second // 60:02}:{second % 60:02}+00:00", "event": event, "step": 0}
        for event, second in times
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))
    facts = run_facts.read(run_groups.read(folder))
    assert (facts.seconds, facts.interrupted) == (90.0, 1)
    assert (facts.last.accuracy, facts.best.accuracy, facts.best.epoch) == (0.8, 0.9, 1)


def test_durations():
    seconds = (0.4, 59.6, 200, 7500, 86400 * 3 + 59)
    assert [*map(report.format_seconds, seconds)] == ["0 s", "1 min", "3 min 20 s", "2 h 5 min", "3 d"]


def test_mistakes(tmp_path, monkeypatch):
    folder, out = make_run(tmp_path / "run"), tmp_path / "new" / "report.html"
    assert report.write_report([folder], out).read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"out: got .*, which cannot be written"):
        report.write_report([folder], folder / "config.json" / "report.html")
    with pytest.raises(ValueError, match=r"config\.json"):
        report.render([tmp_path])
    (folder / "events.jsonl").write_text('{"event": "start"}\n')
    with pytest.raises(ValueError, match=r"events\.jsonl, line 1: got no time"):
        report.render([folder])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r'got no Jinja2, expected .* Run: pip install -e "\.\[report\]"'):
        report.render([folder])


def test_commands_can_be_copied(tmp_path):
    folder = make_run(tmp_path / "a run", gates=False)
    start = {"time": "2026-01-01T00:00:00+00:00", "event": "start", "step": 0}
    command = ["/anywhere/skipnet_jax/main.py", f"--workdir={folder}"]
    (folder / "events.jsonl").write_text(json.dumps(start | {"command": command}) + "\n")
    words = Page(report.render([folder])).words
    assert f"python -m skipnet_jax.main '--workdir={folder}'" in words
    assert f"--mode=explain --workdir='{folder}'" in words


def test_evaluations(tmp_path):
    folder = make_run(tmp_path / "run")
    plain = {"data": "digits", "image_size": 16, "eval_classes": "all", "flip": False, "step": 22, "count": 360}
    plain |= {"accuracy": 0.81, "top5_accuracy": 0.97, "loss": 0.625, "calibration_error": 0.123}
    other = {name: value for name, value in plain.items() if name != "calibration_error"}
    other |= {"data": "imagenet_a", "split": "test[:9]", "flip": True, "eval_classes": "own"}
    other |= {"average_accuracy": 0.5, "average_top5_accuracy": 0.75, "average_loss": 2.5}
    (folder / "results.json").write_text(json.dumps([plain, other]))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "digits_16px_step22_calibration.png").write_bytes(PIXEL)
    page = Page(report.render([folder]))
    words = page.words.split("Calibration error")[1].split("Gates")[0].split("\n")
    words = [word for word in words if word.strip()]
    assert words[:8] == ["digits", "16 px", "22", "360", "81.00%", "97.00%", "0.6250", "12.30%"]
    title = "imagenet_a (test[:9]), among its own classes, with mirror images"
    assert words[8:16] == [title, "16 px", "22", "360", "50.00%", "75.00%", "2.5000", "\N{EN DASH}"]
    assert words[16:] == ["digits_16px_step22"]


@pytest.mark.parametrize(("data", "highlighted"), [("digits", 1), ("cifar10", 0)])
def test_only_results_on_the_same_images_compete(tmp_path, data, highlighted):
    for number, (name, accuracy) in enumerate([("digits", 0.9), (data, 0.95)]):
        spec = made_runs.spec_of("resnet20", name, 10, 16, seed=number)
        made_runs.write(tmp_path / str(number), spec, accuracies=(0.5, accuracy))
    html = report.render(sorted(tmp_path.iterdir()))
    assert html.count('<td class="number best">') == highlighted


def test_a_hold_out_is_no_test(tmp_path):
    """Its accuracy is neither compared with the published figure, nor with tests of other runs."""
    for number, (holdout, judge) in enumerate([("", "test"), ("5000", "holdout")]):
        spec = made_runs.spec_of("resnet110", "cifar10", 10, 32, seed=number)
        spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, holdout=holdout))
        file = made_runs.write(tmp_path / str(number), spec, accuracies=(0.5, 0.9 + 0.01 * number)) / "metrics.jsonl"
        file.write_text(file.read_text().replace('"test/', f'"{judge}/'))
    html = report.render(sorted(tmp_path.iterdir()))
    assert '<td class="number best">' not in html and html.count("(hold-out)") == 2
    words = Page(html).words
    assert "CIFAR-10, held out of training, 32 px" in words
    assert words.count("published 96.23%, -6.23") == 1 and "published 96.23%, -5.23" not in words


@pytest.fixture
def tab(tmp_path):
    binary = chromium.find()
    if binary is None:
        text = "no Chromium is installed, so nobody looks at the report (Debian: apt install chromium-headless-shell)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    with chromium.page(binary, tmp_path / "profile") as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_browser_without_a_network_shows_everything(count, tmp_path, tab):
    paths = [make_run(tmp_path / f"run_{seed}_{'long_' * 12}", seed=seed) for seed in range(count)]
    file = report.write_report(paths, epath.Path(tmp_path / "report.html"))
    for width in (1280, 400):
        tab.open(tmp_path / file.name, width)
        widths = tab.value(
            "document.images.length && Promise.all([...document.images].map(async image => "
            "{ await image.decode(); return image.naturalWidth }))"
        )
        assert len(widths) >= 2 and min(widths) > 0
        assert tab.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
        assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "flex", "styles are applied"
        assert tab.value("document.querySelectorAll('script').length") == 0
        assert tab.messages == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
        tab.screenshot(tmp_path / f"{width}.png")
        assert (tmp_path / f"{width}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_browser_notices_mistakes(tmp_path, tab):
    """A page with a foreign picture, a wide paragraph and an error in the console."""
    file = tmp_path / "wrong.html"
    file.write_text(
        '<!DOCTYPE html><img src="https://example.org/a.png"><p style="width:3000px">wide</p>'
        '<script>console.error("wrong")</script>'
    )
    tab.open(file, 400)
    assert tab.value("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert tab.value("document.images[0].naturalWidth") == 0
    assert any("wrong" in message for message in tab.messages)
    assert any("ERR_NAME_NOT_RESOLVED" in message for message in tab.messages)
    assert "https://example.org/a.png" in tab.requests
