"""Shows what the gates of a trained network let through (`--mode=explain`), in pictures and numbers.

    gates.png            the mean over the run's test images
    gates_by_class.png   how each class differs from it
    gates_image_0.png    single images, each beside its map
    gates.json           all of these numbers

Each picture is written as .svg too.
"""

import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax import files
from skipnet_jax.data import splits
from skipnet_jax.evaluation import gate_maps, gates, heat_maps, learnt_classes, preprocessing, scoring
from skipnet_jax.evaluation.predictor import Predictor, from_weights
from skipnet_jax.models import build_network, model_info
from skipnet_jax.models.network import Network
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import sharding

FOLDER = "explain"
MAPS, CLASS_MAPS, IMAGE_MAPS, NUMBERS = "gates", "gates_by_class", "gates_image_", "gates.json"
SINGLE_IMAGES = 3  # if the user names none
DIGITS = 5


@dataclasses.dataclass(frozen=True)
class _Image:
    name: str
    pixels: UInt8[np.ndarray, "s s 3"]


def explain_workdir(
    path: epath.PathLike,
    checkpoint: str = "best",
    *,
    images: Sequence[str] = (),
    out: epath.PathLike | None = None,
    data_dir: str | None = None,
) -> gates.Gates:
    """Draws and writes the gate weights of a run, over its test images and for single images. Runs on one host.

    Args:
      path: the workdir of a run, or of converted weights.
      checkpoint: best (by validation accuracy, the average's if there is one), latest, or a step.
      images: files to explain one by one; none = the first test images of different classes.
      out: the folder for the results; None = WORKDIR/explain.
      data_dir: where the data set is; None = where the run has it.

    Returns:
      The gate weights over the test images.

    Raises:
      UserError: there is no run or no such checkpoint, its network has no gates or has learnt other classes, an image
        cannot be read, or the folder cannot be written.
    """
    workdir = workdirs.locate(path)
    loaded = weights.load(workdir, checkpoint)
    spec = loaded.spec
    if data_dir is not None:
        spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, dir=data_dir))
    model = build_network(spec.model)
    gates.find_sections(model)  # refuses a network without gates, before the long work
    predictor = from_weights(workdir, loaded)
    singles = [
        _Image(epath.Path(file).name, preprocessing.load_image(os.path.expanduser(file), predictor.preprocessing))
        for file in images  # no shell replaces the ~ of --images=~/photo.jpg
    ]
    folder = workdir / FOLDER if out is None else workdirs.locate(out)
    _make(folder)
    names = workdirs.read_class_names(workdir)
    split, data = learnt_classes.load_in_order(spec.data, names, spec.model.num_classes)
    spec = dataclasses.replace(spec, data=data)
    mesh = sharding.make_mesh()
    measured = gates.measure(
        model,
        sharding.replicate(predictor.variables, mesh),
        scoring.batches(split, spec, mesh),
        num_classes=spec.model.num_classes,
        statistics=split.statistics,
        mesh=mesh,
    )
    singles = singles or list(_first_of_each_class(split, spec))
    _write(folder, model, predictor, measured, singles, f"{measured.counts.sum():,} test images of {split.name}")
    return measured


def _make(folder: epath.Path) -> None:
    """Makes the folder for the results, before the long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if files.is_local(folder) and not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise files.unwritable("out", folder, error) from error


def _first_of_each_class(split: splits.DataSplit, spec: TrainSpec) -> Iterator[_Image]:
    """Yields the first test images of different classes."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    seen: set[int] = set()
    number = 0
    for batch in scoring.batches(split, spec, mesh):
        for pixels, label, counts in zip(batch["image"], batch["label"], batch["mask"], strict=True):
            if counts and int(label) not in seen:
                seen.add(int(label))
                yield _Image(f"test image {number}, class {split.class_names[label]!r}", pixels)
            number += 1
            if len(seen) == SINGLE_IMAGES:
                return


def _write(
    folder: epath.Path,
    model: Network,
    predictor: Predictor,
    measured: gates.Gates,
    singles: Sequence[_Image],
    images: str,
) -> None:
    """Writes all pictures, and the numbers behind them."""
    settings = predictor.preprocessing
    network, class_names = model_info(settings.model).published_name, settings.class_names
    gate_maps.draw_gates(measured, f"{network}: what each block draws from earlier states, {images}", folder / MAPS)
    gate_maps.draw_classes(measured, class_names, f"{network}: how classes differ, {images}", folder / CLASS_MAPS)
    records = []
    for i, single in enumerate(singles):
        own = gates.measure_image(model, predictor.variables, single.pixels, statistics=settings.statistics)
        [[(prediction, probability)]] = predictor.predict(single.pixels[None], top=1)
        title = f"{network} on {single.name}: predicts {prediction!r} ({probability:.0%})"
        gate_maps.draw_image(single.pixels, measured.sections, own, title, folder / f"{IMAGE_MAPS}{i}")
        records.append({"image": single.name, "prediction": prediction, **_record(own)})
    for file in folder.glob(f"{IMAGE_MAPS}*"):  # of an earlier call with more images
        number = file.stem.removeprefix(IMAGE_MAPS)
        if number.isdecimal() and int(number) >= len(singles):
            file.unlink()
    numbers = {
        "model": settings.model,
        "images": int(measured.counts.sum()),
        "links": [
            {"block": block, "output_of": heat_maps.state_name(state)}
            for section in measured.sections
            for block, state in section.links
        ],
        "overall": _record(measured.overall),
        "spread": [round(number, DIGITS) for number in measured.spread.tolist()],
        "classes": [
            {"class": name, "images": int(count), **_record(mean)}
            for name, count, mean in zip(class_names, measured.counts, measured.by_class, strict=True)
            if mean is not None
        ],
        "single_images": records,
    }
    files.write_json(folder / NUMBERS, numbers)
    print(f"gates of {network} over {images}: written to {folder}", flush=True)


def _record(mean: gates.GateWeights) -> dict[str, list[float]]:
    """For JSON: the states' weights in the order of the links, the branches' in the order of the blocks."""
    parts = {"states": mean.states} | ({} if mean.branch is None else {"branch": mean.branch})
    return {name: [round(number, DIGITS) for number in values.tolist()] for name, values in parts.items()}
