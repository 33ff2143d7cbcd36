"""Names of classes: ImageNet's, and those that a user lists in a file."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence

from skipnet_jax.errors import UserError

_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


def imagenet() -> tuple[str, ...]:
    """The 1000 classes of ImageNet, named and ordered as in TensorFlow Datasets: by WordNet number, from n01440764.

    Folders with these names sort in the same order, the one that torch's networks are trained with. The list ships
    with TensorFlow Datasets, which need not be imported.
    """
    package = importlib.util.find_spec("tensorflow_datasets")
    assert package is not None and package.submodule_search_locations is not None  # the project requires it
    root = pathlib.Path(package.submodule_search_locations[0])
    return tuple((root / "datasets" / "imagenet2012" / "labels.txt").read_text().split())


def read(field: str, path: str, num_classes: int | None = None) -> tuple[str, ...]:
    """Reads the names of classes, one on a line, in the order of the logits.

    Args:
      field: gives the path.
      path: a text file in UTF-8, with or without a byte order mark, or in UTF-16 with one; lines may end as on Windows.
        No shell replaces the ~ of --classes=~/names.txt, so this function does.
      num_classes: how many names the file must have; None = any number.

    Raises:
      UserError: the file cannot be read, is empty, or does not hold that many different names.
    """
    try:
        content = pathlib.Path(os.path.expanduser(path)).read_bytes()
        encoding = next((name for bom, name in _BOMS.items() if content.startswith(bom)), "utf-8")
        lines = [line.strip() for line in content.decode(encoding).splitlines()]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "neither UTF-8 nor UTF-16"
        raise UserError(field, f"{path}, which cannot be read ({reason})", "a text file", "Give another.") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(field, f"no names in {path}", "one name on a line, in the order of the logits", "Give another.")
    require_names(field, path, lines, len(lines) if num_classes is None else num_classes)
    return tuple(lines)


def require_names(field: str, place: str, names: Sequence[str], num_classes: int) -> None:
    """Checks names of classes.

    Raises:
      UserError: a name is empty or repeated, or there are too few or too many.
    """
    mend = "Correct the list: one name on a line, in the order of the logits."
    expected = f"{num_classes} different names"
    seen = set[str]()
    for k, name in enumerate(names, 1):
        if not name or name in seen:
            got = f"{name!r} again" if name else "an empty name"
            raise UserError(field, f"{got} as name {k} in {place}", expected, mend)
        seen.add(name)
    if len(names) != num_classes:
        raise UserError(field, f"{len(names)} names in {place}", expected, mend)
