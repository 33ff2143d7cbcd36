r"""Draws images as a network trains on them: augmented by the host, mixed and erased by the device, with targets.

    python scripts/show_batch.py --config=configs/digits.py --output=batch.png
    python scripts/show_batch.py --config=configs/skip_resnet50.py --config.data.dir=DIR --images=64 --step=1000

They are the first images of the batch that training with this config sees at that step. Colours are clipped to the
range of a screen.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import config_flags

if TYPE_CHECKING:
    import numpy as np

    from skipnet_jax.specs import TrainSpec

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is not installed

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a file of configs/.", lock_config=True)
OUTPUT = flags.DEFINE_string("output", "batch.png", "PNG to write.")
IMAGES = flags.DEFINE_integer("images", 36, "How many images to draw.", lower_bound=1)
STEP = flags.DEFINE_integer("step", 0, "Training step whose batch is drawn.", lower_bound=0)

SHOWN_FROM = 0.02  # a class with a smaller share, beyond label smoothing, is not shown


def main(argv: Sequence[str]) -> int:
    """Writes the picture."""
    del argv
    from skipnet_jax import config
    from skipnet_jax.errors import UserError

    logging.set_verbosity(logging.ERROR)  # JAX reports which accelerators it did not find
    try:
        if CONFIG.value is None:
            raise UserError("config", "nothing", "a recipe", "Give --config=configs/digits.py or another.")
        draw(config.train_spec(CONFIG.value))
    except UserError as error:
        print(f"error: {error.message(_spell)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --output: got {error.strerror}, expected a writable file.", file=sys.stderr)
        return 2
    return 0


def draw(spec: "TrainSpec") -> None:
    """Draws one batch of a run with this spec."""
    from skipnet_jax import libraries

    libraries.quieten_tensorflow(level=1)
    import jax
    import numpy as np
    from etils import epath

    from skipnet_jax.analysis import curves
    from skipnet_jax.data import pipeline, sources
    from skipnet_jax.errors import UserError
    from skipnet_jax.training import steps

    split = sources.load(spec.data, "train")
    if spec.model.num_classes != split.num_classes:  # as in training: labels beyond the targets would look unreadable
        expected = f"{split.num_classes}, the number of classes of {split.name}"
        mend = f"Set `model.num_classes`={split.num_classes}."
        raise UserError("model.num_classes", f"{spec.model.num_classes}", expected, mend)
    batches = pipeline.train_batches(
        split, spec.data, batch_size=spec.batch_size, seed=spec.seed, start_step=STEP.value
    )
    prepare = jax.jit(steps.prepare, static_argnames=("spec", "statistics"))
    images, targets, _ = prepare(next(batches), STEP.value, spec=spec, statistics=split.statistics)
    number = min(IMAGES.value, len(images))
    pixels = np.asarray(images[:number]) * np.asarray(split.statistics.std) + np.asarray(split.statistics.mean)
    floor = spec.mixing.label_smoothing / split.num_classes + SHOWN_FROM
    titles = [_title(target, floor, split.class_names) for target in np.asarray(targets[:number])]
    curves.plot_images(np.uint8(np.clip(pixels, 0, 1) * 255 + 0.5), titles, epath.Path(OUTPUT.value))
    print(f"{OUTPUT.value}: {number} of the {len(images)} images of step {STEP.value}, {spec.data.name}")


def _title(target: "np.ndarray", floor: float, class_names: Sequence[str]) -> str:
    """The classes of a target, the largest share first: "cat", or "cat 62%" and "dog 38%" in two lines."""
    order = sorted(range(len(target)), key=lambda number: -target[number])
    shown = [number for number in order if target[number] > floor]
    if not shown:
        return "unreadable"
    if len(shown) == 1:
        return class_names[shown[0]]
    return "\n".join(f"{class_names[number]} {target[number]:.0%}" for number in shown)


def _spell(field: str) -> str:
    """A field as the user types it."""
    from skipnet_jax import config

    if field in config.fields():
        return f"--config.{field}"
    return f"--{field}" if field in flags.FLAGS else field


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; a mistake ends with one line instead of a stack trace."""
    from skipnet_jax import config_files
    from skipnet_jax.errors import UserError

    try:
        return config_files.parse_flags(argv)
    except UserError as error:
        print(f"error: {error.message(_spell)}", file=sys.stderr)
    except (flags.Error, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
