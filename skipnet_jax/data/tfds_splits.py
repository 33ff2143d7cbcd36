"""Divides the records of a data set of TensorFlow Datasets (TFDS) into training, hold-out and test records.

`data.train_split`, `data.test_split` and `data.holdout` take TFDS's own split language: train[:90%], validation+test.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from skipnet_jax.data import holdout, layout
from skipnet_jax.data.tfrecords import Shard
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec


@dataclasses.dataclass(frozen=True)
class Part:
    """The records start..stop - 1 of a split."""

    split: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Use:
    """The records for one purpose.

    Args:
      parts: in order; empty = there are no such records.
      place: what messages call them.
    """

    parts: tuple[Part, ...] = ()
    place: str = ""

    @property
    def count(self) -> int:
        """Number of records."""
        return sum(part.stop - part.start for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Uses:
    """The records for each purpose. With a number in `data.holdout`, `train` still contains the hold-out."""

    train: Use
    holdout: Use
    test: Use


def find(builder: Any, spec: DataSpec, *, is_labelled: Callable[[str], bool]) -> Uses:
    """Finds the records for each purpose.

    Without `data.test_split`, the test images are the data set's own, or else its validation images. With training,
    validation and test images, the validation images choose the best checkpoint. Held-out images are not trained on. If
    validation images stand in for test images and all of them are held out, there are no test images.

    Args:
      builder: of a prepared data set.
      is_labelled: says whether the images of a split have labels; ImageNet's test images have none.

    Raises:
      UserError: the spec names splits that do not exist, or holds out everything.
    """
    train, validation, test = (
        next((name for name in builder.info.splits if name in names), "")
        for names in (layout.TRAIN, layout.VALIDATION, layout.TEST)
    )
    note = " (there are no test images)"
    if test and validation and not spec.test_split and not is_labelled(test):
        test, note = "", f" (the images of {test} have no labels)"
    tested = spec.test_split or test or validation
    place = f"{tested}{note}" if tested == validation and not spec.test_split else tested
    uses = Uses(
        _use(builder, "data.train_split", spec.train_split or train),
        Use(),
        dataclasses.replace(_use(builder, "data.test_split", tested), place=place),
    )
    kept = holdout.parse(spec.holdout)
    three = train and validation and test and not (spec.train_split or spec.test_split)
    named = kept if isinstance(kept, str) and kept else validation if three and kept == "" else ""
    if not named:
        return uses
    held_out = _use(builder, "data.holdout", named)
    rest = _without(uses.train.parts, held_out.parts)
    if uses.train.parts and not rest:
        got, expected = f"{named!r}, which is all of {uses.train.place}", "less than all training images"
        raise UserError("data.holdout", got, expected, "Change `data.holdout`.")
    changed = rest != uses.train.parts
    left = Use(rest, f"{uses.train.place} without {named}" if changed else uses.train.place)
    stands_in = not spec.test_split and tested == validation and _without(uses.test.parts, held_out.parts) == ()
    return Uses(left, held_out, Use() if stands_in else uses.test)


def require_apart(field: str, use: Use, others: Sequence[Use]) -> None:
    """Refuses records that have another use too.

    Raises:
      UserError: `use`, which `field` names, shares records with one of the others.
    """
    for other in others:
        shared = use.count - sum(part.stop - part.start for part in _without(use.parts, other.parts))
        if shared:
            got = f"{use.place}, of which {shared:,} images belong to {other.place} too"
            mend = "Change `data.train_split`, `data.test_split` or `data.holdout`."
            raise UserError(field, got, "images that have no other use", mend)


def shards(builder: Any, use: Use) -> tuple[Shard, ...]:
    """Where the records lie in the files."""
    found = []
    for part in use.parts:
        info, begin = builder.info.splits[part.split], 0
        for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
            first, last = max(part.start - begin, 0), min(part.stop - begin, count)
            if first < last:
                found.append(Shard(str(path), last - first, skip=first))
            begin += count
    return tuple(found)


def whole(builder: Any, split: str) -> Use:
    """All records of a split."""
    return Use((Part(split, 0, builder.info.splits[split].num_examples),), split)


def lacking(builder: Any, spec: DataSpec) -> DataError:
    """The error for a data set without images to test with."""
    mend = "Divide them, for example with `data.train_split`=train[:90%] and `data.test_split`=train[90%:], "
    mend += "or keep a tenth of them for testing with `data.holdout`=0.1."
    return DataError(spec.name, f"no test images: it has {list_splits(builder)}", "a split to test with", mend)


def list_splits(builder: Any) -> str:
    """The splits of a data set and their sizes, for messages."""
    return ", ".join(f"{name} ({info.num_examples:,} images)" for name, info in builder.info.splits.items())


def _use(builder: Any, field: str, expression: str) -> Use:
    if not expression:
        return Use()
    import tensorflow_datasets as tfds

    expected = f"splits of {builder.info.full_name}, as in train[:90%] or validation+test: {list_splits(builder)}"
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    try:
        pieces = tfds.core.ReadInstruction.from_spec(expression).to_absolute(builder.info.splits)
    except (ValueError, NotImplementedError, AssertionError):
        raise UserError(field, repr(expression), expected, f"Change `{field}`.") from None
    bounds = ((piece.splitname, piece.from_ or 0, piece.to) for piece in pieces)
    parts = [Part(name, start, sizes[name] if stop is None else stop) for name, start, stop in bounds]
    filled = tuple(part for part in parts if part.start < part.stop)
    if not filled:
        raise UserError(field, f"{expression!r}, which selects no images", expected, f"Change `{field}`.")
    for number, part in enumerate(filled):
        require_apart(field, Use((part,), expression), [Use((other,), part.split) for other in filled[:number]])
    return Use(filled, expression)


def _without(parts: Sequence[Part], removed: Sequence[Part]) -> tuple[Part, ...]:
    """The records of the parts that are in none of the removed ones."""
    left = list(parts)
    for gone in removed:
        cut = []
        for part in left:
            if part.split != gone.split or gone.stop <= part.start or part.stop <= gone.start:
                cut.append(part)
                continue
            cut += [Part(part.split, part.start, gone.start)] if part.start < gone.start else []
            cut += [Part(part.split, gone.stop, part.stop)] if gone.stop < part.stop else []
        left = cut
    return tuple(left)
