"""Writes the weights of a workdir as a file for torch, under the names of the implementation that will read it."""

from etils import epath

from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, recognition, torch_weights
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs


def write(
    workdir: epath.PathLike,
    file: str,
    *,
    naming: str = "original",
    checkpoint: str = "best",
    which: str | None = None,
    model: str | None = None,
) -> None:
    """Writes a file, and says so.

    Args:
      workdir: of a run, or of converted weights.
      file: its ending chooses the format, see `checkpoint_files.write`.
      naming: whose names the arrays get, a key of `recognition.TITLES`.
      checkpoint: best, latest or a step.
      which: of a run, "ema" = the moving average, "raw" = the parameters beside it, None = the average if the run keeps
        one, as in evaluation and in exports.
      model: the network that is expected there; None = any.

    Raises:
      UserError: there are no such weights, they are another network's, or `naming` does not have the network.
    """
    keeps_average = workdirs.read_spec(workdir).ema_decay > 0
    if which == "ema" and not keeps_average:
        raise UserError("weights", repr(which), f"'raw', since {workdir} has no moving average", "Leave out `weights`.")
    read = weights.load(workdir, checkpoint, averaged=keeps_average and which != "raw")
    spec = read.spec.model
    if spec.gate_reduction or spec.dtype == "float64":
        raise UserError(
            "workdir",
            f"model.gate_reduction={spec.gate_reduction} and model.dtype={spec.dtype} in {workdir}",
            "the network's own gate_reduction (0) and parameters in float32, since torch's networks have no others",
        )
    if model is not None and model != spec.name:
        raise UserError("model", repr(model), f"{spec.name!r}, the network in {workdir}", "Leave out `model`.")
    checkpoint_files.write(file, torch_weights.to_state_dict(spec.name, read.variables, naming), spec.name)
    as_in = recognition.title(naming, spec.name)
    kind = ", moving average" if read.averaged else ", parameters beside the moving average" if keeps_average else ""
    print(f"{spec.name}: {workdir} ({checkpoint}{kind}) -> {file}, named as in {as_in}", flush=True)
