"""Exported networks, read back and run.

    artifact = load_artifact("runs/digits/export/onnx")
    artifact.logits(np.stack([load_image(file, artifact.preprocessing) for file in files]))

An exported folder holds the network in its format, and

    preprocessing.json      how to prepare images, and the names of the classes
    export.json             the network, its checkpoint, and how far its logits are from the original's

Exports compute in float32, whatever the run's dtype.
"""

import dataclasses
import typing

import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import preprocessing as preprocess
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.exports.formats import FORMATS, Program, require_libraries
from skipnet_jax.runs import workdir
from skipnet_jax.specs import ModelSpec

RECORD = "export.json"
_MEND = "Export the network again."


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An exported network; works wherever a `Predictor` does.

    Args:
      preprocessing: how to prepare its images, and the names of its classes.
      program: from normalised images to logits.
    """

    format: str
    preprocessing: Preprocessing
    program: Program

    def logits(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b k"]:
        """Classifies images that `preprocessing.load_image` made.

        Raises:
          UserError: the images have another size, there are none, or the class names do not fit the network.
        """
        size, names = self.preprocessing.image_size, self.preprocessing.class_names
        if not len(images) or images.shape[1:] != (size, size, 3):
            raise UserError("images", f"{list(images.shape)}", f"[b, {size}, {size}, 3] with b >= 1")
        logits = np.asarray(self.program(preprocess.normalize(images, self.preprocessing.statistics)), np.float32)
        if logits.shape != (len(images), len(names)):
            got = f"{len(names)} class_names for logits {list(logits.shape)}"
            raise UserError(preprocess.FILE, got, "one name per class", _MEND)
        return logits


def load_artifact(path: epath.PathLike) -> Artifact:
    """Reads an export of any format.

    Args:
      path: a local folder.

    Raises:
      UserError: the folder is no export, is damaged, or needs a library that is not installed.
    """
    folder = workdir.locate(path)
    format, spec = _read_record(folder)
    require_libraries(format)
    file = folder / preprocess.FILE
    if not file.exists():
        raise UserError(f"{folder}", f"no {preprocess.FILE}", f"one beside {RECORD}", _MEND)
    preprocessing = Preprocessing.read(file)
    if preprocessing.model != spec.name:
        raise UserError(f"{file}", f"model={preprocessing.model!r}", f"{spec.name!r} as in {RECORD}", _MEND)
    try:
        return Artifact(format, preprocessing, FORMATS[format].read(folder, spec))
    except UserError:
        raise
    except Exception as error:  # each library has its own exceptions for missing and damaged files
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UserError(f"{folder}", f"an unreadable {format} export ({reason})", "whole files", _MEND) from error


def _read_record(folder: epath.Path) -> tuple[str, ModelSpec]:
    """Reads the format and the network's settings from export.json.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    file = folder / RECORD
    if not file.exists():
        raise UserError(
            f"{folder}",
            f"no {RECORD}",
            "an exported folder",
            "Make one: python -m skipnet_jax.main --mode=export --workdir=WORKDIR --format=onnx.",
        )
    record = files.read_record(file, {"format": str, "network": dict}, mend=_MEND)
    if record["format"] not in FORMATS:
        raise UserError(f"{file}", f"format={record['format']!r}", f"one of {', '.join(FORMATS)}", _MEND)
    network, kinds = record["network"], typing.get_type_hints(ModelSpec)
    for unknown in network.keys() - kinds:
        raise UserError(f"{file}, network", f"the unknown field {unknown!r}", f"only {', '.join(kinds)}", _MEND)
    needed = {name: kinds[name] for name in ("name", "num_classes", *network)}  # earlier versions had fewer settings
    files.require_fields(network, needed, f"{file}, network", mend=_MEND)
    try:
        return record["format"], ModelSpec(**network)
    except UserError as error:
        raise UserError(f"{file}, network", f"{error.field}={error.got}", error.expected, _MEND) from error
