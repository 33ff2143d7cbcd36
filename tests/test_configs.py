import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from skipnet_jax.config import train_spec
from skipnet_jax.models import abstract_variables, create_model, list_models, model_info
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

ROOT = pathlib.Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "recipes"}
PUBLISHED = json.loads((ROOT / "skipnet_jax" / "models" / "published_results.json").read_text())

# Takeda et al., MIRU2020, and the settings behind its tables: recipe -> its networks, whose stochastic depth differs.
NETWORKS = {
    "cifar-resnet": {"resnet110": 0.0, "skip_resnet110": 0.0, "dense_resnet110": 0.0},
    "cifar-wide": {
        junction + name: 0.0 for name in ("wide_resnet28_10", "wide_resnet40_10") for junction in ("", "skip_")
    },
    "imagenet-resnet": {
        junction + name: 0.0
        for name in (
            "resnet34",
            "resnet50",
            "resnet101",
            "resnext50_32x4d",
            "resnext101_32x4d",
            "seresnet34",
            "seresnet50",
            "seresnet101",
            "seresnext50_32x4d",
            "seresnext101_32x4d",
        )
        for junction in ("", "skip_")
    }
    | {"dense_resnet34": 0.0, "dense_resnet50": 0.0, "dense_resnet101": 0.0},
    "imagenet-regnet": {junction + name: 0.0 for name in ("regnety_016", "regnety_032") for junction in ("", "skip_")},
    "imagenet-convnext": {
        junction + name: rate
        for name, rate in {"convnext_tiny": 0.1, "convnext_small": 0.4, "convnext_base": 0.5}.items()
        for junction in ("", "skip_")
    },
    "imagenet-swin": {
        junction + name: rate
        for name, rate in {"swin_tiny": 0.2, "swin_small": 0.3}.items()
        for junction in ("", "skip_")
    },
}
RECIPE_OF = {name: recipe for recipe, names in NETWORKS.items() for name in names}

# The rows of that publication's table of settings. Whatever a row does not name is off.
SGD = {"momentum": 0.9, "nesterov": True, "last_lr": 0.0, "warmup_epochs": 5, "schedule": "cosine"}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "beta2": 0.999, "eps": 1e-8,
         "last_lr": 0.0, "warmup_epochs": 5, "schedule": "cosine", "clip_norm": 0.0, "lr_batch_size": 1024}  # fmt: skip
CIFAR = {"image_size": 32, "pad_crop": 4, "flip": True}
IMAGENET = {"name": "imagenet2012", "image_size": 224, "pad_crop": 0, "crop_min_area": 0.08, "flip": True,
            "color_jitter": 0.4, "lighting": 0.1}  # fmt: skip
RAND_AUGMENT = {"rand_augment_ops": 2, "rand_augment_magnitude": 9.0, "rand_augment_std": 0.5, "rand_augment_prob": 0.5}
MIXED = {"cutmix_prob": 0.7, "cutmix_alpha": 1.0, "mixup_prob": 0.3, "mixup_alpha": 0.8, "erasing_prob": 0.25,
         "label_smoothing": 0.1}  # fmt: skip
CUTMIX = {"cutmix_prob": 1.0, "cutmix_alpha": 1.0}
SETTINGS = {
    "cifar-resnet": {
        "batch_size": 256,
        "epochs": 600,
        "optim": SGD | {"name": "sgd", "lr": 0.2, "weight_decay": 5e-4, "lr_batch_size": 256},
        "mixing": CUTMIX,
        "data": CIFAR,
    },
    "cifar-wide": {
        "batch_size": 256,
        "epochs": 600,
        "optim": SGD | {"name": "sgd", "lr": 0.4, "weight_decay": 5e-4, "lr_batch_size": 256},
        "mixing": CUTMIX | {"label_smoothing": 0.1},
        "data": CIFAR | {"auto_augment": "cifar10"},
    },
    "imagenet-resnet": {
        "batch_size": 1024,
        "epochs": 300,
        "optim": SGD | {"name": "sgd", "lr": 0.4, "weight_decay": 1e-4, "lr_batch_size": 1024},
        "mixing": CUTMIX,
        "data": IMAGENET,
    },
    "imagenet-regnet": {
        "batch_size": 1024,
        "epochs": 300,
        "optim": SGD | {"name": "sgd", "lr": 0.8, "weight_decay": 5e-5, "lr_batch_size": 1024},
        "mixing": {},
        "data": IMAGENET,
    },
    "imagenet-convnext": {
        "batch_size": 1024,
        "epochs": 300,
        "optim": ADAMW,
        "mixing": MIXED,
        "data": IMAGENET | RAND_AUGMENT,
    },
    "imagenet-swin": {
        "batch_size": 1024,
        "epochs": 300,
        "optim": ADAMW,
        "mixing": MIXED,
        "data": IMAGENET | RAND_AUGMENT,
    },
}


def arguments_of(stem):
    """The arguments that a file's get_config takes, as after the colon of --config=FILE:ARGUMENT."""
    return [(), ("cifar10",), ("cifar100",)] if RECIPE_OF.get(stem, "").startswith("cifar") else [()]


@functools.cache
def get_config(stem, *arguments):
    module_spec = importlib.util.spec_from_file_location(f"config_{stem}", FILES[stem])
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(*arguments)


CASES = [
    pytest.param(stem, arguments, id=":".join((stem, *arguments))) for stem in FILES for arguments in arguments_of(stem)
]


OWN_RECIPES = ("digits", "fashion_mnist")  # of no published SkipResNet table


def test_every_network_of_the_published_tables_has_a_file():
    in_tables = {name for name in list_models() if model_info(name).published_name in PUBLISHED}
    assert len(in_tables) == len(PUBLISHED) == 34
    assert in_tables <= set(RECIPE_OF)
    assert set(FILES) == {*RECIPE_OF, *OWN_RECIPES}


@pytest.mark.parametrize(("stem", "arguments"), CASES)
def test_every_field_is_what_the_publication_says(stem, arguments):
    """Strictly: whatever the publication does not name is off, at the default of the spec."""
    config = get_config(stem, *arguments)
    assert config.is_locked
    spec = train_spec(config)
    if stem in OWN_RECIPES:
        return
    assert spec.model.name == stem
    recipe = RECIPE_OF[stem]
    row = SETTINGS[recipe]
    dataset = (arguments or ("cifar10",))[0] if recipe.startswith("cifar") else "imagenet2012"
    classes = {"cifar10": 10, "cifar100": 100, "imagenet2012": 1000}[dataset]
    expected = TrainSpec(
        model=ModelSpec(
            name=stem,
            num_classes=classes,
            dtype="auto" if dataset == "imagenet2012" else "float32",
            drop_path=NETWORKS[recipe][stem],
            bn_group_size=128,
        ),
        data=DataSpec(**{"name": dataset, **row["data"]}),
        mixing=MixingSpec(**row["mixing"]),
        optim=OptimSpec(**row["optim"]),
        batch_size=row["batch_size"],
        epochs=row["epochs"],
        eval_batch_size=spec.eval_batch_size,
        checkpoint_every_epochs=spec.checkpoint_every_epochs,
    )
    assert spec == expected


@pytest.mark.parametrize("stem", FILES)
def test_network_of_every_file_is_built_for_its_images(stem):
    spec = train_spec(get_config(stem))
    model = create_model(spec.model.name, num_classes=spec.model.num_classes)
    shapes = abstract_variables(model, spec.data.image_size)
    assert shapes["params"]["classifier"]["bias"].shape == (spec.model.num_classes,)


@pytest.mark.parametrize(("stem", "arguments"), CASES)
def test_file_says_how_to_run_itself_and_what_was_published(stem, arguments):
    text = FILES[stem].read_text()
    assert f"python -m skipnet_jax.main --config=configs/{stem}.py --workdir=" in text
    for argument in {a for a in arguments if a != "cifar10"}:
        assert f"--config=configs/{stem}.py:{argument} --workdir=" in text
    published = PUBLISHED.get(model_info(stem).published_name) if stem not in OWN_RECIPES else None
    if published is None:
        assert any(words in text for words in ("Nothing is published", "no figure", "Published test error"))
        return
    assert f"median of {published['runs']} runs" in text
    figures = [published[key] for key in ("cifar10_top1", "cifar100_top1") if key in published]
    for key in ("imagenet_top1", "imagenet_a_top1"):
        figures += published.get(key, {}).values()
    assert figures
    for figure in figures:
        assert f"{figure:.2%}".replace("%", " %") in text


@pytest.mark.parametrize("stem", [*NETWORKS["imagenet-convnext"], *NETWORKS["imagenet-swin"]])
def test_files_that_depart_from_the_settings_say_so(stem):
    """The published code did not clip, although its settings asked for it."""
    text = FILES[stem].read_text()
    assert "does not clip" in text and "--config.optim.clip_norm=1.0" in text


def test_digits_are_never_mirrored():
    spec = train_spec(get_config("digits"))
    assert (spec.data.name, spec.model.num_classes, spec.data.flip) == ("digits", 10, False)


def test_fashion_mnist_takes_a_network_and_the_settings_of_the_comparison():
    spec = train_spec(get_config("fashion_mnist", "dense_resnet20"))
    assert (spec.model.name, spec.data.name, spec.data.image_size) == ("dense_resnet20", "fashion_mnist", 28)
    assert (spec.batch_size, spec.optim.lr, spec.optim.weight_decay, spec.optim.nesterov) == (128, 0.1, 5e-4, False)


def test_unknown_data_set_is_refused_with_what_is_there():
    with pytest.raises(ValueError, match=r"got the data set 'cifar11', expected cifar10 or cifar100"):
        get_config("resnet110", "cifar11")


def test_recipes_are_found_from_the_repository_root_without_pytest_help():
    code = "import runpy; print(runpy.run_path('configs/digits.py')['get_config']().data.name)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "digits\n"
