"""A trained network in a form for others to run, compared with the original before it is there.

    orbax           parameters and statistics alone, as a workdir: for `--config.init_from`, evaluation, Python
    stablehlo       a program for CPU, CUDA and TPU in one file: `jax.export`
    savedmodel      a program for TensorFlow and its servers
    onnx            a program for ONNX Runtime and what else reads ONNX
    safetensors     the parameters under the names of the original, for PyTorch

Programs hold their parameters, take normalised float32 images [b, h, w, 3] for any b, and return float32 logits [b, k].
Where the run keeps a moving average, the average is what is exported: the best checkpoint is the best average's.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import UInt8

from skipnet_jax import files
from skipnet_jax.data import pipeline, sources
from skipnet_jax.evaluation import preprocessing as preprocess
from skipnet_jax.evaluation.predictor import Predictor, load_workdir
from skipnet_jax.exports import artifacts, onnx_graph, saved_model
from skipnet_jax.exports.atomic_folder import put_in_place, require_free
from skipnet_jax.interop import checkpoint_files, torch_weights
from skipnet_jax.runs import checkpoint as checkpoints
from skipnet_jax.runs import weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.specs import DataSpec, ModelSpec

PLATFORMS = ("cpu", "cuda", "tpu")
FOLDER = "export"  # in a workdir
IMAGES = 5  # to compare on, all at once and one alone
TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
      workdir: of the run, or of converted weights.
      network: its best or another checkpoint, as it was trained.
      model: settings of the network.
      data: of the run; None for converted weights.
      step: of the checkpoint.
      averaged: it is the moving average.
    """

    workdir: epath.Path
    network: Predictor
    model: ModelSpec
    data: DataSpec | None
    step: int
    averaged: bool


def export_workdir(
    path: epath.PathLike,
    format: str = "orbax",
    out: epath.PathLike | None = None,
    checkpoint: str = "best",
    *,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint of a workdir, and shows that the result computes what the network does.

    What is written is read back and run on test images of the run's data set (on noise where they are not here), and
    appears at its place only if the logits agree. An earlier export there is replaced.

    Args:
      path: a workdir that training made, or converted weights.
      format: see above.
      out: a local folder; None = WORKDIR/export/FORMAT.
      checkpoint: best (by validation accuracy, the average's if there is one), latest, or a step.
      data_dir: where the data set is; None = where the run has its own.

    Returns:
      What export.json tells.

    Raises:
      ValueError: there is no such run, checkpoint or format, a library is missing, the folder holds something else, or
        the logits differ.
    """
    if format not in _WRITERS:
        raise ValueError(f"--format: got {format!r}, expected one of {', '.join(_WRITERS)}.")
    artifacts.require_libraries(format)
    workdir = workdirs.locate(path)
    place = require_free(workdir / FOLDER / format if out is None else workdirs.locate(out))
    source = _read(workdir, checkpoint)
    images, told = _test_images(source, data_dir)
    size = source.network.preprocessing.image_size
    record: dict[str, Any] = {
        "format": format,
        "network": dataclasses.asdict(source.model) | {"dtype": "float32"},
        "checkpoint": str(workdir / workdirs.CHECKPOINTS / str(source.step)),
        "step": source.step,
        "weights": "moving average" if source.averaged else "parameters",
        "input": {"name": onnx_graph.INPUT, "dtype": "float32", "shape": ["b", size, size, 3]},
        "output": {"name": onnx_graph.OUTPUT, "dtype": "float32", "shape": ["b", source.model.num_classes]},
        "jax": jax.__version__,
    }
    with _on_cpu(), put_in_place(place) as folder:
        network = artifacts.in_float32(source.network)
        _WRITERS[format](source, network, folder)
        (folder / preprocess.FILE).write_text(source.network.preprocessing.to_json())
        files.write_json(epath.Path(folder / artifacts.RECORD), record)
        record |= {"compared_on": told} | _compare(network, folder, images)
        files.write_json(epath.Path(folder / artifacts.RECORD), record)
    written = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    print(
        f"{source.model.name} at step {source.step} ({record['weights']}) as {format}, {written / 1e6:.1f} MB: largest "
        f"difference to the network {record['largest_difference']:.1e} in logits up to {record['largest_logit']:.3g} "
        f"({record['tolerance']:.0e} allowed), on {told}\nwritten to {place}",
        flush=True,
    )
    return record


def _read(workdir: epath.Path, which: str) -> Source:
    network = load_workdir(workdir, which)
    with checkpoints.open_manager(workdir / workdirs.CHECKPOINTS, read_only=True) as manager:
        step = checkpoints.find(manager, which)
    if (workdir / weights.MODEL).exists():
        made = network.preprocessing
        return Source(workdir, network, ModelSpec(made.model, len(made.class_names)), None, step, False)
    spec = workdirs.read_spec(workdir)
    return Source(workdir, network, spec.model, spec.data, step, spec.ema_decay > 0)


def _test_images(source: Source, data_dir: str | None) -> tuple[UInt8[np.ndarray, "b h w 3"], str]:
    """A few images as evaluation gives them, and where they are from."""
    size = source.network.preprocessing.image_size
    why = "the weights were trained elsewhere"
    if source.data is not None:
        data = source.data if data_dir is None else dataclasses.replace(source.data, dir=data_dir)
        try:
            split = sources.load(data, "test")
            batch = next(iter(pipeline.eval_batches(split, data, batch_size=IMAGES)))
            images = batch["image"][batch["mask"]]
            return images, f"{len(images)} test images of {data.name}"
        except ValueError as error:
            why = f"the run's images cannot be had: {str(error).splitlines()[0]}"
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    return noise, f"{IMAGES} images of noise, since {why}"


def _compare(network: Predictor, folder: pathlib.Path, images: UInt8[np.ndarray, "b h w 3"]) -> dict[str, float]:
    """Runs what was written, with all images and with one.

    Raises:
      ValueError: its logits are others than the network's.
    """
    artifact = artifacts.load_artifact(folder)
    expected = network.logits(images)
    differences = [np.abs(artifact.logits(images[:k]) - expected[:k]).max() for k in (1, len(images))]
    difference, largest = float(np.max(differences)), float(np.abs(expected).max())
    tolerance = TOLERANCE * max(1.0, largest)
    if not difference <= tolerance:  # not a number is refused too
        raise ValueError(
            f"--format: got a {artifact.format} export whose logits differ by {difference:.1e} from the network's, "
            f"expected at most {tolerance:.1e}. Nothing was written. Use another --format, and report this."
        )
    return {"largest_difference": difference, "largest_logit": largest, "tolerance": tolerance}


def _write_orbax(source: Source, network: Predictor, folder: pathlib.Path) -> None:
    """A workdir whose only checkpoint has neither an optimizer's state nor an average beside the parameters."""
    for name in (workdirs.DATA, weights.MODEL):
        if (source.workdir / name).exists():
            (folder / name).write_bytes((source.workdir / name).read_bytes())
    if source.data is not None:
        config = files.read_json(source.workdir / workdirs.CONFIG) | {"ema_decay": 0.0}
        files.write_json(epath.Path(folder / workdirs.CONFIG), config)
    variables = {"params": {}, "batch_stats": {}} | source.network.variables
    state = {"step": jnp.asarray(source.step, jnp.int32), **variables}
    with checkpoints.open_manager(epath.Path(folder / workdirs.CHECKPOINTS)) as manager:
        checkpoints.save(manager, source.step, state, weights.NO_RESULTS)


def _write_stablehlo(source: Source, network: Predictor, folder: pathlib.Path) -> None:
    from jax import export

    [batch] = export.symbolic_shape("b")
    size = network.preprocessing.image_size
    program = jax.jit(functools.partial(artifacts.apply, network.model, network.variables))
    exported = export.export(program, platforms=PLATFORMS)(jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32))
    (folder / artifacts.STABLEHLO).write_bytes(exported.serialize())


def _write_saved_model(source: Source, network: Predictor, folder: pathlib.Path) -> None:
    function = functools.partial(artifacts.apply, network.model)
    saved_model.save(function, network.variables, network.preprocessing.image_size, PLATFORMS, str(folder))


def _write_onnx(source: Source, network: Predictor, folder: pathlib.Path) -> None:
    function = functools.partial(artifacts.apply, network.model, network.variables)
    model = onnx_graph.convert(function, network.preprocessing.image_size)
    onnx_graph.save(model, str(folder / artifacts.ONNX))


def _write_safetensors(source: Source, network: Predictor, folder: pathlib.Path) -> None:
    state_dict = torch_weights.to_state_dict(source.model.name, network.variables)
    checkpoint_files.write(folder / artifacts.SAFETENSORS, state_dict, source.model.name)


_WRITERS: dict[str, Callable[[Source, Predictor, pathlib.Path], None]] = {
    "orbax": _write_orbax,
    "stablehlo": _write_stablehlo,
    "savedmodel": _write_saved_model,
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
}


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Compares in float32 proper: accelerators multiply less exactly, which would hide a mistake."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ValueError(
            f"JAX_PLATFORMS: got {os.environ.get('JAX_PLATFORMS')!r}, expected cpu among them, where exports are "
            f"compared. Leave the variable out, or add cpu after a comma."
        ) from error
    with jax.default_device(device):
        yield
