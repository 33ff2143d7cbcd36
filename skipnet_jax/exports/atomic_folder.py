"""Folders that appear at their place whole or not at all."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from skipnet_jax.errors import UserError


@contextlib.contextmanager
def replace_folder(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder to fill, which takes its place at the end; after an error the old folder stays.

    Args:
      place: where the folder will be.

    Raises:
      UserError: it cannot be written.
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
        got = f"{place}, which cannot be written ({error.strerror or error})"
        raise UserError("out", got, "a folder that can be written", "Choose another `out`.") from error
    finally:
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
