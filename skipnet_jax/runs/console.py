"""Shows and logs a run's metrics: a progress bar on a terminal or plain lines, and numbers for the workdir."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import tqdm
from etils import epath

from skipnet_jax.errors import DivergedError
from skipnet_jax.runs.lease import NO_LEASE, Lease
from skipnet_jax.runs.metrics_log import MetricsLog
from skipnet_jax.training import objectives, steps

HostMetrics = dict[str, float | int]  # the metrics of a step as exact plain numbers

LINE_EVERY_SECONDS = 30.0  # without a terminal: a sign of life within long epochs
NO_STEPS = {"loss": 0.0, "correct": 0, "count": 0}
BAR = "{desc} |{bar}| step {n_fmt}/{total_fmt}{postfix} [{elapsed}, {remaining} left]"


class Console:
    """Collects the metrics of a run, measures its speed, and shows and logs both.

    Metrics stay on the device until `fetch`; a step waits only for the one `IN_FLIGHT` steps before. Speed is measured
    from fetch to fetch, without the first step (which compiles) and without evaluations. Hosts other than host 0
    collect too, but show and log nothing.

    Attributes:
      done: number of training steps so far.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start: int,
        total: int,
        steps_per_epoch: int,
        pending: Mapping[str, Any] | None = None,
        unevaluated: bool = False,
        wandb_project: str = "",
        lease: Lease = NO_LEASE,
    ) -> None:
        """Opens the logs.

        Args:
          start: the step from which the run resumes.
          total: number of steps of the whole run.
          pending: what `pending()` returned at step `start`.
          unevaluated, wandb_project, lease: as for `MetricsLog`.
        """
        pending = pending or {}
        self._first_host = jax.process_index() == 0
        self._log: MetricsLog | None = None
        if self._first_host:
            self._log = MetricsLog(
                workdir, step=start, unevaluated=unevaluated, wandb_project=wandb_project, lease=lease
            )
        self._bar: tqdm.tqdm | None = None
        self._start, self.done, self._total, self._steps_per_epoch = start, start, total, steps_per_epoch
        self._resumed: list[HostMetrics] = list(pending.get("window", []))  # steps since the last fetch, before `start`
        self._window: list[steps.Metrics] = []  # steps since the last fetch, after `start`
        self._epoch: HostMetrics = dict(pending.get("epoch", NO_STEPS))  # sums over the fetched steps of this epoch
        self._speed = ""  # the last measured speed, in words
        self._untimed = 0  # steps of the window that the clock does not cover
        self._began = self._mark = self._shown = time.perf_counter()

    def say(self, text: str) -> None:
        """Prints a line that stays above the bar."""
        if self._first_host:
            tqdm.tqdm.write(text)
            sys.stdout.flush()
        self._shown = time.perf_counter()

    def step(self, metrics: steps.Metrics) -> None:
        """Takes the metrics of one more step, on the device."""
        self._window.append(metrics)
        self.done += 1
        if self.done == self._start + 1:
            jax.block_until_ready(metrics)
            self.say(f"compiled and made the first step in {time.perf_counter() - self._mark:.1f} s")
            self._untimed = 1
            self._began = self._mark = time.perf_counter()
            self._open_bar()
            return
        if len(self._window) > steps.IN_FLIGHT:
            jax.block_until_ready(self._window[-1 - steps.IN_FLIGHT])
        if self._bar is not None:
            self._bar.set_description_str(self._position(), refresh=False)
            self._bar.update()

    def fetch(self) -> list[HostMetrics]:
        """Waits for the steps since the last fetch, and logs their means.

        A line has "train/loss", "train/accuracy" and "grad_norm" (means over the steps that were not skipped),
        "learning_rate" (of the last step), "images_per_second" (unless no step was timed) and, if the run may skip
        updates, "train/skipped" (their number).

        Returns:
          The metrics of each of those steps.
        """
        window = self._fetched()
        kept = [metrics for metrics in window if not metrics.get("skipped")]
        numbers: dict[str, float | int] = {}
        if kept:
            numbers |= objectives.means(kept, {"train/loss": "loss", "train/accuracy": "correct"})
            numbers["grad_norm"] = sum(metrics["grad_norm"] for metrics in kept) / len(kept)
        numbers["learning_rate"] = window[-1]["learning_rate"]
        if "skipped" in window[-1]:
            numbers["train/skipped"] = len(window) - len(kept)
        if timed := window[len(self._resumed) + self._untimed :]:
            seconds = time.perf_counter() - self._mark
            numbers["images_per_second"] = sum(metrics["count"] for metrics in timed) / seconds
        for metrics in window:
            self._epoch = {name: self._epoch[name] + metrics[name] for name in NO_STEPS}
        self._resumed, self._window, self._untimed, self._mark = [], [], 0, time.perf_counter()
        self._write(numbers)
        if len(kept) < len(window):
            self.say(f"step {self.done}: left out {len(window) - len(kept)} of {len(window)} updates, not finite")
        if kept:
            self._show(numbers)
        return window

    def pending(self) -> dict[str, Any]:
        """Waits for the steps, and returns the numbers that no line has yet, so a resumed run writes exact lines."""
        return {"window": self._fetched(), "epoch": self._epoch}

    def epoch(self, results: Mapping[str, float | int]) -> None:
        """Logs the evaluation at the end of an epoch.

        Args:
          results: of `scoring.evaluate_state` on the test images, or the hold-out ("held_out").

        Raises:
          DivergedError: every update of the epoch was skipped.
        """
        if not self._epoch["count"]:
            raise DivergedError(
                f"training diverged: got no finite update in the epoch up to step {self.done}, expected some. Lower "
                f"`optim.lr` or warm up longer (`optim.warmup_epochs`), in a new `workdir`."
            )
        judge = "holdout" if "held_out" in results else "test"
        self._write({f"{judge}/{name}": value for name, value in results.items() if name not in ("count", "held_out")})
        averages = objectives.means([self._epoch], {"loss": "loss", "accuracy": "correct"})
        average = f" (moving average {results['average_accuracy']:.2%})" if "average_accuracy" in results else ""
        self.say(
            f"{self._position()}  step {self.done}"
            f"  training: loss {averages['loss']:.4f}, accuracy {averages['accuracy']:7.2%}"
            f"  {judge}: loss {results['loss']:.4f}, accuracy {results['accuracy']:7.2%}{average}"
            f"{self._speed}, {self._time_left()} left"
        )
        self._epoch, self._mark = dict(NO_STEPS), time.perf_counter()

    def close(self) -> None:
        """Removes the bar and closes the logs."""
        if self._bar is not None:
            self._bar.close()
        if self._log is not None:
            self._log.close()

    def _fetched(self) -> list[HostMetrics]:
        window = jax.device_get(self._window)
        return [*self._resumed, *({name: value.item() for name, value in metrics.items()} for metrics in window)]

    def _open_bar(self) -> None:
        if self._first_host and sys.stderr.isatty():
            # smoothing=0: the time left follows from the mean over all steps since the first, evaluations included.
            self._bar = tqdm.tqdm(
                total=self._total,
                initial=self.done,
                desc=self._position(),
                bar_format=BAR,
                smoothing=0,
                dynamic_ncols=True,
                leave=False,
            )

    def _write(self, numbers: Mapping[str, float | int]) -> None:
        if self._log is not None:
            self._log.write(self.done, {"epoch": self.done / self._steps_per_epoch, **numbers})

    def _show(self, numbers: Mapping[str, float | int]) -> None:
        if "images_per_second" in numbers:
            self._speed = f", {numbers['images_per_second']:,.0f} images/s"
        text = f"loss {numbers['train/loss']:.4f}, accuracy {numbers['train/accuracy']:.2%}{self._speed}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif time.perf_counter() - self._shown > LINE_EVERY_SECONDS:
            self.say(f"{self._position()}  step {self.done}/{self._total}: {text}, {self._time_left()} left")

    def _position(self) -> str:
        epochs = self._total // self._steps_per_epoch
        return f"epoch {-(-self.done // self._steps_per_epoch):{len(str(epochs))}}/{epochs}"

    def _time_left(self) -> str:
        timed = self.done - self._start - 1
        if timed < 1:  # nothing is known yet, as after an evaluation that a resumed run has made first
            return "?"
        return tqdm.tqdm.format_interval((time.perf_counter() - self._began) / timed * (self._total - self.done))
