"""Where an export goes: whole or not at all."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from etils import epath

from skipnet_jax.exports.artifacts import RECORD


def require_free(path: epath.Path) -> pathlib.Path:
    """Looks at the place of an export before the long work begins.

    Args:
      path: of a folder: new, empty, or an earlier export, which is going to be replaced.

    Raises:
      ValueError: it holds something else, or is in a bucket, where the libraries that write exports cannot write.
    """
    if "://" in str(path):
        raise ValueError(f"--out: got {path}, expected a local folder, to be copied from there. Give --out=DIR.")
    place = pathlib.Path(path)
    ours = (place / RECORD).exists() or (place.is_dir() and not any(place.iterdir()))
    if place.exists() and not ours:
        raise ValueError(
            f"--out: got {place}, which holds something else, expected a new folder or an earlier export, which is "
            f"replaced. Give another --out=DIR."
        )
    return place


@contextlib.contextmanager
def put_in_place(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside the place, to be filled; it moves there at the end, and is removed if there is an error.

    Args:
      place: of `require_free`.

    Raises:
      ValueError: it cannot be written.
    """
    new, old = (place.with_name(f".{place.name}.{kind}") for kind in ("new", "old"))
    try:
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
    except OSError as error:
        raise ValueError(
            f"--out: got {place}, which cannot be written ({error.strerror or error}), expected a folder that can. "
            f"Give another --out=DIR."
        ) from error
    finally:
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
