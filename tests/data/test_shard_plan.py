"""The plan of the shards: an order that never changes, and a description that tells plans apart."""

import dataclasses

import numpy as np
import pytest

from skipnet_jax.data import archives
from skipnet_jax.data.shard_plan import ShardPlan, class_names_of
from skipnet_jax.errors import DataError, UserError
from tests.data import made_images


def find(path) -> archives.Listing:
    return archives.find_images(str(path), lambda: None)


@pytest.fixture
def plan(tmp_path) -> ShardPlan:
    listings = {
        "train": find(made_images.write_folders(tmp_path / "train", {"cat": 5, "dog": 6})),
        "test": find(made_images.write_folders(tmp_path / "test", {"dog": 2})),
    }
    return ShardPlan("pets", class_names_of(listings), listings, {"train": 3, "test": 1})


def test_order_is_a_permutation_of_seed_and_split(plan):
    order = plan.order("train")
    assert sorted(order) == list(range(11))
    np.testing.assert_array_equal(order, plan.order("train"))
    other = dataclasses.replace(plan, seed=1)
    assert list(order) != list(other.order("train"))
    swapped = dataclasses.replace(plan, listings={"test": plan.listings["train"]}, num_shards={"test": 1})
    assert list(order) != list(swapped.order("test"))


def test_order_never_changes(plan):
    # Shards that were begun with an older version of NumPy are finished with a newer one.
    assert list(plan.order("train")) == [0, 2, 9, 1, 8, 5, 4, 3, 10, 6, 7]


def test_classes_are_those_of_the_training_images_or_imagenets(plan, tmp_path):
    assert plan.class_names == ("cat", "dog")
    train = find(made_images.write_train_tar(tmp_path / "train.tar", 1))
    assert class_names_of({"train": train}) == made_images.SYNSETS
    official = find(made_images.write_val_tar(tmp_path / "val.tar", 2))
    names = class_names_of({"train": train, "test": official})
    assert len(names) == 1000
    ShardPlan("imagenet", names, {"train": train, "test": official}, {"train": 1, "test": 1})


def test_description_tells_other_plans_apart(plan):
    others = [
        dataclasses.replace(plan, seed=1),
        dataclasses.replace(plan, name="zoo"),
        dataclasses.replace(plan, num_shards={"train": 2, "test": 1}),
        dataclasses.replace(plan, class_names=("dog", "cat")),
        dataclasses.replace(plan, listings={"train": plan.listings["train"]}),
    ]
    assert all(other.describe() != plan.describe() for other in others)
    # A run that stopped at a damaged image may be resumed without it.
    assert dataclasses.replace(plan, on_corrupt="skip").describe() == plan.describe()


def test_plans_that_do_not_fit_the_images_are_refused(plan):
    with pytest.raises(UserError, match=r"^train_shards: got 12, expected 1 to 11"):
        dataclasses.replace(plan, num_shards={"train": 12, "test": 1})
    with pytest.raises(UserError, match=r"^test_shards: got 0"):
        dataclasses.replace(plan, num_shards={"train": 1, "test": 0})
    with pytest.raises(DataError, match=r"test: got 1 unknown classes \(dog\)"):
        dataclasses.replace(plan, class_names=("cat",), listings={"test": plan.listings["test"]})
