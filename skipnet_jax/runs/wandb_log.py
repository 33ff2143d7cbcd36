"""Sends the metrics of a run to Weights & Biases. However often the run is interrupted, it stays one run there.

W&B itself resumes the run by its id, buffers through network failures, and keeps its files in the workdir, which
`wandb sync` can upload later. Its environment variables work as usual: WANDB_MODE=offline writes to the workdir only.
Steps that are repeated after `kill -9` appear twice, with the same numbers. An error is reported once and never stops
the run. W&B is an optional extra.
"""

import contextlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from skipnet_jax import files
from skipnet_jax.errors import UserError
from skipnet_jax.runs import workdir as workdirs

INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # the longest that a run waits for W&B


def require_installed(project: str) -> None:
    """Raises a UserError if metrics should go to W&B, but it is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "wandb_project",
            repr(project),
            "'', since Weights & Biases is not installed",
            'Run: pip install -e ".[wandb]", or leave out `wandb_project`.',
        )


class WandbLog:
    """A run at Weights & Biases."""

    def __init__(self, workdir: epath.Path, project: str) -> None:
        """Opens the run of this workdir in the project, or resumes it."""
        self._run: Any = None
        with self._reporting():
            self._run = _open(workdir, project)

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends a line of metrics.jsonl."""
        with self._reporting():
            if self._run is not None:
                self._run.log(dict(line))

    def close(self) -> None:
        """Waits, within limits, until everything is sent."""
        with self._reporting():
            if self._run is not None:
                self._run.finish()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Reports any error and switches the log off: no log is worth a run."""
        try:
            yield
        except Exception as error:
            self._run = None
            lines = str(error).strip().splitlines() or [type(error).__name__]
            text = f"WARNING: nothing goes to Weights & Biases until the next start of the run: {lines[0]}"
            print(text, file=sys.stderr, flush=True)


def _open(workdir: epath.Path, project: str) -> Any:
    import wandb

    identity = _identity(workdir / workdirs.WANDB, project)
    settings = wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
    mode = wandb.setup(settings).settings.mode
    if mode == "online" and not wandb.login(prompt=False):  # `init` would ask on the terminal, and wait
        raise RuntimeError("not logged in. Run: wandb login, or set WANDB_MODE=offline")
    run = wandb.init(
        project=project,
        id=identity,
        resume="allow",
        name=workdir.name,
        dir=str(workdir) if files.is_local(workdir) else None,
        config=files.read_json(workdir / workdirs.CONFIG),
        allow_val_change=True,  # a run may resume with another config
        settings=settings,
    )
    # Our own axis: W&B's step counter refuses a second line for a step and, after resuming, any earlier step.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    if mode != "disabled":
        print(f"Weights & Biases: run {identity}, {run.url or f'offline in {os.path.dirname(run.dir)}'}", flush=True)
    return run


def _identity(file: epath.Path, project: str) -> str:
    """The id of this workdir's run in a project; another project gets a new id."""
    if file.exists():
        record = files.read_record(file, {"project": str, "id": str}, mend="Remove the file.")
        if record["project"] == project:
            return record["id"]
    identity = secrets.token_hex(4)
    files.write_json(file, {"project": project, "id": identity})
    return identity
