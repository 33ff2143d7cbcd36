"""Programs that XLA:TPU has optimised, but not yet turned into machine code, which takes most of its time.

Memory, bytes and collectives are known by then; the estimated cycles come with the machine code. XLA's option
xla_dump_to writes the optimised program to files. A thread goes on making the machine code until its process ends.
"""

import dataclasses
import pathlib
import re
import tempfile
import threading
from typing import Any

from jax.stages import Lowered

from skipnet_jax.errors import UserError

_POLL = 0.1  # seconds
_PROGRAM, _MEMORY = "after_optimizations.txt", "after_optimizations-memory-usage-report.txt"
_LAST = "after_optimizations_after_buffer_assignment.txt"  # is written when the others are complete
_TOTAL = re.compile(r"^Memory Space: default \(color=0\)\nTotal bytes: (\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class OptimisedProgram:
    """A program that XLA:TPU has optimised, without machine code.

    Args:
      text: as `compiled.as_text()`, without estimated cycles.
      memory: bytes of the device's memory that the program's values take, arguments and results included.
    """

    text: str
    memory: int


def optimise(lowered: Lowered) -> OptimisedProgram:
    """The optimised program; a thread goes on compiling it until this process ends.

    Raises:
      JaxRuntimeError: XLA cannot compile it; RESOURCE_EXHAUSTED: it takes too much memory.
      UserError: this version of XLA:TPU does not dump its optimised programs.
    """
    failures: list[Exception] = []

    def compile_to(folder: str) -> None:
        options: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            lowered.compile(compiler_options=options)
        except Exception as error:
            failures.append(error)

    with tempfile.TemporaryDirectory(prefix="skipnet_program_", ignore_cleanup_errors=True) as folder:
        compiling = threading.Thread(target=compile_to, args=(folder,), daemon=True)
        compiling.start()
        while compiling.is_alive() and not _find(folder, _LAST):
            compiling.join(_POLL)
        if failures:
            raise failures[0]
        program, report = _find(folder, _PROGRAM), _find(folder, _MEMORY)
        total = _TOTAL.search(report.read_text()) if report else None
        if program is None or total is None:
            raise UserError(
                "quick",
                "a version of XLA:TPU that does not dump its optimised programs",
                "one that does, such as libtpu 0.0.42.1",
                "Leave out --quick to compile the whole program.",
            )
        return OptimisedProgram(program.read_text(), int(total[1]))


def _find(folder: str, ending: str) -> pathlib.Path | None:
    return next(pathlib.Path(folder).glob(f"*.{ending}"), None)
