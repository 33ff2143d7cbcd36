"""Reads and replaces the lines between two marks of a page."""

import pathlib

from skipnet_jax.errors import UserError


def read(page: pathlib.Path, name: str) -> str:
    """Returns the lines between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      UserError: the page has no such lines.
    """
    return _split(page, name)[1]


def replace(page: pathlib.Path, name: str, text: str) -> None:
    """Replaces the lines that `read` returns.

    Raises:
      UserError: the page has no such lines.
    """
    before, _, after = _split(page, name)
    page.write_text(before + text + after)


def _split(page: pathlib.Path, name: str) -> tuple[str, str, str]:
    """The page up to the lines and their first mark, the lines, and the rest."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    try:
        text = page.read_text()
    except OSError as error:
        raise UserError("--write", f"{page} ({error.strerror})", "a page that can be read and written") from error
    before, found, rest = text.partition(begin)
    lines, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError("--write", f"{page}", f"a page with the lines {begin.strip()} and {end.strip()}")
    return before + begin, lines, end + after
