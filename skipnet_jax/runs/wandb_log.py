"""The metrics of a run at Weights & Biases: one run there, however often it is interrupted here.

What is there equals metrics.jsonl: at each start first the lines are sent that are missing there, those of a time
without network or from before it was turned on. Steps that are made again after a restart are sent once: there stays
what came first, which differs only if the config was changed. After `kill -9` the lines of the last half minute are
sent again, since they may not have arrived; then some are there twice, at the same step with the same numbers. Nothing
there can stop or hold up a run: what fails is said once, and made up for at the next start.

It is an optional extra. Its own environment variables hold: WANDB_MODE=offline writes to the workdir alone, for
`wandb sync`.
"""

import collections
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.runs import workdir as workdirs

INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # that a run waits for W&B, at most
SETTLED_SECONDS = 30.0  # after which a line is safe from `kill -9`: W&B writes its file every 15 s


def require_installed(project: str) -> None:
    """Raises if metrics are to be sent, and cannot be.

    Args:
      project: see `specs.TrainSpec.wandb_project`.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"wandb_project: got {project!r}, expected '', since Weights & Biases is not installed. Run: pip install "
            f'-e ".[wandb]", or leave out --config.wandb_project.'
        )


class WandbLog:
    """Sends lines of metrics.jsonl to a project at Weights & Biases."""

    def __init__(self, workdir: epath.Path, project: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Opens the run, or goes on with it, and sends the lines that are missing there.

        Args:
          workdir: of the run; keeps its id, and how far it has come there.
          project: a name; a new one begins with all lines.
          lines: of the run so far.
        """
        self._run: Any = None
        self._file = workdir / workdirs.WANDB
        self._place = [-1, 0]  # step of the last line, and how many lines it has so far
        self._on_the_way: collections.deque[tuple[float, list[int]]] = collections.deque()  # when, and which line
        try:
            self._state = self._read_state(project)
            self._run = self._open(workdir)
            if self._run is not None:
                for line in lines:
                    self._send(line)
        except Exception as error:  # of whatever kind: no log is worth a run
            self._give_up(error)

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends a line, unless an earlier start of the run did."""
        if self._run is None:
            return
        try:
            self._send(line)
            self._settle(time.monotonic() - SETTLED_SECONDS)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Waits, not for long, until all is sent."""
        if self._run is None:
            return
        try:
            self._run.finish()
            self._settle(time.monotonic())
        except Exception as error:
            self._give_up(error)

    def _read_state(self, project: str) -> dict[str, Any]:
        state = files.read_json(self._file) if self._file.exists() else {}
        if state.get("project") != project:
            state = {"project": project, "id": secrets.token_hex(4), "sent": [-1, 0]}
            files.write_json(self._file, state)
        return state

    def _open(self, workdir: epath.Path) -> Any:
        """The run there; None where the user has turned W&B off or is not logged in."""
        import wandb

        local = "://" not in str(workdir)
        settings = wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
        mode = wandb.setup(settings).settings.mode
        if mode == "disabled":
            return None
        if mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("not logged in. Run: wandb login, or set WANDB_MODE=offline")
        run = wandb.init(
            project=self._state["project"],
            id=self._state["id"],
            resume="allow",
            name=workdir.name,
            dir=str(workdir) if local else None,
            config=files.read_json(workdir / workdirs.CONFIG),
            allow_val_change=True,  # a run may go on with another config
            settings=settings,
        )
        # An axis of its own: of a step number W&B accepts no second line, and after a resumption no earlier one.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        where = run.url or f"offline in {os.path.dirname(run.dir)}"
        print(f"Weights & Biases: run {self._state['id']}, {where}", flush=True)
        return run

    def _send(self, line: Mapping[str, Any]) -> None:
        step, count = self._place
        self._place = [line["step"], count + 1 if line["step"] == step else 1]
        if self._place > self._state["sent"]:
            self._run.log(dict(line))
            self._on_the_way.append((time.monotonic(), self._place))

    def _settle(self, until: float) -> None:
        """Keeps in the workdir that the lines sent until then need not be sent again."""
        settled = None
        while self._on_the_way and self._on_the_way[0][0] <= until:
            _, settled = self._on_the_way.popleft()
        if settled:
            self._state["sent"] = settled
            files.write_json(self._file, self._state)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        text = str(error).strip().splitlines()
        print(
            f"warning: nothing goes to Weights & Biases until the next start of the run, which makes up for it: "
            f"{text[0] if text else type(error).__name__}",
            file=sys.stderr,
            flush=True,
        )
