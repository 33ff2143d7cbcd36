"""Exports a trained network, and keeps the export only if it computes the same as the network.

`formats.py` lists the formats. If the run keeps a moving average, the average is exported: the best checkpoint is the
one with the best average.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax import files
from skipnet_jax.data import pipeline, sources
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import predictor, preprocessing
from skipnet_jax.exports import INPUT, OUTPUT, artifacts
from skipnet_jax.exports.formats import FORMATS, in_float32, require_libraries
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import DataSpec

FOLDER = "export"  # in a workdir
IMAGES = 5  # to compare on, all at once and one alone
TOLERANCE = 1e-4  # of the largest logit, or of 1 if that is larger


def export_workdir(
    path: epath.PathLike,
    format: str = "orbax",
    out: epath.PathLike | None = None,
    checkpoint: str = "best",
    *,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint of a workdir, and checks that the export computes what the network does.

    The export is read back and run on test images of the run's data set, or on noise if they are not available. It
    appears at its place only if its logits agree, and then replaces an earlier export.

    Args:
      path: the workdir of a run or of converted weights.
      format: a name of `formats.FORMATS`.
      out: a local folder; None = WORKDIR/export/FORMAT.
      checkpoint: best (by validation accuracy, the average's if there is one), latest, or a step.
      data_dir: where the data set is; None = where it was in training.

    Returns:
      The content of export.json.

    Raises:
      UserError: there is no such run, checkpoint or format, a library is missing, the folder holds something else, or
        the logits differ.
    """
    if format not in FORMATS:
        raise UserError("format", repr(format), f"one of {', '.join(FORMATS)}")
    require_libraries(format)
    workdir = workdirs.locate(path)
    place = _require_replaceable(workdir / FOLDER / format if out is None else workdirs.locate(out))
    trained = weights.load(workdir, checkpoint)
    exact = in_float32(trained)
    original = predictor.from_weights(workdir, exact)
    images, origin = _test_images(workdir, trained.spec.data, data_dir)
    size, network = trained.spec.data.image_size, exact.spec.model
    record: dict[str, Any] = {
        "format": format,
        "network": dataclasses.asdict(network),
        "checkpoint": str(workdir / workdirs.CHECKPOINTS / str(trained.step)),
        "step": trained.step,
        "weights": "moving average" if trained.averaged else "parameters",
        "input": {"name": INPUT, "dtype": "float32", "shape": ["b", size, size, 3]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["b", network.num_classes]},
        "jax": jax.__version__,
    }
    with _on_cpu(), _replace_folder(place) as folder:
        FORMATS[format].write(workdir, trained, folder)
        (folder / preprocessing.FILE).write_text(original.preprocessing.to_json())
        files.write_json(folder / artifacts.RECORD, record)
        record |= {"compared_on": origin} | _compare(original, folder, images)
        files.write_json(folder / artifacts.RECORD, record)
    written = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    print(
        f"{network.name} at step {trained.step} ({record['weights']}) as {format}, {written / 1e6:.1f} MB: largest "
        f"difference from the network {record['largest_difference']:.1e} in logits up to {record['largest_logit']:.3g} "
        f"({record['tolerance']:.0e} allowed), on {origin}\nwritten to {place}",
        flush=True,
    )
    return record


def _require_replaceable(path: epath.Path) -> pathlib.Path:
    """Checks the place of an export before the long work starts.

    Raises:
      UserError: it holds something else, or is in a bucket, where the libraries cannot write exports.
    """
    if not files.is_local(path):
        raise UserError("out", f"{path}", "a local folder, to be copied from there", "Choose another `out`.")
    place = pathlib.Path(path)
    earlier_export = (place / artifacts.RECORD).exists()
    if place.exists() and not earlier_export and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(
            "out",
            f"{place}, which holds something else",
            "a new folder, or an earlier export to replace",
            "Choose another `out`.",
        )
    return place


@contextlib.contextmanager
def _replace_folder(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder to fill, and moves it to `place` at the end. After an error the older folder stays.

    Raises:
      UserError: the folder cannot be written.
    """
    new, old = (place.with_name(f".{place.name}.{kind}") for kind in ("new", "old"))
    try:
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
    except OSError as error:
        raise files.unwritable("out", place, error) from error
    finally:
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)


def _test_images(workdir: epath.Path, data: DataSpec, data_dir: str | None) -> tuple[UInt8[np.ndarray, "b h w 3"], str]:
    """A few images as evaluation prepares them, and where they are from."""
    if (workdir / workdirs.MODEL).exists():
        why = "the weights were trained elsewhere"
    else:
        data = data if data_dir is None else dataclasses.replace(data, dir=data_dir)
        try:
            split = sources.load(data, "test")
            batch = next(iter(pipeline.eval_batches(split, data, batch_size=IMAGES)))
            images = batch["image"][batch["mask"]]
            return images, f"{len(images)} test images of {data.name}"
        except UserError as error:
            why = f"the run's images are not available: {str(error).splitlines()[0]}"
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, data.image_size, data.image_size, 3), np.uint8)
    return noise, f"{IMAGES} images of noise, since {why}"


def _compare(
    original: predictor.Predictor, folder: pathlib.Path, images: UInt8[np.ndarray, "b h w 3"]
) -> dict[str, float]:
    """Runs the export on all images at once and on one alone.

    Raises:
      UserError: its logits differ from the network's.
    """
    artifact = artifacts.load_artifact(folder)
    expected = original.logits(images)
    differences = [np.abs(artifact.logits(images[:k]) - expected[:k]).max() for k in (1, len(images))]
    difference, largest = float(np.max(differences)), float(np.abs(expected).max())
    tolerance = TOLERANCE * max(1.0, largest)
    if not difference <= tolerance:  # this way round NaN is refused too
        raise UserError(
            "format",
            f"a {artifact.format} export whose logits differ by {difference:.1e} from the network's",
            f"at most {tolerance:.1e}",
            "Nothing was written. Choose another `format`, and report this.",
        )
    return {"largest_difference": difference, "largest_logit": largest, "tolerance": tolerance}


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Computes on the CPU, in true float32: accelerators multiply less exactly, which would hide a mistake."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "JAX_PLATFORMS",
            repr(os.environ.get("JAX_PLATFORMS")),
            "cpu among them, where exports are compared",
            "Unset the variable, or add cpu after a comma.",
        ) from error
    with jax.default_device(device):
        yield
