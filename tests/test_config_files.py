import dataclasses
import pathlib
import re

import pytest
from absl import flags
from ml_collections import config_flags

from skipnet_jax import config, config_files, errors
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

ROOT = pathlib.Path(__file__).parents[1]
SPEC = TrainSpec(
    ModelSpec("resnet20", 7), DataSpec("digits", image_size=16), MixingSpec(), OptimSpec(), batch_size=64, epochs=3
)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        "from skipnet_jax import config\n"
        f"def get_config():\n    return config.to_config_dict(config.from_dict({config.to_dict(SPEC)!r}))\n"
    )
    return path


def _parse(argv):
    argv, _ = config_files.read_command_line(argv)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return config.train_spec(holder.value)


def test_command_line_overrides_reach_the_spec(config_file):
    argv = ["main", f"--config={config_file}", "--config.optim.lr=0.7", "--noconfig.model.remat", "--config.seed", "9"]
    argv += ["--config.data.classes=5,6"]
    spec = _parse(argv)
    assert spec == dataclasses.replace(
        SPEC,
        optim=dataclasses.replace(SPEC.optim, lr=0.7),
        model=dataclasses.replace(SPEC.model, remat=False),
        data=dataclasses.replace(SPEC.data, classes=(5, 6)),
        seed=9,
    )


@pytest.mark.parametrize("override", ["--config.batch_sise=64", "-config.batch_sise=64", "--noconfig.batch_sise"])
def test_misspelt_override_is_refused_in_one_line(config_file, override):
    with pytest.raises(ValueError, match=r"^config: got the unknown field batch_sise, .*Did you mean batch_size\?$"):
        config_files.read_command_line(["main", f"--config={config_file}", override])


def test_overrides_without_a_config_are_refused():
    with pytest.raises(ValueError, match=r"config: got only the override --config\.seed=1, expected a recipe"):
        config_files.read_command_line(["main", "--config.seed=1", "--workdir=x"])


def test_override_inside_a_field_is_refused(config_file):
    with pytest.raises(ValueError, match=r"unknown field optim\.lr\.x"):
        config_files.read_command_line(["main", f"--config={config_file}", "--config.optim.lr.x=1"])


@pytest.mark.parametrize("separate", [True, False])
def test_missing_config_file_is_refused_with_the_nearest(config_file, separate):
    (config_file.parent / "wide.py").touch()
    wrong = f"{config_file.parent / 'smal.py'}:variant"
    argv = ["main", "--config", wrong] if separate else ["main", f"--config={wrong}"]
    nearest = re.escape(f"Did you mean {config_file}?")
    with pytest.raises(
        ValueError, match=rf"^config: got '.*smal\.py:variant', expected a file, or the name of a config\. {nearest}$"
    ):
        config_files.read_command_line(argv)


def test_missing_config_file_unlike_any_other_gets_the_list(config_file):
    (config_file.parent / "recipes.py").touch()
    with pytest.raises(ValueError, match=re.escape(f"Did you mean {config_file}?")):
        config_files.read_command_line(["main", f"--config={config_file.parent / 'zzz'}"])


@pytest.mark.parametrize("argv", [["main", "--config="], ["main", "--config"]])
def test_empty_config_is_refused(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"config: got '', expected a file, or the name of a config\."):
        config_files.read_command_line(argv)


def test_check_leaves_other_arguments_alone(config_file):
    argv = ["main", f"--config={config_file}:variant", "--workdir=x", "--mode", "train", "--", "--config.whatever=1"]
    config_files.read_command_line(argv)
    config_files.read_command_line(["main", "--mode=evaluate", "--workdir=x"])


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", ["skip_resnet110", "skip_resnet110.py", "configs/skip_resnet110.py"])
@pytest.mark.parametrize("argument", ["", ":cifar100"])
def test_a_config_is_found_by_its_name_in_every_folder(empty, value, argument):
    assert config_files.find(value + argument) == f"{ROOT}/configs/skip_resnet110.py{argument}"


def test_a_file_of_the_user_comes_first_and_the_shipped_one_serves_where_it_is_the_same(empty):
    (empty / "configs").mkdir()
    mine, copy = empty / "configs" / "mine.py", empty / "configs" / "digits.py"
    mine.write_text("x = 1")
    copy.write_bytes((ROOT / "configs" / "digits.py").read_bytes())
    assert config_files.find("mine:a") == "configs/mine.py:a"
    assert config_files.find("digits") == "configs/digits.py"


def test_a_name_for_two_different_files_is_refused_with_both(empty):
    (empty / "configs").mkdir()
    (empty / "configs" / "digits.py").write_text("x = 1")
    expected = f"--config=configs/digits.py, or --config={ROOT}/configs/digits.py"
    with pytest.raises(ValueError, match=re.escape(expected)):
        config_files.find("digits")
    assert config_files.find("configs/digits.py") == "configs/digits.py"  # a path says which


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("skip_resnet5", "Did you mean skip_resnet50?"),
        ("skp_resnet50:x", "Did you mean skip_resnet50?"),
        ("configs/digit.py", "Did you mean configs/digits.py?"),
        ("zzz", "dense_resnet50 or digits or fashion_mnist"),
        ("nowhere/digits.py", "nowhere holds no config."),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(empty, value, near):
    with pytest.raises(ValueError, match=re.escape(near)):
        config_files.find(value)


def test_what_the_configs_share_is_no_config(empty):
    with pytest.raises(ValueError, match="got 'recipes', expected a file, or the name of a config"):
        config_files.find("recipes")


def test_python_loads_a_config_with_its_argument(empty):
    loaded = config_files.load("skip_resnet110:cifar100")
    assert (loaded.model.name, loaded.data.name, loaded.is_locked) == ("skip_resnet110", "cifar100", True)
    (empty / "mine.py").write_text("def get_config(:\n    return 1\n")
    with pytest.raises(errors.UserError, match=r"mine\.py, line 1: got SyntaxError"):
        config_files.load("mine.py")
    (empty / "README.md").write_text("no config")
    with pytest.raises(errors.UserError, match=r"config: got 'README\.md', expected a Python file"):
        config_files.load("README.md")


@pytest.mark.parametrize(("returned", "got"), [("None", "nothing"), ("{}", "dict")])
def test_python_is_told_that_get_config_returns_no_config(empty, returned, got):
    (empty / "mine.py").write_text(f"def get_config():\n    return {returned}\n")
    with pytest.raises(errors.UserError, match=rf"mine\.py: got a get_config that returns {got}, expected one that"):
        config_files.load("mine.py")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("/a/configs/skip_resnet50.py", "skip_resnet50"),
        ("skip_resnet110.py:cifar100", "skip_resnet110_cifar100"),
        ("my.recipe.py:a/b c", "my.recipe_a_b_c"),
    ],
)
def test_a_run_is_named_after_its_config_and_the_argument(value, name):
    assert config_files.run_name(value) == name
