"""How an image file becomes a network's input, in a form that travels with the network.

Every exported folder has a `preprocessing.json`. Whoever runs an exported network needs only these few numbers, and
nothing else of this project.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8

from skipnet_jax import files
from skipnet_jax.data import image_files
from skipnet_jax.data import statistics as data_statistics
from skipnet_jax.errors import UserError
from skipnet_jax.specs import INTERPOLATIONS, DataSpec, Statistics

FILE = "preprocessing.json"
_FIELDS = {
    "model": str,
    "image_size": int,
    "mean": list[float],
    "std": list[float],
    "class_names": list[str],
    "crop": str,
}
_NEWER = {"crop_share": float, "interpolation": str, "background": list}  # left out at their defaults
_MEND = "Export the network again."
_WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a file becomes the network's input, and what its outputs mean.

    Args:
      image_size: side of the square images that the network sees, in pixels.
      statistics: the mean and standard deviation that normalise the pixels.
      class_names: one for each logit, in order.
      crop: which part of an image the network sees: "center" = the share `crop_share` of the shorter side, "whole" =
        all of the shorter side.
      crop_share: 0 = 0.875, or all of it from 384 pixels on.
      interpolation: of a "center" crop: bilinear or bicubic.
      background: red, green and blue (0..255) behind transparent pixels.
    """

    model: str
    image_size: int
    statistics: Statistics
    class_names: tuple[str, ...]
    crop: str = image_files.CENTER
    crop_share: float = 0.0
    interpolation: str = "bilinear"
    background: tuple[int, ...] = _WHITE

    @classmethod
    def of_data(
        cls, model: str, data: DataSpec, class_names: Sequence[str], crop: str | None = None
    ) -> "Preprocessing":
        """Describes what evaluation does to the images of a data set.

        Args:
          data: names the data set, and the image size.
          class_names: in the order of the labels.
          crop: which part of an image evaluation shows; None = by the name of the data set.
        """
        statistics = data_statistics.of_spec(data)
        return cls(
            model,
            data.image_size,
            statistics,
            tuple(class_names),
            crop or image_files.crop_of(data.name),
            data.eval_crop,
            data.interpolation,
            data.background,
        )

    def to_json(self) -> str:
        """Returns the text of `preprocessing.json`."""
        content = {
            "model": self.model,
            "image_size": self.image_size,
            **dataclasses.asdict(self.statistics),
            "class_names": self.class_names,
            "crop": self.crop,
            **({"crop_share": self.crop_share} if self.crop_share else {}),
            **({"interpolation": self.interpolation} if self.interpolation != "bilinear" else {}),
            **({} if self.background == _WHITE else {"background": self.background}),
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def read(cls, file: epath.PathLike) -> "Preprocessing":
        """Reads a `preprocessing.json`.

        Raises:
          UserError: the file holds something else; the message says what.
        """
        defaults: dict[str, Any] = {"crop_share": 0.0, "interpolation": "bilinear", "background": list(_WHITE)}
        content = defaults | files.read_record(file, _FIELDS, mend=_MEND)
        files.require_fields(content, _FIELDS | _NEWER, str(file), mend=_MEND)

        def require(right: bool, name: str, expected: str) -> None:
            if not right:
                raise UserError(f"{file}", f"{name}={content.get(name)!r}", expected, _MEND)

        for name in content:
            require(name in _FIELDS | _NEWER, name, f"nothing but {', '.join(_FIELDS | _NEWER)}")
        for name in ("mean", "std"):
            require(len(content[name]) == 3 and all(map(math.isfinite, content[name])), name, "three numbers")
        require(content["model"] != "", "model", "the name of a network")
        require(content["image_size"] >= 1, "image_size", "a number of pixels")
        require(min(content["std"]) > 0, "std", "three numbers above 0")
        require(len(content["class_names"]) > 1, "class_names", "two names or more")
        require(0 <= content["crop_share"] <= 1, "crop_share", "0..1")
        require(content["interpolation"] in INTERPOLATIONS, "interpolation", f"one of {', '.join(INTERPOLATIONS)}")
        require(content["crop"] in image_files.CROPS, "crop", f"one of {', '.join(image_files.CROPS)}")
        statistics = Statistics(_channels(content["mean"]), _channels(content["std"]))
        background = content["background"]
        colors = all(type(color) is int and 0 <= color <= 255 for color in background)
        require(colors and len(background) == 3, "background", "three numbers 0..255")
        return cls(
            content["model"],
            content["image_size"],
            statistics,
            tuple(content["class_names"]),
            content["crop"],
            float(content["crop_share"]),
            content["interpolation"],
            tuple(background),
        )


def load_image(
    image: str | os.PathLike[str] | bytes, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "{preprocessing.image_size} {preprocessing.image_size} 3"]:
    """Decodes and crops an image as evaluation does.

    Args:
      image: path of a file, local or gs://..., or the file's content.

    Returns:
      The square that the network sees, 0..255.

    Raises:
      DataError: the file is missing, or is not an image.
    """
    given = image if isinstance(image, bytes) else os.fspath(image)
    return image_files.read(
        given,
        size=preprocessing.image_size,
        crop=preprocessing.crop,
        share=preprocessing.crop_share,
        interpolation=preprocessing.interpolation,
        background=preprocessing.background,
    )


def normalize(images: UInt8[np.ndarray, "b h w 3"], statistics: Statistics) -> Float32[np.ndarray, "b h w 3"]:
    """Computes (pixel / 255 - mean) / std in NumPy, for programs that run without JAX.

    Args:
      images: 0..255.
    """
    mean, std = (np.asarray(channels, np.float32)[None, None, None] for channels in (statistics.mean, statistics.std))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def _channels(numbers: list[Any]) -> tuple[float, float, float]:
    red, green, blue = map(float, numbers)
    return red, green, blue
