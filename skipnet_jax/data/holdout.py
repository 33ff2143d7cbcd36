"""A part of the training data that is kept from training and chooses the best checkpoint (`data.holdout`).

The part is the same in every run on a data set, whatever the seed, so that runs can be compared. It has the same share
of every class.
"""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Bool, Int

from skipnet_jax.errors import UserError

NONE = "none"
_EXPECTED = (
    "a fraction such as 0.1, a number of images such as 5000, a split such as validation, or none; "
    "in a config file as text: '0.1'"
)


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much is held out: a share (0..1) of the training images, or a number of them."""

    share: float = 0.0
    images: int = 0

    def of(self, total: int) -> int:
        """Number of images to hold out.

        Raises:
          UserError: that is none or all of them.
        """
        count = self.images or round(self.share * total)
        if not 0 < count < total:
            asked = self.images or self.share
            expected = f"some but not all of the {total} training images"
            raise UserError("data.holdout", f"{asked} ({count} images)", expected, "Change `data.holdout`.")
        return count


def parse(text: str) -> Amount | str | None:
    """Reads `data.holdout`: an amount, the name of a split, or None for "none"; an empty text stands for the default.

    Raises:
      UserError: the number is out of range.
    """
    if text == NONE:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    if 0 < number < 1:
        return Amount(share=number)
    if number >= 1 and number.is_integer():
        return Amount(images=int(number))
    raise UserError("data.holdout", text, _EXPECTED, "Change `data.holdout`.")


def choose(labels: Int[np.ndarray, "n"], amount: Amount) -> Bool[np.ndarray, "n"]:
    """Chooses the examples to hold out: the same share of each class, as far as whole images allow.

    Args:
      labels: of the training examples, in the order of the data set; equal labels get equal choices.
    """
    count = amount.of(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * (count / len(labels))
    wanted = np.floor(shares).astype(np.int64)
    left = count - wanted.sum()  # goes to the classes with the largest remainders
    wanted[np.argsort(wanted - shares, kind="stable")[:left]] += 1
    draws = np.random.Philox(key=_KEY).random_raw(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label, number in zip(classes, wanted, strict=True):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(draws[members], kind="stable")[:number]]] = True
    return chosen


def tails(counts: tuple[int, ...], amount: Amount) -> tuple[int, ...]:
    """How many records at the end of each shard are held out: the same share of each.

    Shards can only be read from the beginning, and hold their records in random order.
    """
    total = sum(counts)
    count = amount.of(total)
    ends = np.cumsum([0, *counts]) * count // total
    return tuple(int(number) for number in np.diff(ends))


# Any number would do, but it must not change.
_KEY = int.from_bytes(hashlib.sha256(b"skipnet_jax hold-out").digest()[:8], "big")
