import importlib.util
import pathlib
import subprocess
import sys

import pytest

from skipnet_jax.config import train_spec

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "recipes")

# The arguments that a file's get_config takes, as after the colon of --config=FILE:ARGUMENT.
VARIANTS: dict[str, list[tuple[str, ...]]] = {
    "digits": [()],
    "resnet110": [(), ("cifar10",), ("cifar100",)],
    "skip_resnet110": [(), ("cifar10",), ("cifar100",)],
    "dense_resnet110": [(), ("cifar10",), ("cifar100",)],
}


def _get_config(path: pathlib.Path, *arguments: str):
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(*arguments)


CASES = [
    pytest.param(path, arguments, id=":".join((path.stem, *arguments)))
    for path in FILES
    for arguments in VARIANTS.get(path.stem, [()])
]


def test_variants_of_every_file_are_listed_here():
    assert {path.stem for path in FILES} == set(VARIANTS)


@pytest.mark.parametrize(("path", "arguments"), CASES)
def test_config_resolves_and_its_network_exists(path, arguments):
    from skipnet_jax.models import list_models

    config = _get_config(path, *arguments)
    assert config.is_locked
    assert train_spec(config).model.name in list_models()


@pytest.mark.parametrize(("path", "arguments"), CASES)
def test_file_is_named_after_its_network_and_says_how_to_run_itself(path, arguments):
    if path.stem != "digits":
        assert train_spec(_get_config(path, *arguments)).model.name == path.stem
    text = path.read_text()
    assert f"python -m skipnet_jax.main --config=configs/{path.name} --workdir=" in text
    for argument in {a for a in arguments if a != "cifar10"}:
        assert f"--config=configs/{path.name}:{argument} --workdir=" in text


# Takeda et al., MIRU2020: the row "cifar-resnet" of the published settings.
@pytest.mark.parametrize(("arguments", "dataset", "classes"), [((), "cifar10", 10), (("cifar100",), "cifar100", 100)])
@pytest.mark.parametrize("stem", ["resnet110", "skip_resnet110", "dense_resnet110"])
def test_cifar_resnet_recipe_is_the_published_one(stem, arguments, dataset, classes):
    spec = train_spec(_get_config(ROOT / "configs" / f"{stem}.py", *arguments))
    assert (spec.data.name, spec.model.num_classes) == (dataset, classes)
    assert (spec.batch_size, spec.epochs) == (256, 600)
    assert (spec.optim.lr, spec.optim.last_lr, spec.optim.warmup_epochs) == (0.2, 0.0, 5)
    assert (spec.optim.momentum, spec.optim.nesterov, spec.optim.weight_decay) == (0.9, True, 5e-4)
    assert (spec.mixing.cutmix_prob, spec.mixing.cutmix_alpha, spec.mixing.label_smoothing) == (1.0, 1.0, 0.0)
    assert (spec.data.image_size, spec.data.pad_crop, spec.data.flip) == (32, 4, True)
    assert (spec.model.bn_group_size, spec.model.gate_reduction) == (128, 0)
    assert (spec.model.dropout, spec.model.drop_path) == (0.0, 0.0)


def test_digits_are_never_mirrored():
    spec = train_spec(_get_config(ROOT / "configs" / "digits.py"))
    assert (spec.data.name, spec.model.num_classes, spec.data.flip) == ("digits", 10, False)


def test_unknown_data_set_is_refused_with_what_is_there():
    with pytest.raises(ValueError, match=r"got 'cifar11', expected cifar10 or cifar100.*--config=FILE\.py:cifar100"):
        _get_config(ROOT / "configs" / "resnet110.py", "cifar11")


def test_recipes_are_found_from_the_repository_root_without_pytest_help():
    code = "import runpy; print(runpy.run_path('configs/digits.py')['get_config']().data.name)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "digits\n"
