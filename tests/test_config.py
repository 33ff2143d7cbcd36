import dataclasses
import json
import re

import ml_collections
import pytest

from skipnet_jax import config
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

# No field has its default, so that one which is lost on the way shows.
SPEC = TrainSpec(
    model=ModelSpec(
        name="resnet20",
        num_classes=7,
        dtype="bfloat16",
        bn_group_size=16,
        gate_reduction=4,
        dropout=0.25,
        drop_path=0.5,
        shake_drop=0.4,
        drop_block=0.1,
        drop_block_size=5,
        signal_augment=0.2,
        remat=True,
    ),
    data=DataSpec(
        name="cifar100",
        dir="somewhere",
        pattern="*-of-00008",
        train_split="train[:90%]",
        test_split="test[:50%]",
        image_key="photo",
        label_key="kind",
        holdout="0.1",
        absent_classes="allow",
        background=(0, 0, 0),
        classes=(3, 1),
        eval_classes="own",
        image_size=24,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        eval_crop=0.95,
        interpolation="bicubic",
        pad_crop=0,
        crop_min_area=0.3,
        flip=False,
        auto_augment="svhn",
        rand_augment_ops=2,
        rand_augment_magnitude=7.0,
        rand_augment_std=1.0,
        rand_augment_prob=0.7,
        color_jitter=0.4,
        lighting=0.1,
        on_corrupt="skip",
    ),
    mixing=MixingSpec(
        cutmix_prob=0.5, cutmix_alpha=0.2, mixup_prob=0.3, mixup_alpha=0.4, erasing_prob=0.25, label_smoothing=0.1
    ),
    optim=OptimSpec(
        name="adamw",
        lr=0.3,
        lr_scale="linear",
        lr_batch_size=32,
        schedule="exponential",
        schedule_unit="step",
        warmup_epochs=2,
        last_lr=1e-5,
        layer_lr_ratio=0.1,
        momentum=0.8,
        nesterov=False,
        beta2=0.99,
        smoothing=0.9,
        eps=1e-6,
        rho=0.1,
        weight_decay=1e-3,
        decay_bias=True,
        clip_value=2.0,
        clip_norm=1.0,
    ),
    batch_size=64,
    epochs=3,
    eval_batch_size=32,
    accumulate_steps=2,
    ema_decay=0.9,
    init_from="runs/other",
    init_head="keep",
    seed=5,
    log_every_steps=7,
    checkpoint_every_epochs=2,
    checkpoint_every_minutes=3.0,
    on_nonfinite="skip",
    wandb_project="skipnets",
)


def test_spec_of_this_file_has_no_default_left():
    for cls, spec in ((type(part), part) for part in (SPEC, SPEC.model, SPEC.data, SPEC.mixing, SPEC.optim)):
        for field in dataclasses.fields(cls):
            assert getattr(spec, field.name) != field.default, field.name


def test_round_trip_through_json_changes_nothing():
    assert config.from_dict(json.loads(json.dumps(config.to_dict(SPEC)))) == SPEC


def test_round_trip_through_config_dict_changes_nothing():
    assert config.train_spec(config.to_config_dict(SPEC)) == SPEC


def test_config_dict_is_locked_all_the_way_down():
    config_dict = config.to_config_dict(SPEC)
    with pytest.raises(AttributeError):
        config_dict.batch_sise = 1
    with pytest.raises(AttributeError):
        config_dict.optim.lrr = 1


def _changed(path, value):
    mapping = config.to_dict(SPEC)
    *sections, name = path.split(".")
    part = mapping
    for section in sections:
        part = part[section]
    part[name] = value
    return mapping


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("batch_sise", "batch_size"),
        ("optim.weight_dekay", "optim.weight_decay"),
        ("lr", "optim.lr"),
        ("model.batch_size", "batch_size"),
        ("model.gate_redution", "model.gate_reduction"),
    ],
)
def test_unknown_key_is_named_with_path_and_nearest(path, nearest):
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"config: got the unknown field {path}, expected a field of the config. Did you mean {nearest}?"
        ),
    ):
        config.from_dict(_changed(path, 1))


def test_unknown_key_that_several_names_fit_equally_gets_them_all():
    names = r"model\.name or data\.name or optim\.name"
    with pytest.raises(ValueError, match=rf"Did you mean {names}\?"):
        config.from_dict(_changed("name", "x"))


def test_unknown_key_unlike_any_other_gets_the_list():
    with pytest.raises(ValueError, match=r"The fields are model\.name, .*checkpoint_every_epochs"):
        config.from_dict(_changed("zzz", 1))


@pytest.mark.parametrize("path", ["seed", "optim.warmup_epochs"])
def test_missing_key_raises_even_where_the_spec_has_a_default(path):
    mapping = config.to_dict(SPEC)
    part = mapping[path.split(".")[0]] if "." in path else mapping
    del part[path.split(".")[-1]]
    with pytest.raises(ValueError, match=rf"^{re.escape(path)}: got no such key .*expected type int"):
        config.from_dict(mapping)


def test_what_an_earlier_version_wrote_lacks_newer_fields():
    mapping = config.to_dict(SPEC)
    del mapping["seed"], mapping["optim"]["warmup_epochs"]
    spec = config.from_dict(mapping, may_be_older=True)
    assert (spec.seed, spec.optim.warmup_epochs) == (0, OptimSpec().warmup_epochs)
    assert dataclasses.replace(spec.optim, warmup_epochs=SPEC.optim.warmup_epochs) == SPEC.optim
    del mapping["batch_size"]  # which has always been there
    with pytest.raises(ValueError, match=r"^batch_size: got no such key"):
        config.from_dict(mapping, may_be_older=True)


def test_missing_key_names_the_nearest_that_is_there():
    mapping = config.to_dict(SPEC)
    del mapping["batch_size"]
    with pytest.raises(ValueError, match="the nearest is: eval_batch_size"):
        config.from_dict(mapping)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("batch_size", True, "True (bool), expected type int"),
        ("batch_size", 64.0, "64.0 (float), expected type int"),
        ("batch_size", "64", "'64' (str), expected type int"),
        ("batch_size", None, "None (NoneType), expected type int"),
        ("optim.lr", "0.1", "'0.1' (str), expected type float"),
        ("optim.lr", True, "True (bool), expected type float"),
        ("optim.nesterov", 1, "1 (int), expected type bool"),
        ("model.name", 20, "20 (int), expected type str"),
        ("data.classes", 3, "3 (int), expected whole numbers, as in (0,1,2)"),
        ("data.classes", (1, "2"), "(1, '2') (tuple), expected whole numbers, as in (0,1,2)"),
        ("optim", 0.1, "0.1, expected the fields of OptimSpec"),
    ],
)
def test_wrong_type_is_refused_with_got_and_expected(path, value, expected):
    with pytest.raises(ValueError, match=re.escape(f"{path}: got {expected}")):
        config.from_dict(_changed(path, value))


def test_int_is_taken_for_a_float_and_becomes_one():
    lr = config.from_dict(_changed("optim.lr", 1)).optim.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_float_field_filled_with_an_int_can_still_be_set_to_a_fraction():
    spec = dataclasses.replace(SPEC, optim=OptimSpec())
    object.__setattr__(spec.optim, "lr", 1)  # as a recipe may write it; under pytest the constructor is type-checked
    config_dict = config.to_config_dict(spec)
    config_dict.optim.lr = 0.5  # a ConfigDict whose lr is the int 1 refuses this
    assert config.train_spec(config_dict).optim.lr == 0.5


def test_values_out_of_range_are_refused_on_reading():
    with pytest.raises(ValueError, match=r"batch_size: got 0.*Change batch_size\."):
        config.from_dict(_changed("batch_size", 0))


def test_misspelt_key_in_a_config_dict_built_by_hand_is_refused():
    config_dict = ml_collections.ConfigDict(_changed("optim.learning", 1.0))
    with pytest.raises(ValueError, match=r"unknown field optim\.learning"):
        config.train_spec(config_dict)
