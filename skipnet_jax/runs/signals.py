"""Stops a run on SIGTERM or SIGINT, after the current step and once it is saved. A second signal stops it at once.

A signal handler can neither save nor raise safely in the middle of a step, so it sets a flag, and the loop looks at the
flag between steps. Python runs handlers only between two of its own instructions, and a compilation takes minutes; so a
thread, woken by the interpreter's C code, handles the second signal. Several hosts vote after each step, and all act on
the same votes, so that they stop after the same step.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

WATCHED = (signal.SIGTERM, signal.SIGINT)  # from schedulers and preemption; from Ctrl-C
EXIT = 128  # plus the signal's number, as in shells


class Stopped(KeyboardInterrupt):
    """A signal stopped the run, which has saved what it could.

    Args:
      text: where the run stopped and what is saved, for the user.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.why = signal.Signals(number).name
        self.exit_status = EXIT + number


class Requested(Exception):
    """Interrupts slow work that can be repeated, such as an evaluation."""


class Signals:
    """Within its `with` block, the first signal is a request to stop, and the second ends the process.

    Outside the main thread Python allows no handlers, and the block changes nothing.

    Attributes:
      number: of the signal to stop for; 0 = none yet. With several hosts, only `agree` sets it.
      hosts: the hosts that got a signal; empty with one host.
    """

    def __init__(self, *, cast: Callable[[int], Sequence[int]] | None = None) -> None:
        """Installs no handler yet.

        Args:
          cast: `hosts.Votes.cast`; None with one host.
        """
        self.number = self._noted = 0
        self.hosts: list[int] = []
        self._cast = cast
        self._enabled = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Signals":
        if self._enabled:
            reader, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)  # C's handler must not block
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
        """Exchanges votes with the other hosts; call it after each step."""
        if self._cast is not None and not self.number:
            votes = self._cast(self._noted)
            self.hosts = [host for host, number in enumerate(votes) if number]
            self.number = next(filter(None, votes), 0)

    def check(self) -> None:
        """Raises Requested if the run should stop."""
        if self.number:
            raise Requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = self._noted or number
        if self._cast is None:
            self.number = self._noted

    def _watch(self, reader: int) -> None:
        """Reads the byte that C's handler writes for each signal, until the pipe is closed."""
        seen = 0
        while number := int.from_bytes(os.read(reader, 1)):
            if number in WATCHED:
                seen += 1
                if seen > 1:
                    os._exit(EXIT + number)
                name = signal.Signals(number).name
                os.write(2, f"{name}: stopping after this step, once it is saved; again to stop at once\n".encode())
        os.close(reader)
