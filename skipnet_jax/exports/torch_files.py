"""Writes the weights of a workdir as a file for torch, under the names of the implementation that will read it."""

from etils import epath

from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, recognition, torch_weights
from skipnet_jax.runs import weights


def write(
    workdir: epath.PathLike, file: str, *, naming: str = "original", checkpoint: str = "best", model: str | None = None
) -> None:
    """Writes a file, and says so.

    Args:
      workdir: of a run, or of converted weights.
      file: its ending chooses the format, see `checkpoint_files.write`.
      naming: whose names the arrays get, a key of `recognition.TITLES`.
      checkpoint: best, latest or a step; of a run, the parameters and not their moving average.
      model: the network that is expected there; None = any.

    Raises:
      UserError: there are no such weights, they are another network's, or `naming` does not have the network.
    """
    read = weights.load(workdir, checkpoint, averaged=False)
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
    print(f"{spec.name}: {workdir} ({checkpoint}) -> {file}, named as in {as_in}", flush=True)
