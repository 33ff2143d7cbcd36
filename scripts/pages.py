"""Puts what a script makes between two marks of a page."""

import pathlib

from skipnet_jax.errors import UserError


def replace(page: pathlib.Path, name: str, text: str) -> None:
    """Replaces the lines between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      UserError: the page has no such lines.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    content = page.read_text()
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError("--write", f"{page}", f"a page with the lines {begin.strip()} and {end.strip()}")
    page.write_text(before + begin + text + end + after)
