"""`--mode=explain`: what the gates of a trained network let through, as pictures and as numbers.

    gates.png            the mean over the run's test images
    gates_by_class.png   how each class differs from it
    gates_image_0.png    single images, each beside its map
    gates.json           all of these numbers

Each picture is there as .svg too.
"""

import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax import files
from skipnet_jax.data import sources
from skipnet_jax.evaluation import gate_maps, gates, heat_maps, preprocessing, scoring
from skipnet_jax.evaluation.predictor import Predictor, load_workdir
from skipnet_jax.models import build_network, model_info
from skipnet_jax.models.network import Network
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import sharding

FOLDER = "explain"
MAPS, CLASS_MAPS, IMAGE_MAPS, NUMBERS = "gates", "gates_by_class", "gates_image_", "gates.json"
SINGLE_IMAGES = 3  # where the user names none
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
    """Draws and writes the gate weights of a run over its test images, and over single ones; on one host.

    Args:
      path: the workdir of a run.
      checkpoint: best (by validation accuracy), latest, or a step.
      images: files to explain one by one; none = the first test images of different classes.
      out: the folder for the results; None = WORKDIR/explain.
      data_dir: where the data set is; None = where the run has it.

    Returns:
      The weights over the test images.

    Raises:
      ValueError: there is no run or no such checkpoint, its network has no gates, an image cannot be read, or the
        folder cannot be written.
    """
    workdir = workdirs.locate(path)
    spec = weights.read_spec(workdir)
    if data_dir is not None:
        spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, dir=data_dir))
    predictor = load_workdir(workdir, checkpoint)
    model = build_network(spec.model)
    gates.find_sections(model)  # an error if it has no gates, before anything long
    singles = [
        _Image(epath.Path(file).name, preprocessing.load_image(file, predictor.preprocessing)) for file in images
    ]
    folder = workdir / FOLDER if out is None else workdirs.locate(out)
    _make(folder)
    source = sources.load(spec.data, "test")
    mesh = sharding.make_mesh()
    measured = gates.measure(
        model,
        sharding.replicate(predictor.variables, mesh),
        scoring.batches(source, spec, mesh),
        num_classes=spec.model.num_classes,
        statistics=source.statistics,
        mesh=mesh,
    )
    singles = singles or list(_one_of_each_class(source, spec))
    _write(folder, model, predictor, measured, singles, f"{measured.counts.sum():,} test images of {source.name}")
    return measured


def _make(folder: epath.Path) -> None:
    """Makes the folder for the results, before the long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        local = "://" not in str(folder)
        if local and not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"--out: got {folder}, which cannot be written ({error.strerror or error}), expected a folder that can. "
            f"Give another --out=DIR."
        ) from error


def _one_of_each_class(source: sources.Source, spec: TrainSpec) -> Iterator[_Image]:
    """The first test image of each of the first classes that come."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    seen: set[int] = set()
    number = 0
    for batch in scoring.batches(source, spec, mesh):
        for pixels, label, counts in zip(batch["image"], batch["label"], batch["mask"], strict=True):
            if counts and int(label) not in seen:
                seen.add(int(label))
                yield _Image(f"test image {number}, class {source.class_names[label]!r}", pixels)
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
    """Writes all pictures and the numbers."""
    network = model_info(predictor.preprocessing.model).published_name
    class_names = predictor.preprocessing.class_names
    gate_maps.draw_gates(measured, f"{network}: what each block draws from earlier states, {images}", folder / MAPS)
    gate_maps.draw_classes(measured, class_names, f"{network}: how classes differ, {images}", folder / CLASS_MAPS)
    records = []
    for i, single in enumerate(singles):
        weights, prediction, probability = _look_at(model, predictor, single)
        title = f"{network} on {single.name}: predicts {prediction!r} ({probability:.0%})"
        gate_maps.draw_image(single.pixels, measured.sections, weights, title, folder / f"{IMAGE_MAPS}{i}")
        records.append({"image": single.name, "prediction": prediction, **_record(weights)})
    numbers = {
        "model": predictor.preprocessing.model,
        "images": int(measured.counts.sum()),
        "links": [
            {"block": block, "output_of": heat_maps.state_name(state)}
            for section in measured.sections
            for block, state in section.links
        ],
        "overall": _record(measured.overall),
        "spread": [round(number, DIGITS) for number in measured.spread.tolist()],
        "classes": [
            {"class": name, "images": int(count), **_record(weights)}
            for name, count, weights in zip(class_names, measured.counts, measured.by_class, strict=True)
            if weights is not None
        ],
        "single_images": records,
    }
    files.write_json(folder / NUMBERS, numbers)
    print(f"gates of {network} over {images}: written to {folder}", flush=True)


def _look_at(model: Network, predictor: Predictor, image: _Image) -> tuple[gates.Weights, str, float]:
    """The weights of one image, and what the network takes it for, with what probability."""
    settings = predictor.preprocessing
    weights = gates.measure_image(model, predictor.variables, image.pixels, statistics=settings.statistics)
    [[(prediction, probability)]] = predictor.predict(image.pixels[None], top=1)
    return weights, prediction, probability


def _record(weights: gates.Weights) -> dict[str, Any]:
    """As JSON: the states in the order of the links, the branches in that of the blocks."""
    parts = {"states": weights.states} | ({} if weights.branch is None else {"branch": weights.branch})
    return {name: [round(number, DIGITS) for number in values.tolist()] for name, values in parts.items()}
