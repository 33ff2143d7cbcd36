"""Which image goes to which shard, and to which place in it: a pure function of the seed and the listing."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from skipnet_jax.data import storage
from skipnet_jax.data.archives import Listing
from skipnet_jax.data.tfrecords import OWN, SPLITS
from skipnet_jax.errors import DataError, UserError

ON_CORRUPT = ("error", "skip")
# The shards' names have five digits.
_MOST_SHARDS = 99_999


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The data set to make.

    Args:
      name: for people.
      class_names: in the order of their numbers.
      listings: the images by split.
      num_shards: by split.
      seed: of the order.
      on_corrupt: for an image that cannot be decoded: `error` = stop and name it, `skip` = leave it out and report it.
    """

    name: str
    class_names: tuple[str, ...]
    listings: dict[str, Listing]
    num_shards: dict[str, int]
    seed: int = 0
    on_corrupt: str = "error"

    def __post_init__(self) -> None:
        for split, listing in self.listings.items():
            most = min(len(listing), _MOST_SHARDS)
            if not 1 <= self.num_shards[split] <= most:
                raise UserError(
                    f"{split}_shards",
                    f"{self.num_shards[split]}",
                    f"1 to {most}, since {listing.path} has {len(listing)} images",
                    f"Change `{split}_shards`, so that each shard has about 100 MB.",
                )
            unknown = sorted(set(listing.class_names) - set(self.class_names))
            if unknown:
                raise DataError(
                    listing.path,
                    f"{len(unknown)} unknown classes ({storage.some(unknown)})",
                    f"only classes of the data set ({storage.some(self.class_names)})",
                    "Rename the folders, or change `class_names`.",
                )

    def describe(self) -> dict[str, Any]:
        """Everything that determines the bytes of the shards; the index records it, and a resumed run compares it."""
        splits = {
            split: {"images": len(listing), "shards": self.num_shards[split], "sha256": listing.fingerprint()}
            for split, listing in self.listings.items()
        }
        classes = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape")).hexdigest()
        return {
            "name": self.name,
            "classes": classes,
            "seed": self.seed,
            "splits": splits,
            "records": dataclasses.asdict(OWN),
        }

    def order(self, split: str) -> Int64[np.ndarray, "n"]:
        """The images of a split in the order of its records, across all shards.

        Sorts the raw output of a counter-based generator, which NumPy promises to keep.
        """
        generator = np.random.Philox(key=[self.seed, SPLITS.index(split)])
        return np.argsort(generator.random_raw(len(self.listings[split])), kind="stable")


def class_names_of(listings: Mapping[str, Listing]) -> tuple[str, ...]:
    """The classes of a data set: all 1000 with ImageNet's validation images, otherwise the training images' classes."""
    official = [listing for listing in listings.values() if listing.official]
    chosen = official[0] if official else listings.get("train") or next(iter(listings.values()))
    return chosen.class_names
