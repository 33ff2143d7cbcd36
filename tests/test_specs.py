import re

import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

REFUSED = [
    (lambda: ModelSpec(name="resnet20", num_classes=10, dtype="float16"), "model.dtype: got 'float16'"),
    (lambda: ModelSpec(name="resnet20", num_classes=10, drop_path=1.0), "model.drop_path: got 1.0"),
    (lambda: ModelSpec(name="resnet20", num_classes=10, drop_block_size=0), "model.drop_block_size: got 0"),
    (lambda: ModelSpec(name="resnet20", num_classes=10, signal_augment=-0.1), "model.signal_augment: got -0.1"),
    (lambda: DataSpec(name="digits", pad_crop=32), "data.pad_crop: got 32"),
    (
        lambda: DataSpec(name="digits", pad_crop=4, crop_min_area=0.08),
        "data.pad_crop: got 4 beside data.crop_min_area",
    ),
    (lambda: DataSpec(name="digits", classes=(1, 1)), "data.classes: got (1, 1), expected different numbers"),
    (lambda: DataSpec(name="digits", classes=(-1,)), "data.classes: got (-1,)"),
    (lambda: DataSpec(name="digits", auto_augment="cifar"), "data.auto_augment: got 'cifar', expected one of none,"),
    (
        lambda: DataSpec(name="digits", on_corrupt="ignore"),
        "data.on_corrupt: got 'ignore', expected one of error, skip",
    ),
    (lambda: DataSpec(name="digits", eval_classes="200"), "data.eval_classes: got '200', expected one of all, own"),
    (lambda: DataSpec(name="digits", mean=(float("nan"),) * 3, std=(1.0,) * 3), "data.mean: got (nan, nan, nan)"),
    (lambda: MixingSpec(cutmix_prob=0.7, mixup_prob=0.4), "mixing.cutmix_prob: got 0.7 beside mixing.mixup_prob=0.4"),
    (lambda: MixingSpec(erasing_prob=1.5), "mixing.erasing_prob: got 1.5"),
    (lambda: MixingSpec(mixup_alpha=0.0), "mixing.mixup_alpha: got 0.0"),
    (lambda: OptimSpec(name="adam"), "optim.name: got 'adam', expected one of sgd, sam, adamw"),
    (lambda: OptimSpec(lr=0.0), "optim.lr: got 0.0"),
    (lambda: OptimSpec(lr=float("nan")), "optim.lr: got nan"),
    (lambda: OptimSpec(lr=float("inf")), "optim.lr: got inf, expected more than 0 and finite. "),
    (lambda: OptimSpec(clip_norm=float("inf")), "optim.clip_norm: got inf, expected at least 0 and finite. "),
    (lambda: OptimSpec(layer_lr_ratio=2.0), "optim.layer_lr_ratio: got 2.0"),
    (lambda: OptimSpec(beta2=1.0), "optim.beta2: got 1.0"),
    (lambda: OptimSpec(name="adamw", momentum=1.0), "optim.momentum: got 1.0, expected 0 or more and less than 1"),
    (lambda: OptimSpec(clip_norm=-1.0), "optim.clip_norm: got -1.0"),
    (lambda: OptimSpec(schedule="linear"), "optim.schedule: got 'linear', expected one of cosine,"),
    (lambda: train(seed=2**32), "seed: got 4294967296"),
    (lambda: train(ema_decay=1.0), "ema_decay: got 1.0"),
    (lambda: train(accumulate_steps=3), "accumulate_steps: got 3, expected a divisor of batch_size (256)"),
    (
        lambda: train(batch_size=192).require_whole_groups(),
        "batch_size: got 192 in 1 part(s), expected a part that is a multiple of model.bn",
    ),
    (lambda: train(batch_size=384, accumulate_steps=2).require_whole_groups(), "batch_size: got 384 in 2 part(s)"),
    (lambda: train(batch_size=128, accumulate_steps=2).require_whole_groups(), "batch_size: got 128 in 2 part(s), exp"),
    (lambda: ModelSpec(name="resnet20", num_classes=1), "model.num_classes: got 1"),
]


def train(batch_size=256, accumulate_steps=1, ema_decay=0.0, seed=0):
    return TrainSpec(
        model=ModelSpec(name="resnet20", num_classes=10),
        data=DataSpec(name="digits"),
        mixing=MixingSpec(),
        optim=OptimSpec(),
        batch_size=batch_size,
        epochs=1,
        accumulate_steps=accumulate_steps,
        ema_decay=ema_decay,
        seed=seed,
    )


def test_a_run_is_saved_by_the_clock_and_stops_where_it_diverges_unless_told_otherwise():
    spec = train()
    assert (spec.checkpoint_every_minutes, spec.checkpoint_every_epochs, spec.on_nonfinite) == (10.0, 1, "stop")


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message.split(",")[0] for _, message in REFUSED])
def test_a_value_that_makes_no_sense_is_refused_with_the_field_to_change(make, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}.*(Change|Lower) "):
        make()


def test_what_lies_on_the_border_is_taken():
    MixingSpec(cutmix_prob=0.7, mixup_prob=0.3)  # whose sum rounds to less or more than 1
    DataSpec(name="digits", pad_crop=0, crop_min_area=1.0)
    OptimSpec(name="sgd", momentum=1.0)
    train(batch_size=64).require_whole_groups()  # less than one group of 128
    train(accumulate_steps=2).require_whole_groups()
