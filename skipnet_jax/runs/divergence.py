"""Ends a run whose numbers are no longer finite: with a report, with the batch for inspection, and without saving."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath

from skipnet_jax.errors import DivergedError, is_full_disk
from skipnet_jax.runs.lease import NO_LEASE, Lease
from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import nonfinite, steps

_all_finite = jax.jit(nonfinite.all_finite)


class Guard:
    """Checks metrics once they are fetched, and the state before it is saved; raises DivergedError.

    Steps are not checked as they run, so the device never waits for the host. The batch of a bad step is made again
    from the step number.
    """

    def __init__(
        self,
        spec: TrainSpec,
        workdir: epath.Path,
        *,
        batches_from: Callable[[int], Iterator[dict[str, np.ndarray]]],
        saved: Callable[[], str],
        lease: Lease = NO_LEASE,
    ) -> None:
        """Checks nothing yet.

        Args:
          spec: for the advice in the report.
          workdir: where to keep the batch.
          batches_from: makes the training batches that follow after a number of steps.
        """
        self._lease = lease
        self._spec, self._workdir, self._batches_from, self._saved = spec, workdir, batches_from, saved
        self._last: Mapping[str, float | int] = {}

    def check_steps(self, metrics: Sequence[Mapping[str, float | int]], step: int) -> None:
        """Checks the metrics of several steps; the last one is `step`."""
        for number, self._last in enumerate(metrics, step - len(metrics) + 1):
            if not all(math.isfinite(value) for value in self._last.values()):
                self._stop(number, self._last)

    def check_results(self, results: Mapping[str, float | int], step: int) -> None:
        """Checks the results of the evaluation after a step."""
        if not all(math.isfinite(value) for value in results.values()):
            judge = "holdout" if "held_out" in results else "test"
            self._stop(step, {**self._last, **{f"{judge} {name}": value for name, value in results.items()}})

    def check_state(self, state: steps.TrainState, step: int) -> None:
        """Checks everything that would be saved; waits for the device."""
        if not _all_finite(state):
            self._stop(step, {**self._last, "a parameter or statistic": math.nan})

    def _stop(self, step: int, numbers: Mapping[str, float | int]) -> NoReturn:
        optim, batch = self._spec.optim, self._keep_batch(step, numbers)
        words = {"learning_rate": "learning rate", "grad_norm": "gradient norm"}
        bad = [f"{words.get(name, name)} {value}" for name, value in numbers.items() if not math.isfinite(value)]
        good = [f"{words[name]} {numbers[name]:g}" for name in words if math.isfinite(numbers.get(name, math.nan))]
        in_float32 = "" if self._spec.model.dtype == "float32" else " or compute in float32 (`model.dtype`=float32)"
        skip = "; or skip such updates: `on_nonfinite`=skip `allow_change`=on_nonfinite"
        raise DivergedError(
            f"training diverged: at step {step} got {', '.join(bad)} ({', '.join(good) or 'nothing finite'}), expected "
            f"finite numbers; {batch}; {self._saved()}. "
            f"Lower `optim.lr` (now {optim.lr:g}), warm up longer (`optim.warmup_epochs`, now {optim.warmup_epochs})"
            f"{in_float32}, in a new `workdir` or from what is saved with `allow_change`=optim.lr"
            f"{skip if self._spec.on_nonfinite == 'stop' else ''}."
        )

    def _keep_batch(self, step: int, numbers: Mapping[str, Any]) -> str:
        """Writes the step's metrics and this host's share of its batch, as it came from the input.

        Returns:
          Where they are, in words. A full disk is no reason to hide the divergence.
        """
        host = f"_host_{jax.process_index()}" if jax.process_count() > 1 else ""
        file = self._workdir / f"nonfinite_step_{step}{host}.npz"
        arrays: dict[str, Any] = {"step": step, **numbers, **next(self._batches_from(step - 1))}
        self._lease.require()
        try:
            with file.open("wb") as stream:
                np.savez_compressed(stream, **{name.replace(" ", "_"): array for name, array in arrays.items()})
        except OSError as error:
            if not is_full_disk(error):
                raise
            file.unlink(missing_ok=True)
            return "the disk has no room for its batch"
        return f"its batch is in {file}"
