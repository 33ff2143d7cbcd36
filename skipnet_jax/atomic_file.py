"""Files that are replaced as a whole: whoever reads finds the old one or the new one, after a loss of power too."""

import os

from etils import epath


def write_text(file: epath.PathLike, text: str) -> None:
    """Writes a file anew; an interrupted write leaves the old one.

    Args:
      file: local, or in a bucket.
      text: all that it will hold.
    """
    file = epath.Path(file)
    new = file.parent / f".{file.name}.new"
    new.write_text(text)
    put_in_place(new, file)


def put_in_place(new: epath.PathLike, file: epath.PathLike) -> None:
    """Moves a finished file to its place, where an older one may be.

    Args:
      new: on the same disk, or in the same bucket.
      file: its place.
    """
    if "://" not in str(file):
        with open(new, "rb") as stream:
            os.fsync(stream.fileno())  # else a loss of power may leave the new name with nothing behind it
    epath.Path(new).replace(file)
