r"""Trains, evaluates, explains and exports SkipResNets.

For example:

  Train on the digits that come with scikit-learn:
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits

  Go on after an interruption: the same command again.

  Change any field of the config:
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits_dense \
        --config.model.name=dense_resnet20 --config.optim.lr=0.05

  Go on with other values; without --allow_change that is refused:
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits \
        --config.epochs=48 --allow_change=epochs

  Evaluate the best checkpoint, the latest, or that of a step; no config needed:
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/digits
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/digits --checkpoint=latest

  Evaluate on other data sets and at other sizes:
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/skip_resnet50 \
        --datasets=imagenet2012,imagenet_a --image_sizes=224,256,288,320
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/digits --details --flip

  Draw what the gates let through, and export the network for others to run:
    python -m skipnet_jax.main --mode=explain --workdir=runs/digits
    python -m skipnet_jax.main --mode=export --workdir=runs/digits --format=onnx

  Train on several hosts, the same command on each: on TPU pods and under Slurm, Open MPI or Kubernetes with
  --distributed alone, elsewhere with
    python -m skipnet_jax.main ... --distributed --coordinator_address=HOST0:1234 --num_processes=4 --process_id=0
"""

import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from skipnet_jax import config, libraries
from skipnet_jax.data import sources, storage
from skipnet_jax.runs import signals

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe to train with: a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://...")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "explain", "export"], "What to do.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, latest or a step.")
ALLOW_CHANGE = flags.DEFINE_list("allow_change", [], "Fields of the config that may change when a run goes on.")
DATASETS = flags.DEFINE_list("datasets", [], "Evaluate on these data sets; default: the run's own.")
IMAGE_SIZES = flags.DEFINE_list("image_sizes", [], "Evaluate at these sizes, in pixels; default: the run's own.")
EVAL_CLASSES = flags.DEFINE_enum(
    "eval_classes", "all", ["all", "own"], "Predict one of all classes, or of imagenet_a's and imagenet_r's own 200."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data sets are; default: as in training.")
FLIP = flags.DEFINE_bool("flip", False, "Evaluate each image together with its mirror image.")
DETAILS = flags.DEFINE_bool("details", False, "Evaluate by class and by confidence too: tables and pictures.")
IMAGES = flags.DEFINE_list("images", [], "Image files to explain one by one; default: some test images.")
FORMAT = flags.DEFINE_enum(
    "format", "orbax", ["orbax", "stablehlo", "savedmodel", "onnx", "safetensors"], "What to export as."
)
OUT = flags.DEFINE_string("out", None, "Folder for what is explained or exported; default: in the workdir.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a run before anything else.")
COORDINATOR_ADDRESS = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where not detected.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts, where not detected.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this host from 0, where not detected.", lower_bound=0)

# The modes that a flag is for; one that is not here is for all.
_MODES: list[tuple[flags.FlagHolder[Any], tuple[str, ...]]] = [
    (CONFIG, ("train",)),
    (ALLOW_CHANGE, ("train",)),
    (DISTRIBUTED, ("train", "evaluate")),
    (CHECKPOINT, ("evaluate", "explain", "export")),  # training goes on from the latest
    (DATA_DIR, ("evaluate", "explain", "export")),  # training has --config.data.dir
    (DATASETS, ("evaluate",)),
    (IMAGE_SIZES, ("evaluate",)),
    (EVAL_CLASSES, ("evaluate",)),
    (FLIP, ("evaluate",)),
    (DETAILS, ("evaluate",)),
    (IMAGES, ("explain",)),
    (FORMAT, ("export",)),
    (OUT, ("explain", "export")),
]

FAILED = 1  # a bug, or the machine: worth another try
USER_ERROR = 2
INTERRUPTED = signals.EXIT + signal.SIGINT  # 130; a run that SIGTERM stopped ends with 143


def main(argv: Sequence[str]) -> int:
    """Does what the flags say.

    Args:
      argv: what is left of the command line, program name first.

    Returns:
      Exit status: 0 = done, 2 = a mistake of the user's, 130 and 143 = stopped by SIGINT and SIGTERM, 75 = another host
      is lost, so that all should be started again.
    """
    try:
        _check_flags(argv)
        _dispatch()
    except signals.Stopped as stop:
        print(stop, file=sys.stderr)
        return _end(stop.exit_status)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped before training began. Run the same command again.", file=sys.stderr)
        return _end(INTERRUPTED)
    except Exception as error:
        status = _tell(error)
        if status is None:
            raise
        return _end(status)
    return 0


def _check_flags(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"command line: got {argv[1]!r}, expected flags only (--name=value). See --help.")
    if not WORKDIR.value:
        raise ValueError("--workdir: got nothing, expected the folder of the run. Give --workdir=runs/NAME.")
    if MODE.value == "train" and CONFIG.value is None:
        raise ValueError("--config: got nothing, expected a recipe. Give --config=configs/digits.py or another.")
    for flag, modes in _MODES:
        if flag.present and MODE.value not in modes:
            raise ValueError(
                f"--{flag.name}: got one with --mode={MODE.value}, expected none, since it is for "
                f"{' and '.join(f'--mode={mode}' for mode in modes)}. Leave it out; a workdir remembers its config."
            )
    for size in IMAGE_SIZES.value:
        if not size.isdecimal():
            raise ValueError(f"--image_sizes: got {size!r}, expected pixels, as in --image_sizes=224,256.")
    if not DISTRIBUTED.value and any(flag.present for flag in (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)):
        raise ValueError(
            "--distributed: got no, expected yes with the address or number of a process. Add --distributed."
        )
    if COORDINATOR_ADDRESS.value is not None and not re.fullmatch(r".+:\d{1,5}", COORDINATOR_ADDRESS.value):
        raise ValueError(
            f"--coordinator_address: got {COORDINATOR_ADDRESS.value!r}, expected host:port of process 0. Give a port "
            f"that is free there, as in --coordinator_address=HOST0:1234."
        )
    if NUM_PROCESSES.value is not None and (PROCESS_ID.value or 0) >= NUM_PROCESSES.value:
        raise ValueError(
            f"--process_id: got {PROCESS_ID.value}, expected 0 to {NUM_PROCESSES.value - 1}, one for each of the "
            f"--num_processes={NUM_PROCESSES.value}. Change one of them."
        )


def _dispatch() -> None:
    libraries.quieten_orbax()
    libraries.quieten_tensorflow(level=2)  # its warnings of a damaged image do not say which
    logging.getLogger("skipnet_jax").setLevel(logging.WARNING)  # what is left out of the data is to be seen
    storage.require_bucket(WORKDIR.value or "")  # TensorFlow would go on trying for minutes
    if MODE.value == "train":
        spec = config.train_spec(CONFIG.value)
        sources.require_available(spec.data)  # before the many seconds that the other imports take
        _join_hosts()
        libraries.hide_accelerators()
        from skipnet_jax.train import train_and_evaluate

        train_and_evaluate(spec, WORKDIR.value, allow_change=ALLOW_CHANGE.value)
        return
    _join_hosts()
    libraries.hide_accelerators()
    if MODE.value == "evaluate":
        from skipnet_jax.evaluate import evaluate_workdir

        evaluate_workdir(
            WORKDIR.value,
            CHECKPOINT.value,
            datasets=DATASETS.value,
            image_sizes=[int(size) for size in IMAGE_SIZES.value],
            eval_classes=EVAL_CLASSES.value,
            data_dir=DATA_DIR.value,
            flip=FLIP.value,
            detailed=DETAILS.value,
        )
    elif MODE.value == "explain":
        from skipnet_jax.explain import explain_workdir

        explain_workdir(WORKDIR.value, CHECKPOINT.value, images=IMAGES.value, out=OUT.value, data_dir=DATA_DIR.value)
    else:
        from skipnet_jax.exports.export import export_workdir

        export_workdir(WORKDIR.value, FORMAT.value, OUT.value, CHECKPOINT.value, data_dir=DATA_DIR.value)


def _join_hosts() -> None:
    if DISTRIBUTED.value:
        from skipnet_jax.runs import hosts

        hosts.join(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value, workdir=WORKDIR.value)


def _is_distributed() -> bool:
    return flags.FLAGS.is_parsed() and DISTRIBUTED.value  # a test or a notebook may call `main` without flags


def _end(status: int) -> int:
    """Leaves the other hosts, if there are any, before what the run has held is let go, for which some would wait."""
    if _is_distributed():
        from skipnet_jax.runs import hosts

        hosts.leave(status)
    return status


def _tell(error: Exception) -> int | None:
    """Says what an error means for the user; returns the exit status, or None if its trace is what there is to say."""
    if isinstance(error, ValueError | FloatingPointError | OSError) and _is_for_the_user(error):
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, OSError) else USER_ERROR
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"error: {error}. Make room for --workdir, and run the same command again.", file=sys.stderr)
        return FAILED
    if not _is_distributed():
        return None
    from skipnet_jax.runs import hosts

    if hosts.is_lost(error):
        print(f"error: {hosts.lost_text(error, WORKDIR.value)}", file=sys.stderr)
        return hosts.LOST
    traceback.print_exception(error)  # here, since the others are not to wait for the end of this one
    return FAILED


def _is_for_the_user(error: Exception) -> bool:
    """Whether this project raised the error, with a text for the user; others are bugs and keep their trace."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    package = os.path.dirname(os.path.abspath(__file__))
    return last.filename.startswith(package + os.sep) and (last.line or "").startswith("raise ")


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; help ends with status 0, a mistake with one line and not with a stack trace."""
    if {"--help", "-help", "-h", "-?"} & set(argv):
        print(f"{__doc__}\nFlags:\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        sys.exit(0)
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # configs/ import each other
    try:
        return config.parse_flags(argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
