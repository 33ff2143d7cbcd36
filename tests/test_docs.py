"""Every page: its commands and its Python are run, smaller, unless they are marked as needing what is not here."""

import ast
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import command_line

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SMALLER = "--config.data.image_size=8 --config.epochs=1 --config.optim.warmup_epochs=0"
DEADLINE = 400  # seconds for a page


def blocks(page: pathlib.Path, language: str, marker: str) -> list[str]:
    return [text for found, kind, text in BLOCK.findall(page.read_text()) if (found, kind) == (marker, language)]


def with_blocks(language: str, marker: str) -> list[pathlib.Path]:
    return [page for page in PAGES if blocks(page, language, marker)]


def run(text: str, folder: pathlib.Path, python: pathlib.Path) -> str:
    """In a folder that looks like the repository's, with this program as `python`."""
    for name in ("configs", "scripts", "skipnet_jax"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(python.parent), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    result = subprocess.run(
        ["bash", "-euc", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def page_name(page: pathlib.Path) -> str:
    return page.name if page.parent == ROOT else f"docs/{page.name}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_each_block_says_whether_it_is_run(page):
    for marker, _, text in BLOCK.findall(page.read_text()):
        known = marker in ("run", "dry run", "setup", "hardware") or marker.startswith("needs ")
        in_test = marker.startswith("in ") and (ROOT / marker.removeprefix("in ")).is_file()
        assert known or in_test, f"{marker!r} above\n{text}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_command_escapes(page):
    """Those of other blocks would neither be run nor say what they need."""
    text = page.read_text()
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert 2 * len(found) == text.count("```")
    assert {language for language, _ in found} <= {"bash", "python", ""}
    command = re.compile(r"^(?: {4}|\t)?(?:[A-Z_]+=\S+ )*\$? ?(?:python|bash|pip|gcloud|source) .*", re.MULTILINE)
    assert command.findall(BLOCK.sub("", text)) == []


def documented(program: str) -> list[str]:
    """The commands that are not run, by their programs, each on one line."""
    texts = [text for page in PAGES for marker, _, text in BLOCK.findall(page.read_text()) if marker != "run"]
    lines = "".join(texts).replace("\\\n", " ").splitlines()
    return sorted({line.split("#")[0].strip() for line in lines if line.startswith(program)})


def test_commands_that_need_more_have_flags_and_configs_that_exist():
    """Checks all that is checked before a run begins."""
    program = "python -m skipnet_jax.main"
    commands = documented(program)
    assert commands
    told = command_line.run_all([shlex.split(each.removeprefix(program)) for each in commands], only_parse=True)
    for command, done in zip(commands, told, strict=True):
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_files_are_there(page):
    text = page.read_text()
    for target in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert "://" in target or (page.parent / target).exists(), target
    for name in re.findall(r"(?<![\w/])(?:scripts|configs|tests)/[\w/]+\.\w+\b(?!::)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("bash", "run"), ids=page_name)
def test_commands_run(page, tmp_path, warm_python):
    text = "\n".join(blocks(page, "bash", "run"))
    longer = re.sub(r"--config\.(epochs|optim\.warmup_epochs)=\d+", "", text)
    run(longer.replace("--config=configs/digits.py", f"--config=configs/digits.py {SMALLER}"), tmp_path, warm_python)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("python", "run"), ids=page_name)
def test_python_runs(page, tmp_path, monkeypatch, one_device):
    monkeypatch.chdir(tmp_path)
    names = {"jax": jax, "jnp": jnp, "np": np}
    for text in blocks(page, "python", "run"):
        exec(compile(text, str(page), "exec"), names)


@pytest.mark.parametrize("page", with_blocks("bash", "dry run"), ids=page_name)
def test_commands_for_a_tpu_run_dry(page, tmp_path):
    for text in blocks(page, "bash", "dry run"):
        assert text.count("run_tpu_pod.sh") == 1
        printed = run(
            text.replace("run_tpu_pod.sh", "run_tpu_pod.sh --dry_run"), tmp_path, pathlib.Path(sys.executable)
        )
        assert "gcloud compute tpus tpu-vm ssh skip-resnet50 --zone=us-west4-a --project=my-project" in printed


def test_each_promise_of_reliability_names_a_test_that_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    missing = []
    for file, name in named:
        path = ROOT / "tests" / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([])
        if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert len(named) > 30 and not missing
