"""The design's import rules, read from the sources: who may import whom, and where the heavy libraries stay."""

import ast
import configparser
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "skipnet_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Part of the package (a module or a folder of modules) -> the other parts that it may import.
_LAYERS = {
    "steps",
    "gradients",
    "nonfinite",
    "checkpoint",
    "sharding",
    "data",
    "optim",
    "models",
    "mixing",
    "objectives",
    "specs",
}
ALLOWED_PARTS: dict[str, set[str]] = {
    "__init__": set(),
    "specs": set(),
    "models": {"specs"},
    "data": {"specs", "atomic_file"},
    "optim": {"specs"},
    "mixing": {"specs"},
    "objectives": {"specs"},
    "sharding": {"specs"},
    "analysis": {"specs", "models", "mixing", "sharding", "config", "workdir", "json_files", "events"},
    "interop": {"specs", "models", "checkpoint", "workdir", "json_files"},
    "exports": {
        *("specs", "models", "checkpoint", "workdir", "json_files"),
        *("data", "interop", "predictor", "preprocessing"),
    },
    "config": {"specs"},
    "gradients": {"specs", "objectives", "optim"},
    "nonfinite": set(),
    "steps": {"backend", "specs", "models", "optim", "mixing", "objectives", "gradients", "nonfinite", "sharding"},
    "backend": set(),
    "libraries": set(),
    "atomic_file": set(),
    "integrity": set(),
    "misfits": set(),
    "checkpoint": {"specs", "sharding", "atomic_file", "integrity", "misfits"},
    "json_files": {"atomic_file"},
    "workdir": {"specs", "config", "json_files"},
    "scoring": {*_LAYERS},
    "details": {"analysis"},
    "evaluate": {*_LAYERS, "config", "workdir", "json_files", "scoring", "details", "interop"},
    "wandb_log": {"workdir", "json_files"},
    "metrics_log": {"workdir", "json_files", "wandb_log"},
    "progress": {"specs", "steps", "scoring", "metrics_log"},
    "preprocessing": {"specs", "data"},
    "predictor": {"specs", "models", "checkpoint", "workdir", "mixing", "interop", "preprocessing"},
    "predict": {"libraries", "data", "predictor", "exports", "preprocessing"},
    "explain": {*_LAYERS, "scoring", "preprocessing", "predictor", "workdir", "json_files", "analysis", "interop"},
    "transfer": {*_LAYERS, "misfits", "workdir"},
    "interruption": set(),
    "hosts": {"sharding"},
    "events": {"workdir", "json_files", "interruption"},
    "recovery": {"checkpoint", "integrity", "workdir"},
    "saver": {"checkpoint", "hosts"},
    "divergence": {"specs", "steps", "nonfinite"},
    "train": {
        *_LAYERS,
        *("config", "workdir", "analysis", "scoring", "progress", "transfer", "wandb_log", "hosts"),
        *("divergence", "events", "interruption", "recovery", "saver"),
    },
    # data: to tell within seconds, before anything heavy is imported, that there is none
    "main": {
        "backend",
        "libraries",
        "specs",
        "config",
        "workdir",
        "train",
        "evaluate",
        "explain",
        "exports",
        "data",
        "hosts",
        "interruption",
    },
}

# And those that it may import only when asked, inside a function: a network's facts include its FLOPs, whose counter
# reads the networks.
ALLOWED_PARTS_WHEN_ASKED = {"models": {"analysis"}}

# Part -> the libraries that it may import, beyond Python's own. Networks, steps and optimisers run, and are
# measured, where nothing but these five is installed.
_CORE = {"jax", "flax", "optax", "jaxtyping", "numpy"}
ALLOWED_LIBRARIES: dict[str, set[str]] = {
    "__init__": set(),
    "specs": set(),
    "models": _CORE,
    "optim": _CORE,
    "mixing": _CORE,
    "objectives": _CORE,
    "gradients": _CORE,
    "nonfinite": _CORE,
    "steps": _CORE,
    "sharding": _CORE,
    "data": {*_CORE, "requests", "sklearn", "tensorflow", "tensorflow_datasets"},
    "analysis": {*_CORE, "etils", "jinja2", "matplotlib"},
    "interop": {*_CORE, "etils", "safetensors", "torch"},
    "exports": {*_CORE, "etils", "onnx", "onnxruntime", "tensorflow"},
    "config": {"absl", "ml_collections"},
    "atomic_file": {"etils"},
    "json_files": {"etils"},
    "integrity": {"etils"},
    "misfits": {"jax"},
    "checkpoint": {*_CORE, "absl", "etils", "orbax"},
    "workdir": {*_CORE, "absl", "etils"},
    "scoring": {*_CORE, "clu", "tqdm"},
    "details": {*_CORE, "etils"},
    "evaluate": {*_CORE, "etils"},
    "wandb_log": {"etils", "wandb"},
    "metrics_log": {"etils", "clu"},
    "preprocessing": {"numpy", "jaxtyping"},
    "predictor": {*_CORE, "etils"},
    "predict": {"absl", "numpy", "tqdm"},
    "explain": {*_CORE, "etils"},
    "progress": {*_CORE, "absl", "etils", "tqdm"},
    "transfer": {*_CORE, "etils"},
    "interruption": set(),
    "backend": set(),
    "libraries": {"absl", "tensorflow"},
    "hosts": {"jax", "numpy", "etils"},
    "events": {"jax", "etils"},
    "recovery": {*_CORE, "etils", "orbax"},
    "saver": {*_CORE, "etils"},
    "divergence": {*_CORE, "etils"},
    "train": {*_CORE, "absl", "clu", "etils", "orbax"},
    "main": {"absl", "jax", "ml_collections"},
}

OPTIONAL = {"jinja2", "onnx", "onnxruntime", "safetensors", "torch", "wandb"}  # of extras
ONLY_INSIDE_FUNCTIONS = {*OPTIONAL, "tensorflow", "tensorflow_datasets"}

DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "tensorflow": "tensorflow-cpu",
}


def _part(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: pathlib.Path) -> Iterator[tuple[str, bool, int]]:
    """Yields (dotted name, inside a function, line) of every import; `from a import b` gives a.b."""
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else ()
                origin = ".".join((*above, *filter(None, [child.module])))
                yield from ((f"{origin}.{alias.name}", inside, child.lineno) for alias in child.names)
            else:
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text()), inside=False)


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=SOURCES, ids=_name)
def source(request) -> pathlib.Path:
    return request.param


def test_part_is_known_here(source):
    assert _part(source) in ALLOWED_PARTS, "a new part of the package: say above what it may import"
    assert _part(source) in ALLOWED_LIBRARIES, "a new part of the package: say above what it may import"


def test_imports_of_the_project_follow_the_direction(source):
    always = ALLOWED_PARTS[_part(source)] | {_part(source), "__version__"}
    when_asked = always | ALLOWED_PARTS_WHEN_ASKED.get(_part(source), set())
    for name, inside, line in _imports(source):
        root, _, rest = name.partition(".")
        if root == PACKAGE.name:
            allowed = when_asked if inside else always
            assert rest.split(".")[0] in allowed, f"{_name(source)}:{line} imports {name}"
        assert root not in {"configs", "tests", "scripts"}, f"{_name(source)}:{line} imports {name}"


def test_libraries_stay_where_they_belong(source):
    for name, _, line in _imports(source):
        root = name.split(".")[0]
        known = root == PACKAGE.name or root in sys.stdlib_module_names
        assert known or root in ALLOWED_LIBRARIES[_part(source)], f"{_name(source)}:{line} imports {name}"


def test_heavy_libraries_are_imported_inside_functions(source):
    for name, inside, line in _imports(source):
        if name.split(".")[0] in ONLY_INSIDE_FUNCTIONS:
            assert inside, f"{_name(source)}:{line} imports {name} at the top"


def test_every_imported_library_is_declared_in_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].splitlines()
    declared = {re.match(r"[\w-]*", line)[0] for line in required}
    imported = {name.split(".")[0] for path in SOURCES for name, _, _ in _imports(path)}
    imported -= {PACKAGE.name, *sys.stdlib_module_names, *OPTIONAL}
    wanted = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in imported}
    assert wanted <= {name.replace("_", "-") for name in declared}


def _loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split()}


def test_importing_the_package_loads_nothing_else():
    assert _loaded_by("import skipnet_jax") <= {"skipnet_jax", *_loaded_by("pass")}


def test_importing_the_core_loads_none_of_the_rest():
    core = "skipnet_jax.models, skipnet_jax.steps, skipnet_jax.optim.optimizers, skipnet_jax.optim.schedules"
    rest = {"tensorflow", "tensorflow_datasets", "clu", "ml_collections", "orbax", "sklearn", "matplotlib", "torch"}
    assert _loaded_by(f"import {core}").isdisjoint(rest)


@pytest.mark.parametrize("folder", ["skipnet_jax", "configs", "scripts", "tests"])
def test_no_file_has_a_name_that_says_nothing(folder):
    names = {path.stem for path in (ROOT / folder).rglob("*") if path.suffix in {"", ".py", ".sh"}}
    names = {name.removeprefix("test_") for name in names}
    assert names & {"utils", "util", "common", "helpers", "helper", "misc"} == set()


@pytest.mark.parametrize("folder", ["skipnet_jax", "configs", "scripts"])
def test_no_signature_takes_arbitrary_keywords(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                assert node.args.kwarg is None, f"{_name(path)}:{node.lineno} takes **{node.args.kwarg.arg}"


def test_files_that_are_no_code_are_installed_too(tmp_path):
    """As by `pip install`, which is not editable: the published figures and the report's template."""
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "skipnet_jax", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build", "--build-lib=built"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=120)

    def files(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert files(tmp_path / "built" / "skipnet_jax") == files(tmp_path / "skipnet_jax")
    assert "analysis/published_results.json" in files(tmp_path / "built" / "skipnet_jax")
