"""The numbers of a run as they come: for programs, for TensorBoard, and for Weights & Biases where that is wanted."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.runs.wandb_log import WandbLog

TENSORBOARD_RETRY_SECONDS = 60.0  # TensorFlow says much of its own when the disk is full


class MetricsLog:
    """Writes scalars to metrics.jsonl, to TensorBoard files, and to a project at Weights & Biases."""

    def __init__(self, workdir: epath.Path, *, step: int, unevaluated: bool = False, wandb_project: str = "") -> None:
        """Opens the logs of a run that goes on from `step`, and drops the lines that will come again.

        Args:
          workdir: of the run.
          step: that training goes on from.
          unevaluated: it will be evaluated, again if an earlier start got so far and could not save that.
          wandb_project: at Weights & Biases; empty = not there.
        """
        self._file = workdir / workdirs.METRICS
        self._waiting = b""  # found no room on the disk yet
        kept = [line for line in workdirs.read_metrics(workdir) if line["step"] <= step]
        if unevaluated:
            kept = [line for line in kept if line["step"] < step or not any(name.startswith("test/") for name in line)]
        files.write_lines(self._file, kept)
        self._tensorboard = TensorBoardFiles(workdir / workdirs.TENSORBOARD)
        self._wandb = WandbLog(workdir, wandb_project, kept) if wandb_project else None

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Adds one line.

        Args:
          step: training steps behind the numbers.
          scalars: by name; train/ and test/ tell the data. JSON has no NaN: what is not finite becomes null.
        """
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._waiting = files.append_lines(self._file, [line], unwritten=self._waiting)
        self._tensorboard.write(step, scalars)
        if self._wandb is not None:
            self._wandb.write(line)

    def close(self) -> None:
        """Writes what is still buffered."""
        self._waiting = files.append_lines(self._file, [], unwritten=self._waiting)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.close()


class TensorBoardFiles:
    """A copy of the numbers for TensorBoard, which may have gaps where the disk was full."""

    def __init__(self, folder: epath.Path) -> None:
        """Writes nothing yet.

        Args:
          folder: of the files, one per start of a run.
        """
        self._folder = folder
        self._writer: Any = None
        self._not_before = 0.0

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Adds numbers, some time later."""
        if self._writer is None and time.monotonic() < self._not_before:
            return
        from clu import metric_writers  # imports TensorFlow

        try:
            if self._writer is None:
                self._writer = metric_writers.SummaryWriter(str(self._folder))
            self._writer.write_scalars(step, scalars)
        except Exception as error:  # TensorFlow's words for a full disk are many
            self._give_up(error)

    def flush(self) -> None:
        """Writes what is still buffered."""
        try:
            if self._writer is not None:
                self._writer.flush()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A new file begins a minute later, since what follows half a record cannot be read."""
        self._writer, self._not_before = None, time.monotonic() + TENSORBOARD_RETRY_SECONDS
        print(
            f"WARNING: numbers for TensorBoard could not be written to {self._folder} ({type(error).__name__}); "
            f"{workdirs.METRICS} will have them all.",
            file=sys.stderr,
            flush=True,
        )
