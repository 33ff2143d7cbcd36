"""Finds the image and the label among the features of a data set of TensorFlow Datasets (TFDS).

The user names them, or the data set does (its supervised keys), or it has only one of each.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from skipnet_jax.errors import UserError
from skipnet_jax.specs import DataSpec

_CHANNELS = (1, 3, 4)
# Square images that all have one size, up to this many pixels a side, are not photographs: evaluation shows them whole.
_SMALL = 128
# Room for the right labels of an image, where there may be several; most images have one or two.
SEVERAL = 32


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature, and its place among the features.

    Args:
      path: keys of the nested dicts that lead to it.
      kind: TFDS's own description.
    """

    path: tuple[str, ...]
    kind: Any

    @property
    def key(self) -> str:
        """The name that users see and give, as in attributes/Smiling."""
        return "/".join(self.path)

    def nested(self, leaf: Any) -> dict[str, Any]:
        """A dict of dicts with the leaf in the feature's place."""
        for key in reversed(self.path):
            leaf = {key: leaf}
        return leaf

    def of(self, example: Any) -> Any:
        """The feature's value in an example."""
        for key in self.path:
            example = example[key]
        return example


@dataclasses.dataclass(frozen=True)
class Pair:
    """The image and the label of a data set."""

    image: Feature
    label: Feature

    @property
    def several(self) -> bool:
        """Whether an image may have several right labels."""
        return are_class_labels(self.label.kind)

    @property
    def label_width(self) -> int:
        """As in `encoded.EncodedSplit`."""
        return SEVERAL if self.several else 0

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes; None if they have to be learnt from the labels."""
        kind = self.label.kind.feature if self.several else self.label.kind
        return tuple(kind.names) if _is_class_label(kind) else None

    @property
    def side(self) -> int:
        """The side in pixels if all images are small squares of one size; otherwise 0."""
        height, width = self.image.kind.shape[:2]
        return height if height is not None and height == width and height <= _SMALL else 0


def find(builder: Any, spec: DataSpec) -> Pair:
    """Finds the image and the label among the features that the builder describes.

    Raises:
      UserError: there is no image or no label, or several, or not the ones that the spec names.
    """
    features = _flat(builder.info.features)
    named = [key for key in builder.info.supervised_keys or () if isinstance(key, str)]  # there are dicts too
    supervised = [features[key] for key in named if key in features]

    def choose_image() -> Feature:
        return _choose("image_key", spec.image_key, spec, features, supervised, _is_image_or_pixels, (is_image,))

    if not any(_is_image_or_pixels(feature.kind) for feature in features.values()):
        choose_image()  # says what is lacking
    clear = (_is_class_label, are_class_labels)
    label = _choose("label_key", spec.label_key, spec, features, supervised, _is_label, clear)
    return Pair(choose_image(), label)


def _choose(
    field: str,
    named: str,
    spec: DataSpec,
    features: Mapping[str, Feature],
    supervised: Sequence[Feature],
    usable: Callable[[Any], bool],
    clear: Sequence[Callable[[Any], bool]],
) -> Feature:
    """Chooses a feature: the named one, else the data set's own, else the only one of the first clear kind."""
    if named in features and usable(features[named].kind):
        return features[named]
    top = sorted((f for f in features.values() if len(f.path) == 1), key=lambda f: f.key)  # TFDS keeps no order
    offers = [[feature for feature in supervised if test(feature.kind)] for test in (*clear, usable)]
    offers += [[feature for feature in top if test(feature.kind)] for test in clear]
    offered = next((offer for offer in offers if offer), [])
    if len(offered) == 1 and not named:
        return offered[0]
    all_usable = sorted(key for key, feature in features.items() if usable(feature.kind))
    what = "an image" if field == "image_key" else "a class label"
    if named and all_usable:
        got = f"{named!r}, which is {_kind(features[named]) if named in features else 'none of its features'}"
        near = difflib.get_close_matches(named, all_usable, n=len(all_usable), cutoff=0)
        raise UserError(f"data.{field}", got, f"{what} of {spec.name}: {' or '.join(near)}", f"Change `data.{field}`.")
    if offered:
        names = " or ".join(sorted(feature.key for feature in offered))
        raise UserError(f"data.{field}", f"nothing for {spec.name}", f"one of its {names}", f"Give `data.{field}`.")
    found = ", ".join(f"{feature.key} ({_kind(feature)})" for feature in top)
    raise UserError(
        "data.name",
        f"{spec.name}, which lacks {what} for each example: it has {found}",
        "a data set of images with one label each",
        f"Change `data.name`{f', or give `data.{field}`' if all_usable else ''}.",
    )


def _flat(features: Any) -> dict[str, Feature]:
    """Features by `Feature.key`, including those of nested dicts."""
    import tensorflow_datasets as tfds

    found: dict[str, Feature] = {}
    if not isinstance(features, tfds.features.FeaturesDict):
        return found
    for key, kind in features.items():
        found[key] = Feature((key,), kind)
        for inner in _flat(kind).values():
            found[f"{key}/{inner.key}"] = Feature((key, *inner.path), inner.kind)
    return found


def _kind(feature: Feature) -> str:
    """Describes a feature in TFDS's words."""
    kind = feature.kind
    shape = tuple(kind.shape) if isinstance(getattr(kind, "shape", None), tuple) else ()
    return type(kind).__name__ + (f" of shape {shape}" if shape else "")


def is_image(kind: Any) -> bool:
    """Whether a feature is an image file with 8 or 16 bits a value, and not a mask of labels."""
    import tensorflow_datasets as tfds

    if not isinstance(kind, tfds.features.Image) or isinstance(kind, tfds.features.LabeledImage):
        return False
    return kind.np_dtype in (np.uint8, np.uint16) and kind.shape[2] in (None, *_CHANNELS)


def _is_image_or_pixels(kind: Any) -> bool:
    import tensorflow_datasets as tfds

    pixels = type(kind) is tfds.features.Tensor and len(kind.shape) == 3 and kind.shape[2] in _CHANNELS
    return is_image(kind) or (pixels and kind.np_dtype == np.uint8)


def _is_class_label(kind: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(kind, tfds.features.ClassLabel) and kind.num_classes is not None


def are_class_labels(kind: Any) -> bool:
    """Whether a feature lists any number of classes."""
    import tensorflow_datasets as tfds

    return isinstance(kind, tfds.features.Sequence) and _is_class_label(kind.feature)


def _is_label(kind: Any) -> bool:
    """Whether a feature may be a label: a class, or a number or text, though many of those are not labels."""
    import tensorflow_datasets as tfds

    if _is_class_label(kind) or are_class_labels(kind):
        return True
    is_text = isinstance(kind, tfds.features.Text)
    scalar = isinstance(kind, tfds.features.Tensor) and kind.shape == () and not is_text
    return is_text or (scalar and (kind.np_dtype == np.bool_ or np.issubdtype(kind.np_dtype, np.integer)))
