"""The part of the training data that chooses the checkpoint: balanced, and the same in every run."""

import numpy as np
import pytest

from skipnet_jax.data import holdout
from skipnet_jax.errors import UserError

LABELS = np.repeat([0, 1, 2], [700, 200, 101])[np.random.default_rng(0).permutation(1001)]


@pytest.mark.parametrize("text, count", [("0.1", 100), ("250", 250), ("1", 1), ("1e2", 100)])
def test_every_class_gives_its_share(text: str, count: int) -> None:
    amount = holdout.parse(text)
    assert isinstance(amount, holdout.Amount)
    chosen = holdout.choose(LABELS, amount)
    assert chosen.sum() == count
    shares = np.bincount(LABELS, minlength=3) * count / 1001
    assert np.all(np.abs(np.bincount(LABELS[chosen], minlength=3) - shares) < 1)


def test_the_choice_stays_the_same_for_ever() -> None:
    labels = np.arange(40) % 2
    assert list(np.flatnonzero(holdout.choose(labels, holdout.Amount(images=6)))) == CHOSEN


CHOSEN = [12, 14, 21, 26, 29, 33]


def test_shards_give_their_last_records() -> None:
    assert holdout.tails((10, 10, 20), holdout.Amount(share=0.1)) == (1, 1, 2)
    assert sum(holdout.tails((3, 3, 3, 3), holdout.Amount(images=5))) == 5
    assert max(holdout.tails((3, 0, 3, 3, 3), holdout.Amount(images=11))) <= 3


@pytest.mark.parametrize("text", ["0", "-0.5", "1.5", "nan", "inf"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^data\.holdout: got"):
        holdout.parse(text)


def test_none_or_all_images_cannot_be_held_out() -> None:
    for amount in (holdout.Amount(images=9), holdout.Amount(share=0.001)):
        with pytest.raises(UserError, match="some but not all of the 9 training images"):
            amount.of(9)


def test_names_and_none_are_no_amounts() -> None:
    assert holdout.parse("validation[:50%]") == "validation[:50%]"
    assert holdout.parse("") == "" and holdout.parse("none") is None
