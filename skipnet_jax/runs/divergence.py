"""The end of a run whose numbers are no longer finite: a report, the batch for inspection, and nothing saved."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath

from skipnet_jax.specs import TrainSpec
from skipnet_jax.training import nonfinite, steps

_all_finite = jax.jit(nonfinite.all_finite)


class Guard:
    """Checks numbers when they are fetched anyway, and the state before it is saved.

    The step itself does not wait to be checked, so that the device runs ahead of the host; the batch of a bad step is
    made again afterwards, from the step's number.
    """

    def __init__(
        self,
        spec: TrainSpec,
        workdir: epath.Path,
        *,
        batches_from: Callable[[int], Iterator[dict[str, np.ndarray]]],
        saved: Callable[[], str],
    ) -> None:
        """Checks nothing yet.

        Args:
          spec: for the advice.
          workdir: that gets the batch.
          batches_from: training batches from a step on.
          saved: says what is saved.
        """
        self._spec, self._workdir, self._batches_from, self._saved = spec, workdir, batches_from, saved
        self._last: Mapping[str, float | int] = {}

    def check_steps(self, sums: Sequence[Mapping[str, float | int]], step: int) -> None:
        """Checks the sums of steps, of which the last is `step`.

        Raises:
          FloatingPointError: one of them is not finite.
        """
        for number, self._last in enumerate(sums, step - len(sums) + 1):
            if not all(math.isfinite(value) for value in self._last.values()):
                self._stop(number, self._last)

    def check_results(self, results: Mapping[str, float | int], step: int) -> None:
        """Checks the evaluation after a step.

        Raises:
          FloatingPointError: a result is not finite.
        """
        if not all(math.isfinite(value) for value in results.values()):
            self._stop(step, {**self._last, **{f"test {name}": value for name, value in results.items()}})

    def check_state(self, state: steps.TrainState, step: int) -> None:
        """Checks all that would be saved; waits for the device.

        Raises:
          FloatingPointError: something in it is not finite.
        """
        if not _all_finite(state):
            self._stop(step, {**self._last, "a parameter or statistic": math.nan})

    def _stop(self, step: int, numbers: Mapping[str, float | int]) -> NoReturn:
        spec = self._spec
        names = {"learning_rate": "learning rate", "grad_norm": "gradient norm"}
        bad = [f"{names.get(name, name)} {value}" for name, value in numbers.items() if not math.isfinite(value)]
        good = [
            f"{text} {numbers[name]:g}" for name, text in names.items() if math.isfinite(numbers.get(name, math.nan))
        ]
        in_float32 = "" if spec.model.dtype == "float32" else " or compute in float32 (--config.model.dtype=float32)"
        skip = "; or go on with --config.on_nonfinite=skip --allow_change=on_nonfinite, which leaves such updates out"
        where = self._keep_batch(step, numbers)
        raise FloatingPointError(
            f"training diverged: at step {step} got {', '.join(bad)} ({', '.join(good) or 'nothing finite'}), expected "
            f"finite numbers; its batch is in {where}; {self._saved()}. "
            f"Lower --config.optim.lr (now {spec.optim.lr:g}), warm up longer (--config.optim.warmup_epochs, now "
            f"{spec.optim.warmup_epochs}){in_float32}, in a new --workdir or from what is saved with "
            f"--allow_change=optim.lr{skip if spec.on_nonfinite == 'stop' else ''}."
        )

    def _keep_batch(self, step: int, numbers: Mapping[str, Any]) -> epath.Path:
        """Writes this host's share of the batch as it came from the input, with the step's numbers."""
        host = f"_host_{jax.process_index()}" if jax.process_count() > 1 else ""
        file = self._workdir / f"nonfinite_step_{step}{host}.npz"
        batch = next(self._batches_from(step - 1))
        arrays: dict[str, Any] = {"step": step, **numbers, **batch}
        with file.open("wb") as stream:
            np.savez_compressed(stream, **{name.replace(" ", "_"): array for name, array in arrays.items()})
        return file
