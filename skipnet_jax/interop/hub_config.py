"""What a weight file's companions say about it: the `config.json` of the Hugging Face hub, timm's `pretrained_cfg`."""

import collections
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from skipnet_jax.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic")
_MEND = "Correct it, or take it out."


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How images were prepared for the weights; None = unknown.

    Args:
      image_size: side of the square images, in pixels.
      mean, std: of each channel, for pixels scaled to 0..1.
      crop: share of the shorter side that the network sees, 0..1.
      interpolation: one of `INTERPOLATIONS`.
    """

    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop: float | None = None
    interpolation: str | None = None


UNKNOWN = Preparation()


@dataclasses.dataclass(frozen=True)
class Companion:
    """What is known about weights besides their numbers.

    Args:
      model: what the file calls the network.
      class_names: in the order of the logits; empty = unknown.
    """

    model: str | None = None
    preparation: Preparation = UNKNOWN
    class_names: tuple[str, ...] = ()


def read(place: str, config: Mapping[str, Any]) -> Companion:
    """Reads the content of a `config.json`, or a dict with a `pretrained_cfg` in it.

    Args:
      place: the file, for messages.
      config: "architecture", "label_names" or "id2label", and "pretrained_cfg" or its fields, as far as present.

    Raises:
      UserError: a field has an invalid value.
    """
    settings = config.get("pretrained_cfg")
    settings = {**config, **settings} if isinstance(settings, Mapping) else config
    model = config.get("architecture") or settings.get("architecture")
    names = _class_names(place, config, settings)
    return Companion(model if isinstance(model, str) else None, _preparation(place, settings), names)


def _preparation(place: str, settings: Mapping[str, Any]) -> Preparation:
    size = settings.get("input_size")
    image_size = None
    if size is not None:
        fits = isinstance(size, Sequence) and len(size) == 3 and size[0] == 3 and size[1] == size[2]
        if not fits or type(size[1]) is not int or size[1] < 8:
            raise UserError(place, f"input_size={size!r}", "[3, n, n], square images of three channels", _MEND)
        image_size = size[1]
    crop = settings.get("crop_pct")
    if crop is not None and not (type(crop) in (int, float) and 0 < crop <= 1):
        raise UserError(place, f"crop_pct={crop!r}", "a share above 0 and up to 1", _MEND)
    interpolation = settings.get("interpolation")
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise UserError(place, f"interpolation={interpolation!r}", f"one of {', '.join(INTERPOLATIONS)}", _MEND)
    crop_mode = settings.get("crop_mode")
    if crop_mode not in (None, "center"):
        raise UserError(place, f"crop_mode={crop_mode!r}", "center, the only way to crop here", _MEND)
    mean, std = (_channels(place, name, settings.get(name)) for name in ("mean", "std"))
    if std is not None and min(std) <= 0:
        raise UserError(place, f"std={std!r}", "numbers above 0", _MEND)
    if (mean is None) != (std is None):
        raise UserError(place, "only one of mean and std", "both, or none", _MEND)
    return Preparation(image_size, mean, std, None if crop is None else float(crop), interpolation)


def _channels(place: str, name: str, value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, Sequence) and len(value) == 3 and all(type(x) in (int, float) for x in value)
    if not numbers or not all(abs(x) <= sys.float_info.max for x in value):  # neither NaN nor beyond all floats
        raise UserError(place, f"{name}={value!r}", "three numbers", _MEND)
    red, green, blue = map(float, value)
    return red, green, blue


def _class_names(place: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    names = next((source["label_names"] for source in (config, settings) if source.get("label_names")), None)
    by_number = config.get("id2label")
    if names is None and isinstance(by_number, Mapping) and by_number:
        numbers = sorted(by_number, key=lambda key: int(key) if re.fullmatch(r"\d{1,9}", str(key)) else -1)
        if [str(key) for key in numbers] != [str(number) for number in range(len(numbers))]:
            raise UserError(place, f"id2label for {', '.join(map(str, numbers[:5]))}, ...", "0, 1, 2, ...", _MEND)
        names = [by_number[key] for key in numbers]
        if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):  # what transformers writes for unknown names
            return ()
    if names is None:
        return ()
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(place, "label_names that are no list of texts", "the names of the classes, in order", _MEND)
    if len(set(names)) < len(names):
        [(double, _)] = collections.Counter(names).most_common(1)
        raise UserError(place, f"the class name {double!r} twice", "different names", _MEND)
    return tuple(names)
