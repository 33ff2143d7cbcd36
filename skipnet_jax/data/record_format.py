"""The keys of a record's image and label: found in the first records, or named by the user.

Every writer of shards has keys of its own: tf-slim `image/encoded` and `image/class/label`, TensorFlow Datasets `image`
and `label`, the tutorials `image_raw` with `height` and `width`. The content of a value identifies an image, and the
name of a key a label.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxtyping import Int64

from skipnet_jax.errors import DataError, UserError

# Kinds of labels: a whole number, a whole number stored as a float or as text, or the name of the class.
NUMBER, FLOAT, DIGITS, TEXT = "number", "float", "digits", "text"
KINDS = (NUMBER, FLOAT, DIGITS, TEXT)
# How many records of the first shard to look at.
LOOKED_AT = 8

# The last words of a label's key, and of the keys of an image's sides and file name; the first that occurs counts.
_LABELS = (
    "class label", "label", "labels", "class id", "class index", "class idx", "class", "label id", "label index", "lbl",
    "cls", "target", "category id", "category", "y",
)  # fmt: skip
_HEIGHTS, _WIDTHS = ("height", "rows", "h"), ("width", "cols", "columns", "w")
_FILENAMES = ("filename", "file name", "image id", "path", "key")
_CHANNELS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordFormat:
    """The keys of a record, a tf.Example. The default is tf-slim's.

    Args:
      image: key of the image file, or of raw pixels (a byte per value, row by row).
      label: key of the label.
      kind: of the label, one of `KINDS`.
      filename: key of a name for messages; empty = none.
      height, width: keys of the sides of raw pixels; empty = the image is a file.
    """

    image: str = "image/encoded"
    label: str = "image/class/label"
    kind: str = NUMBER
    filename: str = "image/filename"
    height: str = ""
    width: str = ""

    def fields(self, serialized: Any) -> dict[str, Any]:
        """Parses a record (string scalar) into key -> value, as a TensorFlow operation.

        Raises:
          tf.errors.InvalidArgumentError: the record lacks a key; raised when it is read.
        """
        import tensorflow as tf

        kinds = {NUMBER: tf.int64, FLOAT: tf.float32, DIGITS: tf.string, TEXT: tf.string}
        features = {
            self.image: tf.io.FixedLenFeature([], tf.string),
            self.label: tf.io.FixedLenFeature([], kinds[self.kind]),
            **({self.filename: tf.io.FixedLenFeature([], tf.string, default_value="")} if self.filename else {}),
            **{key: tf.io.FixedLenFeature([], tf.int64) for key in (self.height, self.width) if key},
        }
        return tf.io.parse_single_example(serialized, features)

    def encoded(self, fields: dict[str, Any]) -> Any:
        """The image file of a record (string scalar), as a TensorFlow operation. Raw pixels become a PNG file."""
        import tensorflow as tf

        if not self.height:
            return fields[self.image]
        shape = tf.stack([fields[self.height], fields[self.width], -1])
        # Hardly slower than passing the pixels on, and the rest of the input sees only files.
        return tf.io.encode_png(tf.reshape(tf.io.decode_raw(fields[self.image], tf.uint8), shape), compression=0)

    def parser(self, class_names: Sequence[str]) -> Callable[[Any], tuple[Any, Int64[Any, ""]]]:
        """Returns the function from a record to its image file and its label, in TensorFlow operations.

        Args:
          class_names: the labels that are words, in the order of their numbers; an unknown word becomes -1.
        """
        import tensorflow as tf

        names = tf.constant([os.fsencode(name) for name in class_names]) if self.kind == TEXT else None

        def label_of(value: Any) -> Any:
            if self.kind == DIGITS:
                return tf.strings.to_number(tf.strings.strip(value), tf.int64)
            if self.kind == TEXT:
                same = tf.equal(names, value)
                return tf.where(tf.reduce_any(same), tf.argmax(same), tf.constant(-1, tf.int64))
            if self.kind == FLOAT:
                whole = tf.cast(tf.round(value), tf.int64)
                return tf.where(tf.cast(whole, tf.float32) == value, whole, tf.constant(-(2**62), tf.int64))
            return value

        def parse(serialized: Any) -> tuple[Any, Any]:
            fields = self.fields(serialized)
            return self.encoded(fields), label_of(fields[self.label])

        return parse


def find(records: Iterable[bytes], place: str, *, image_key: str = "", label_key: str = "") -> RecordFormat:
    """Finds the keys of the images and labels.

    Args:
      records: the first ones of a shard.
      place: the shard, for messages.
      image_key, label_key: keys that the user has named; empty = look for them.

    Raises:
      DataError: the records hold no image or no label, or several.
      UserError: a named key is missing, or holds something else.
    """
    import tensorflow as tf
    from google.protobuf import message

    try:
        examples = [dict(tf.train.Example.FromString(record).features.feature) for record in records]
    except message.DecodeError:
        examples = []
    if not examples or not any(examples):
        raise DataError(f"{place}, record 0", "no tf.Example", "TFRecords of tf.Example messages with an image each")
    keys = sorted(set.intersection(*(set(example) for example in examples)))
    seen = {key: [_values(example[key]) for example in examples] for key in keys}
    listing = f"the keys {', '.join(f'{key} ({_describe(seen[key])})' for key in keys)}"
    single = [key for key in keys if all(len(values) == 1 for values in seen[key])]
    height, width = (_named(single, words, seen, int) for words in (_HEIGHTS, _WIDTHS))
    image, raw = _find_image(single, seen, height, width, listing, place, image_key)
    label = _find_label([key for key in single if key != image], seen, listing, place, label_key)
    value = seen[label][0][0]
    return RecordFormat(
        image=image,
        label=label,
        kind=NUMBER if isinstance(value, int) else FLOAT if isinstance(value, float) else TEXT,
        filename=_named([key for key in single if key not in (image, label)], _FILENAMES, seen, bytes),
        height=height if raw else "",
        width=width if raw else "",
    )


def _find_image(
    single: list[str], seen: dict[str, Any], height: str, width: str, listing: str, place: str, given: str
) -> tuple[str, bool]:
    """Returns the key of the image, and whether it holds raw pixels."""
    from skipnet_jax.data import decoding

    def is_file(key: str) -> bool:
        return any(not decoding.why_undecodable(value) for (value,) in seen[key])

    def is_raw(key: str) -> bool:
        if not (height and width):
            return False
        sides = zip(seen[key], seen[height], seen[width], strict=True)
        return all(len(value) in [h * w * c for c in _CHANNELS] for (value,), (h,), (w,) in sides)

    if given and given not in single:
        raise UserError("image_key", f"{given!r}, but {place} has {listing}", "one of them", "Change `image_key`.")
    texts = [key for key in ([given] if given else single) if isinstance(seen[key][0][0], bytes)]
    images = [key for key in texts if is_file(key)]
    pixels = [] if images else [key for key in texts if is_raw(key)]
    if len(images) + len(pixels) == 1:
        return (images or pixels)[0], bool(pixels)
    expected = "one image file in each record, or raw pixels (a byte per value) with height and width"
    if given:
        raise UserError("image_key", f"{given!r}, which holds no image in {place}", expected, "Change `image_key`.")
    if found := images or pixels:
        mend = f"Choose one, for example with `image_key`={found[0]}."
        raise DataError(place, f"images in {' and in '.join(found)}", "one image in each record", mend)
    raise DataError(place, listing, expected, "If one of them holds it, give `image_key`.")


def _find_label(keys: list[str], seen: dict[str, Any], listing: str, place: str, given: str) -> str:
    if given and given not in keys:
        expected = "one of them other than the image's, with one value in each record"
        raise UserError("label_key", f"{given!r}, but {place} has {listing}", expected, "Change `label_key`.")
    if given:
        return given
    for words in _LABELS:
        found = [key for key in keys if _words(key).endswith(f" {words}")]
        found = [key for key in found if _words(key) == f" {words}"] or found
        if len(found) == 1:
            return found[0]
        if found:
            mend = f"Choose one, for example with `label_key`={found[0]}."
            raise DataError(place, f"labels in {' and in '.join(found)}", "one label in each record", mend)
    expected = "a label too, such as image/class/label or label, with one value in each record"
    raise DataError(place, listing, expected, "If another key holds the label, give `label_key`.")


def _named(keys: list[str], names: tuple[str, ...], seen: dict[str, Any], kind: type) -> str:
    """The first key that ends in one of the names and has values of the kind; empty if there is none."""
    fitting = [key for key in keys if isinstance(seen[key][0][0], kind)]
    return next((key for name in names for key in fitting if _words(key).endswith(f" {name}")), "")


def _words(key: str) -> str:
    """The words of a key, in lower case, each after a space: " image class label"."""
    return " " + " ".join(re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", key).lower()))


def _values(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def _describe(values: list[list[Any]]) -> str:
    first = values[0]
    if not first:
        return "empty"
    kind = {bytes: "bytes", int: "whole number", float: "float"}[type(first[0])]
    return kind if len(first) == 1 else f"{len(first)} x {kind}"
