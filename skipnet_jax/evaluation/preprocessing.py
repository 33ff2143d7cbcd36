"""What has to happen to an image before a network sees it, in a form that travels with the network.

    preprocessing.json

lies in every exported folder. Whoever runs an exported network needs nothing of this project but these few numbers.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from skipnet_jax.data import image_files, statistics
from skipnet_jax.specs import DataSpec, Statistics

FILE = "preprocessing.json"

_Channels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a file becomes the network's input, and what its outputs mean.

    Args:
      model: name of the network.
      image_size: side of the square images that it sees, in pixels.
      mean, std: of each channel, for pixels scaled to 0..1: the input is (pixel / 255 - mean) / std.
      class_names: what the logits stand for, in their order.
      crop: what is shown of an image: "center" = 0.875 of the shorter side, or all of it from 384 pixels on; "whole" =
        all of the shorter side.

    Raises:
      ValueError: numbers that no image could be prepared with.
    """

    model: str
    image_size: int
    mean: _Channels
    std: _Channels
    class_names: tuple[str, ...]
    crop: str = image_files.CENTER

    def __post_init__(self) -> None:
        _require_valid(vars(self))

    @classmethod
    def of_data(cls, model: str, data: DataSpec, class_names: Sequence[str]) -> "Preprocessing":
        """That of evaluation on a data set.

        Args:
          model: name of the network.
          data: that it was trained on, and the image size.
          class_names: in the order of the labels.
        """
        channels = statistics.of_data(data.name)
        crop = image_files.crop_of(data.name)
        return cls(model, data.image_size, channels.mean, channels.std, tuple(class_names), crop)

    @property
    def statistics(self) -> Statistics:
        """What pixels are normalised with."""
        return Statistics(self.mean, self.std)

    def to_json(self) -> str:
        """The text of `preprocessing.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Preprocessing":
        """Reads what `to_json` wrote, strictly.

        Raises:
          ValueError: it is something else; the message says what.
        """
        try:
            content = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{FILE}: got no valid JSON ({error}), expected what an export wrote. {_MEND}") from error
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(content, dict) or sorted(content) != sorted(names):
            got = ", ".join(sorted(content)) if isinstance(content, dict) else f"a {type(content).__name__}"
            raise ValueError(f"{FILE}: got {got or 'nothing'}, expected {', '.join(sorted(names))}. {_MEND}")
        lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
        _require_valid(content | lists)  # types too, which the caller of the constructor knows
        return cls(**(content | lists))


_MEND = "Export the network again."


def load_image(
    image: str | os.PathLike[str] | bytes, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "{preprocessing.image_size} {preprocessing.image_size} 3"]:
    """Decodes and crops an image as evaluation does.

    Args:
      image: path of a file, local or gs://..., or what is in it.
      preprocessing: of the network.

    Returns:
      The square that the network sees, 0..255.

    Raises:
      DataError: there is no such file, or no image in it.
    """
    given = image if isinstance(image, bytes) else os.fspath(image)
    return image_files.read(given, size=preprocessing.image_size, crop=preprocessing.crop)


def normalize(images: UInt8[np.ndarray, "b h w 3"], preprocessing: Preprocessing) -> Float32[np.ndarray, "b h w 3"]:
    """The network's input: (pixel / 255 - mean) / std, in NumPy, for programs that run without JAX.

    Args:
      images: 0..255.
      preprocessing: of the network.
    """
    mean, std = (np.asarray(of, np.float32)[None, None, None] for of in (preprocessing.mean, preprocessing.std))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def _require_valid(fields: Mapping[str, Any]) -> None:
    model, size, std, names = (fields[name] for name in ("model", "image_size", "std", "class_names"))
    _require(isinstance(model, str) and model, "model", model, "the name of a network")
    _require(type(size) is int and size >= 1, "image_size", size, "a number of pixels")
    _require(_are_channels(fields["mean"]), "mean", fields["mean"], "three numbers")
    _require(_are_channels(std) and min(std) > 0, "std", std, "three numbers above 0")
    named = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    _require(named and len(names) > 1, "class_names", names, "two names or more")
    _require(fields["crop"] in image_files.CROPS, "crop", fields["crop"], f"one of {', '.join(image_files.CROPS)}")


def _are_channels(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(_is_number(number) for number in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(right: Any, name: str, got: Any, expected: str) -> None:
    if not right:
        raise ValueError(f"{FILE}: got {name}={got!r}, expected {expected}. {_MEND}")
