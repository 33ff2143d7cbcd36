"""Rules of the design that import-linter and ruff do not check (their contracts are in pyproject.toml)."""

import ast
import configparser
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "skipnet_jax"
OPTIONAL = {
    "apache_beam",
    "google",
    "jinja2",
    "onnx",
    "onnxruntime",
    "pillow_heif",
    "safetensors",
    "torch",
    "wandb",
}  # of extras
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow-cpu",
}
SAYS_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc"}


def imported_libraries() -> set[str]:
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - {PACKAGE.name, *sys.stdlib_module_names}


def test_every_imported_library_is_declared_in_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = {re.match(r"[\w-]*", line)[0] for line in setup["options"]["install_requires"].splitlines()}
    wanted = {DISTRIBUTIONS.get(name, name) for name in imported_libraries() - OPTIONAL}
    assert {name.replace("_", "-") for name in wanted} <= {name.replace("_", "-") for name in declared}


def loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split()}


def test_importing_the_package_loads_nothing_else():
    assert loaded_by("import skipnet_jax") <= {"skipnet_jax", *loaded_by("pass")}


def test_importing_the_core_loads_none_of_the_slow_libraries():
    core = "skipnet_jax.models, skipnet_jax.training.steps, skipnet_jax.optim.optimizers, skipnet_jax.optim.schedules"
    slow = {"tensorflow", "tensorflow_datasets", "clu", "ml_collections", "orbax", "sklearn", "matplotlib", "torch"}
    assert loaded_by(f"import {core}").isdisjoint(slow)


def test_the_command_answers_help_and_mistakes_without_a_slow_library():
    slow = {
        "jax",
        "numpy",
        "flax",
        "tensorflow",
        "tensorflow_datasets",
        "clu",
        "orbax",
        "etils",
        "sklearn",
        "matplotlib",
    }
    assert loaded_by("import skipnet_jax.main").isdisjoint(slow)


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode=evaluate", "--workdir=nowhere"],
        ["--mode=explain", "--workdir=nowhere"],
        ["--mode=export", "--workdir=nowhere"],
        ["--mode=predict", "--workdir=nowhere", "image.jpg"],
        ["--mode=convert", "--workdir=nowhere", "--from=nowhere.pt"],
        ["--config=digits", "--config.model.name=resnett20", "--workdir=nowhere"],
    ],
    ids=" ".join,
)
def test_the_command_reports_a_mistake_before_it_imports_tensorflow(flags):
    command = [sys.executable, "-X", "importtime", "-m", "skipnet_jax.main", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 2 and "jax" in imported and "tensorflow" not in imported, done.stderr[-500:]


def test_no_file_has_a_name_that_says_nothing():
    for folder in ("skipnet_jax", "configs", "scripts", "tests"):
        names = {path.stem.removeprefix("test_") for path in (ROOT / folder).rglob("*")}
        assert not names & SAYS_NOTHING, folder


def test_only_create_model_takes_arbitrary_keywords():
    """Its settings are the fields of ModelSpec, which would otherwise stand twice."""
    found = []
    for folder in ("skipnet_jax", "configs", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg is not None:
                    found.append(node.name)
    assert found == ["create_model"]


def test_setup_cfg_lists_every_folder_of_the_package():
    """`find:` would, but not together with the configs, which lie beside the package and are installed within it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("*.py")}
    assert setup["options"]["packages"].split() == sorted({*folders, "skipnet_jax.shipped.configs"})
