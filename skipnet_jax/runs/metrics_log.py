"""Writes the metrics of a run to metrics.jsonl, for TensorBoard, and to Weights & Biases if the config says so."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.runs.lease import NO_LEASE, Lease
from skipnet_jax.runs.wandb_log import WandbLog

TENSORBOARD_RETRY_SECONDS = 60.0  # on a full disk, TensorFlow prints its own errors at every try


class MetricsLog:
    """Writes each line of metrics to all logs."""

    def __init__(
        self,
        workdir: epath.Path,
        *,
        step: int,
        unevaluated: bool = False,
        wandb_project: str = "",
        lease: Lease = NO_LEASE,
    ) -> None:
        """Opens the logs, and drops the lines that the run is about to write again.

        Args:
          step: the step from which the run resumes.
          unevaluated: whether resuming begins with the evaluation of that step, which may have a line already.
          wandb_project: of Weights & Biases; empty = off.
          lease: of the workdir; once it is lost, `write` and `close` raise LeaseLostError and write nothing.
        """
        self._lease = lease
        self._file = workdir / workdirs.METRICS
        self._unwritten = b""  # bytes that the disk had no room for yet
        kept = [line for line in workdirs.read_metrics(workdir) if line["step"] <= step]
        if unevaluated:
            kept = [
                line
                for line in kept
                if line["step"] < step or not any(name.startswith(("test/", "holdout/")) for name in line)
            ]
        files.write_lines(self._file, kept)
        self._tensorboard = TensorBoardFiles(workdir / workdirs.TENSORBOARD)
        self._wandb = WandbLog(workdir, wandb_project) if wandb_project else None

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Adds a line. In metrics.jsonl, NaN and infinity become null, since JSON has neither.

        Args:
          step: number of training steps so far.
          scalars: by name, such as train/loss and test/accuracy.
        """
        self._lease.require()
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._unwritten = files.append_lines(self._file, [line], unwritten=self._unwritten)
        self._tensorboard.write(step, scalars)
        if self._wandb is not None:
            self._wandb.write(line)

    def close(self) -> None:
        """Writes what is still buffered."""
        self._lease.require()
        self._unwritten = files.append_lines(self._file, [], unwritten=self._unwritten)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.close()


class TensorBoardFiles:
    """Writes the same numbers for TensorBoard, with gaps while the disk is full."""

    def __init__(self, folder: epath.Path) -> None:
        """Writes nothing yet; each start of a run will add a file to the folder."""
        self._folder = folder
        self._writer: Any = None
        self._not_before = 0.0

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Adds numbers, which reach the disk some time later."""
        if self._writer is None and time.monotonic() < self._not_before:
            return
        from clu import metric_writers  # imports TensorFlow

        with self._reporting():
            if self._writer is None:
                self._writer = metric_writers.SummaryWriter(str(self._folder))
            self._writer.write_scalars(step, scalars)

    def flush(self) -> None:
        """Writes what is still buffered."""
        with self._reporting():
            if self._writer is not None:
                self._writer.flush()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Reports any error, and starts a new file a minute later: TensorBoard cannot read past half a record."""
        try:
            yield
        except Exception as error:  # TensorFlow raises several types on a full disk
            self._writer, self._not_before = None, time.monotonic() + TENSORBOARD_RETRY_SECONDS
            print(
                f"WARNING: numbers for TensorBoard could not be written to {self._folder} ({type(error).__name__}); "
                f"{workdirs.METRICS} will have them all.",
                file=sys.stderr,
                flush=True,
            )
