"""The errors that are not bugs: users' mistakes, and failures outside the program.

Everything else keeps its stack trace. A `UserError` names the field that holds the mistake by its own name, as in
`optim.lr`; only the command knows that on its command line this is `--config.optim.lr`.
"""

import errno
import re
from collections.abc import Callable


def spell_fields(text: str, flag: Callable[[str], str]) -> str:
    """Replaces each field in backquotes by the user's spelling of it."""
    return re.sub(r"`([^`]*)`", lambda match: flag(match[1]), text)


def one_line(text: str) -> str:
    """Escapes line breaks, terminal control codes and undecodable bytes: names come from strangers."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def is_full_disk(error: Exception) -> bool:
    """Whether a file could not be written because there is no room, on the disk or in the user's quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """A user's mistake: what was found, what was expected, and how to mend it.

    The message reads "FIELD: got GOT, expected EXPECTED. MEND".

    Args:
      field: where the mistake is: a field of the config (optim.lr), an argument (workdir), or a file.
      got: what was found there.
      expected: what should be there.
      mend: what to do about it, as a sentence; names of other fields stand in backquotes.
    """

    def __init__(self, field: str, got: str, expected: str, mend: str = "") -> None:
        super().__init__(field, got, expected, mend)
        self.field, self.got, self.expected, self.mend = field, got, expected, mend

    def __str__(self) -> str:
        return self.message()

    def message(self, flag: Callable[[str], str] = str) -> str:
        """The text for the user.

        Args:
          flag: spells a field as the user does; a field without a flag stays as it is.
        """
        mend = f" {spell_fields(self.mend, flag)}" if self.mend else ""
        return f"{one_line(f'{flag(self.field)}: got {self.got}, expected {self.expected}')}.{mend}"


class DataError(UserError):
    """The data are missing, damaged, or cannot be read."""


class DamagedError(UserError):
    """A checkpoint is there but cannot be read."""


class LeaseLostError(UserError):
    """Another process has taken over the workdir that this one was training in."""


class DivergedError(FloatingPointError):
    """The loss, the gradient or the network is no longer finite; the text puts fields in backquotes."""


class SavingError(OSError):
    """The last state of a run could not be saved."""
