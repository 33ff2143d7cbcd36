"""Signals that ask a run to stop: noted at once, acted upon between two steps.

Several hosts stop after the same step: each casts a vote per step, and acts on what all of them have cast.

A handler can neither save nor raise safely in the middle of a step, so it sets a flag, which the loop reads. Python
runs handlers only between two of its own instructions, and a compilation takes minutes; a thread that the signal wakes
without Python's help is what makes a second signal stop the process at once.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

WATCHED = (signal.SIGTERM, signal.SIGINT)  # preemption and job schedulers; Ctrl-C
EXIT = 128  # as shells do: 128 + the number of the signal


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has saved what it could.

    Args:
      text: for the user: where it stopped and what is saved.
      number: of the signal.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.why = signal.Signals(number).name
        self.exit_status = EXIT + number


class Requested(Exception):
    """Breaks off what takes long and can be done again, such as an evaluation."""


class Signals:
    """Within its `with` block the first SIGTERM or SIGINT is a request, and the second ends the process at once.

    Elsewhere than in the main thread Python allows no handlers; then nothing changes.

    Attributes:
      number: of the signal that the run is to stop for; 0 = none yet. With several hosts it changes in `agree` alone.
      hosts: that had a signal; empty with one.
    """

    def __init__(self, *, cast: Callable[[int], Sequence[int]] | None = None) -> None:
        """Prepares.

        Args:
          cast: with several hosts, `hosts.Votes.cast`.
        """
        self.number = self._noted = 0
        self.hosts: list[int] = []
        self._cast = cast
        self._enabled = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Signals":
        if self._enabled:
            reader, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)  # what wakes by a signal may not wait
            threading.Thread(target=self._watch, args=(reader,), daemon=True, name="signals").start()
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
            self._before_wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            signal.set_wakeup_fd(self._before_wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._pipe)

    def agree(self) -> None:
        """Tells the other hosts, and hears what they told; to be called after each step."""
        if self._cast is not None and not self.number:
            votes = self._cast(self._noted)
            self.hosts = [host for host, number in enumerate(votes) if number]
            self.number = next(filter(None, votes), 0)

    def check(self) -> None:
        """Raises Requested if the run is to stop."""
        if self.number:
            raise Requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = self._noted or number
        if self._cast is None:
            self.number = self._noted

    def _watch(self, reader: int) -> None:
        """Counts the signals that C's handler writes into the pipe, one byte each, until the pipe is closed."""
        seen = 0
        while number := int.from_bytes(os.read(reader, 1)):
            if number in WATCHED:
                seen += 1
                if seen > 1:
                    os._exit(EXIT + number)
                name = signal.Signals(number).name
                os.write(2, f"{name}: stopping after this step, once it is saved; again to stop at once\n".encode())
        os.close(reader)
