"""Which folder holds which images: train/, val/ and test/ by any of their usual names, or class folders alone."""

import dataclasses

from skipnet_jax.data import holdout, storage, walk
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

# What the folders of the splits are called, in upper or lower case.
TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
EXPECTED = (
    "DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (also training/; val/, valid/, validation/, testing/), "
    "or DIR/CLASS/*.jpg with data.holdout"
)
MEND = "Change `data.dir`, or move the images."


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which folder holds which images.

    Args:
      root: the folder that holds the others.
      train, validation, test: names in the root; empty = there is none.
      whole: the root holds the folders of the classes themselves.
    """

    root: str
    train: str = ""
    validation: str = ""
    test: str = ""
    whole: bool = False

    def places(self, spec: DataSpec) -> dict[str, str]:
        """The folders of the "train", "holdout" and "test" images, where there are any; "" is the root itself.

        A number in `data.holdout` takes a part of "train" and has no folder.

        Raises:
          UserError: `data.holdout` names no folder.
        """
        if self.whole:
            return {"train": ""}
        kept = holdout.parse(spec.holdout)
        named = [name for name in (self.validation, self.test) if isinstance(kept, str) and name and name == kept]
        if isinstance(kept, str) and kept and not named:
            names = " or ".join(name for name in (self.validation, self.test) if name)
            expected = f"{names}, which {self.root} has" if names else f"a fraction: {self.root} has one folder only"
            raise UserError("data.holdout", repr(kept), expected, "Change `data.holdout`.")
        three = self.train and self.validation and self.test
        places = {"train": self.train, "test": self.test or self.validation}
        places["holdout"] = named[0] if named else self.validation if three and spec.holdout == "" else ""
        return {split: name for split, name in places.items() if name}


def find(spec: DataSpec) -> Layout:
    """Finds the folders of the splits. They may lie inside the only folder of `data.dir`.

    Raises:
      DataError: there are no folders, or two of them match one split.
    """
    root = spec.dir.rstrip("/") or "/"
    for _ in range(3):  # archives may wrap the folders in one or two more
        present = walk.subfolders(root)
        found = [[name for name in present if name.lower() in names] for names in (TRAIN, VALIDATION, TEST)]
        for names in found:
            if len(names) > 1:
                raise DataError(root, f"{storage.both(names)}, either of which may be meant,", EXPECTED, MEND)
        if any(found):
            train, validation, test = (names[0] if names else "" for names in found)
            return Layout(root, train, validation, test)
        if len(present) != 1:
            break
        root = f"{root}/{present[0]}"
    present = walk.subfolders(spec.dir)
    if not present:
        raise DataError(spec.dir, "no folders", EXPECTED, MEND)
    return Layout(spec.dir.rstrip("/") or "/", whole=True)


def require(spec: DataSpec) -> None:
    """Checks the names of the folders, without looking for images.

    Raises:
      DataError: there are no folders, two of them match one split, or none holds test images.
    """
    layout = find(spec)
    places = layout.places(spec)
    if "test" not in places and not isinstance(holdout.parse(spec.holdout), holdout.Amount):
        there = walk.subfolders(layout.root)
        got = f"{len(there)} folders, {storage.some(there)}," if layout.whole else f"{layout.train}/ alone"
        mend = "Move the images, or keep a tenth of them for testing with `data.holdout`=0.1."
        raise DataError(layout.root, f"{got} and no folder for the test images", EXPECTED, mend)
