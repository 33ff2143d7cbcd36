"""Workdirs of runs that never happened, written by the project's own functions."""

import dataclasses

from etils import epath

from skipnet_jax import config, files, specs
from skipnet_jax.runs import workdir

DIGITS = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=16, pad_crop=2, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(),
    batch_size=128,
    epochs=2,
)
STEPS_PER_EPOCH = 10


def spec_of(network, data, num_classes, image_size, **changes):
    """Makes a config for a network on a data set."""
    return dataclasses.replace(
        DIGITS,
        model=specs.ModelSpec(name=network, num_classes=num_classes),
        data=specs.DataSpec(name=data, image_size=image_size, pad_crop=0),
        **changes,
    )


def write(path, spec, *, accuracies=(0.5, 0.9), scored=(), step=None, count=1000, flip=False, learnt=None):
    """Writes a workdir.

    Args:
      accuracies: after each epoch; fewer than `spec.epochs` make an unfinished run.
      scored: (data set, image size, accuracy) of each evaluation.
      step: of the evaluated checkpoint; None = the last one.
      count: number of test images.
      flip: whether the evaluations include mirror images.
      learnt: the content of data.json; None = no such file.
    """
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    files.write_json(path / workdir.CONFIG, config.to_dict(spec))
    if learnt is not None:
        files.write_json(path / workdir.DATA, learnt)
    lines = []
    for epoch, accuracy in enumerate(accuracies, 1):
        where = {"step": epoch * STEPS_PER_EPOCH, "epoch": float(epoch)}
        test = {"test/loss": 2 - accuracy, "test/accuracy": accuracy}
        if spec.ema_decay:
            test |= {"test/average_loss": 1.9 - accuracy, "test/average_accuracy": accuracy + 0.01}
        lines += [where | {"train/loss": 3 - accuracy}, where | test]
    files.write_lines(path / workdir.METRICS, lines)
    for data, size, accuracy in scored:
        record = {
            **{"model": spec.model.name, "data": data, "image_size": size, "eval_classes": "all", "split": "test"},
            **{"flip": flip},
            **{"checkpoint": "", "step": STEPS_PER_EPOCH * spec.epochs if step is None else step},
            **{"loss": 1.0, "accuracy": accuracy, "top5_accuracy": 1.0, "count": count},
        }
        if spec.ema_decay:
            record["average_accuracy"] = accuracy + 0.01
        workdir.add_results(path, record)
    return path
