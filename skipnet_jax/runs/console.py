"""What a run says of itself while it trains: a bar on a terminal or plain lines, and numbers for the workdir."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import tqdm
from etils import epath

from skipnet_jax.runs.metrics_log import MetricsLog
from skipnet_jax.training import objectives, steps

Sums = dict[str, float | int]  # of a step, on the host: `steps.Metrics` as plain numbers, exactly

LINE_EVERY_SECONDS = 30.0  # without a terminal: a sign of life within long epochs
NOTHING = {"loss": 0.0, "correct": 0, "count": 0}
BAR = "{desc} |{bar}| step {n_fmt}/{total_fmt}{postfix} [{elapsed}, {remaining} left]"


class Console:
    """Collects the numbers of a run, measures its speed, and shows and writes both.

    Numbers stay on the device until `fetch`; a step only waits for the one before the last two. Speed is measured
    from fetch to fetch, without the first step (compilation) and without evaluation. Hosts other than the first collect
    too, but show and write nothing.

    Attributes:
      done: steps behind the run.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start: int,
        total: int,
        steps_per_epoch: int,
        carried: Mapping[str, Any] | None = None,
        unevaluated: bool = False,
        wandb_project: str = "",
    ) -> None:
        """Opens the logs.

        Args:
          workdir: of the run.
          start: step that training goes on from.
          total: steps of the whole run.
          steps_per_epoch: floor(training examples / batch size).
          carried: `snapshot` at the step that training goes on from.
          unevaluated, wandb_project: as for `MetricsLog`.
        """
        carried = carried or {}
        self._first_host = jax.process_index() == 0
        self._log: MetricsLog | None = None
        if self._first_host:
            self._log = MetricsLog(workdir, step=start, unevaluated=unevaluated, wandb_project=wandb_project)
        self._bar: tqdm.tqdm | None = None
        self._start, self.done, self._total, self._steps_per_epoch = start, start, total, steps_per_epoch
        self._carried: list[Sums] = list(carried.get("window", []))  # before this start, since the last fetch
        self._window: list[steps.Metrics] = []  # since the last fetch
        self._epoch: Sums = dict(carried.get("epoch", NOTHING))  # fetched, since the last epoch
        self._speed = ""  # in words, of the last fetch that has one
        self._untimed = 0  # steps of the window that its time does not cover
        self._began = self._mark = self._shown = time.perf_counter()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._first_host:
            tqdm.tqdm.write(text)
            sys.stdout.flush()
        self._shown = time.perf_counter()

    def step(self, sums: steps.Metrics) -> None:
        """One more step is on its way.

        Args:
          sums: of `steps.train_step`, on the device.
        """
        self._window.append(sums)
        self.done += 1
        if self.done == self._start + 1:
            jax.block_until_ready(sums)
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

    def fetch(self) -> list[Sums]:
        """Waits for the steps since the last fetch and writes their means.

        Written are "train/loss", "train/accuracy", "learning_rate" (of the last step), "grad_norm" (mean),
        "images_per_second" (absent if no step was timed), and where updates may be left out "train/skipped", their
        number; the means are over the others.

        Returns:
          The sums of each of those steps.
        """
        window = self._fetched()
        kept = [sums for sums in window if not sums.get("skipped")]
        numbers: dict[str, float | int] = {}
        if kept:
            numbers |= objectives.means(kept, {"train/loss": "loss", "train/accuracy": "correct"})
            numbers["grad_norm"] = sum(sums["grad_norm"] for sums in kept) / len(kept)
        numbers["learning_rate"] = window[-1]["learning_rate"]
        if "skipped" in window[-1]:
            numbers["train/skipped"] = len(window) - len(kept)
        if timed := window[len(self._carried) + self._untimed :]:
            seconds = time.perf_counter() - self._mark
            numbers["images_per_second"] = sum(sums["count"] for sums in timed) / seconds
        for sums in window:
            self._epoch = {name: self._epoch[name] + sums[name] for name in NOTHING}
        self._carried, self._window, self._untimed, self._mark = [], [], 0, time.perf_counter()
        self._write(numbers)
        if len(kept) < len(window):
            self.say(f"step {self.done}: left out {len(window) - len(kept)} of {len(window)} updates, not finite")
        if kept:
            self._show(numbers)
        return window

    def snapshot(self) -> dict[str, Any]:
        """What is under way between two fetches and two epochs, for `carried`; waits for the steps, writes nothing."""
        return {"window": self._fetched(), "epoch": self._epoch}

    def epoch(self, results: Mapping[str, float | int]) -> None:
        """An epoch is evaluated.

        Args:
          results: of `scoring.evaluate_state` on the test images.

        Raises:
          FloatingPointError: every update of the epoch was left out.
        """
        if not self._epoch["count"]:
            raise FloatingPointError(
                f"training diverged: got no finite update in the epoch up to step {self.done}, expected some. Lower "
                f"--config.optim.lr or warm up longer (--config.optim.warmup_epochs), in a new --workdir."
            )
        self._write({f"test/{name}": value for name, value in results.items() if name != "count"})
        averages = objectives.means([self._epoch], {"loss": "loss", "accuracy": "correct"})
        average = f" (moving average {results['average_accuracy']:.2%})" if "average_accuracy" in results else ""
        self.say(
            f"{self._position()}  step {self.done}"
            f"  training: loss {averages['loss']:.4f}, accuracy {averages['accuracy']:7.2%}"
            f"  test: loss {results['loss']:.4f}, accuracy {results['accuracy']:7.2%}{average}"
            f"{self._speed}, {self._time_left()} left"
        )
        self._epoch, self._mark = dict(NOTHING), time.perf_counter()

    def close(self) -> None:
        """Takes the bar away and closes the logs."""
        if self._bar is not None:
            self._bar.close()
        if self._log is not None:
            self._log.close()

    def _fetched(self) -> list[Sums]:
        window = jax.device_get(self._window)
        return [*self._carried, *({name: value.item() for name, value in sums.items()} for sums in window)]

    def _open_bar(self) -> None:
        if self._first_host and sys.stderr.isatty():
            # smoothing=0: the time left follows from the mean over all steps since the first, evaluations included
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
        seconds = (time.perf_counter() - self._began) / timed * (self._total - self.done) if timed else 0
        return tqdm.tqdm.format_interval(seconds)
