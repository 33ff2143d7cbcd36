"""Calls a function in a process of its own: a compiler may crash on a program, and would take this process with it.

Ctrl-C also ends the call at once; a compiler in this process would go on for minutes.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar

from skipnet_jax.errors import UserError

T = TypeVar("T")


def call(topology: str, function: Callable[[], T]) -> T:
    """Returns the result of a function. The function may print to stderr; the output of compilers there is hidden.

    Temporary files of the process go away with it.

    Args:
      topology: what the function compiles for; the error names it.
      function: must be picklable, and so must its result.

    Raises:
      UserError: the process crashed.
      Exception: the function raised it; a note holds the process's own stack trace.
    """
    # Not a fork: it would inherit JAX's locks without the threads that hold them.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryFile() as noise, tempfile.TemporaryDirectory(prefix="skipnet_compiler_") as scratch:
        log = reduction.DupFd(noise.fileno())
        process = context.Process(target=_work, args=(sender, log, scratch, function), daemon=True)
        process.start()
        sender.close()  # now only the process holds it, so its death closes the pipe
        try:
            result = receiver.recv()
        except EOFError:
            process.join()
            raise UserError(
                "topology",
                f"{topology}, on which XLA's compiler crashed ({_status(process.exitcode)})",
                "programs that it can compile",
                f"Try another topology, batch size or version of the compiler; {_keep(noise)} says where it crashed.",
            ) from None
        finally:
            process.kill()
            process.join()
    if isinstance(result, Exception):
        raise result
    return result


def _keep(noise: IO[bytes]) -> str:
    """Copies a file that has no name, and returns the name of the copy."""
    noise.seek(0)
    with tempfile.NamedTemporaryFile(prefix="skipnet_compiler_", suffix=".log", delete=False) as log:
        shutil.copyfileobj(noise, log)
    return log.name


def _status(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


def _work(sender: Connection, log: Any, scratch: str, function: Callable[[], Any]) -> None:
    tempfile.tempdir = scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes, and the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Python goes on printing to the terminal; file descriptor 2, which compilers print to, becomes the log.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(log.detach(), 2)
    try:
        result: Any = function()
    except Exception as error:
        if not isinstance(error, UserError):
            error.add_note(traceback.format_exc())
        result = error
    sender.send(result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
