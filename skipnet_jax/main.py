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

from skipnet_jax import config, errors, libraries
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

# The modes that a flag is for; a flag that is missing here is for all modes.
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

# Outside training a workdir brings its config, and these flags change it.
_FLAGS_OF_FIELDS = {
    "data.name": DATASETS,
    "data.dir": DATA_DIR,
    "data.image_size": IMAGE_SIZES,
    "data.eval_classes": EVAL_CLASSES,
}

FAILED = 1  # a bug, or the machine: worth another try
USER_ERROR = 2
INTERRUPTED = signals.EXIT + signal.SIGINT  # 130; a run that SIGTERM stopped ends with 143


def main(argv: Sequence[str]) -> int:
    """Does what the flags say.

    Args:
      argv: what is left of the command line, program name first.

    Returns:
      Exit status: 0 = done, 1 = the machine failed, 2 = a mistake of the user's, 130 and 143 = stopped by SIGINT and
      SIGTERM, 75 = another host is lost, so that all should be started again.
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
        status = _report(error)
        if status is None:
            raise
        return _end(status)
    return 0


def _check_flags(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise errors.UserError("command line", repr(argv[1]), "flags only (--name=value)", "See --help.")
    if not WORKDIR.value:
        raise errors.UserError("workdir", "nothing", "the folder of the run", "Give --workdir=runs/NAME.")
    if MODE.value == "train" and CONFIG.value is None:
        raise errors.UserError("config", "nothing", "a recipe", "Give --config=configs/digits.py or another.")
    for flag, modes in _MODES:
        if flag.present and MODE.value not in modes:
            raise errors.UserError(
                flag.name,
                f"a value in --mode={MODE.value}",
                f"none, since the flag is for {' and '.join(f'--mode={mode}' for mode in modes)}",
                "Leave it out; a workdir remembers its config.",
            )
    for size in IMAGE_SIZES.value:
        if not size.isdecimal():
            raise errors.UserError("image_sizes", repr(size), "pixels, as in --image_sizes=224,256")
    _check_hosts()


def _check_hosts() -> None:
    for flag in (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID):
        if flag.present and not DISTRIBUTED.value:
            raise errors.UserError(
                flag.name, "a value without --distributed", "both or none", "Add --distributed, or leave it out."
            )
    if COORDINATOR_ADDRESS.value is not None and not re.fullmatch(r".+:\d{1,5}", COORDINATOR_ADDRESS.value):
        raise errors.UserError(
            "coordinator_address",
            repr(COORDINATOR_ADDRESS.value),
            "host:port of process 0",
            "Give a port that is free there, as in --coordinator_address=HOST0:1234.",
        )
    if NUM_PROCESSES.value is not None and (PROCESS_ID.value or 0) >= NUM_PROCESSES.value:
        raise errors.UserError(
            "process_id",
            f"{PROCESS_ID.value}",
            f"0 to {NUM_PROCESSES.value - 1}, since --num_processes={NUM_PROCESSES.value}",
            "Change one of them.",
        )


def _dispatch() -> None:
    libraries.quieten_orbax()
    libraries.quieten_tensorflow(level=2)  # its warnings about a damaged image do not say which image
    logging.getLogger("skipnet_jax").setLevel(logging.WARNING)  # users want to see which images are left out
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
    """Says goodbye to the other hosts, if there are any, before this process gives up what they may wait for."""
    if _is_distributed():
        from skipnet_jax.runs import hosts

        hosts.leave(status)
    return status


def _report(error: Exception) -> int | None:
    """Tells the user about an error.

    Returns:
      The exit status, or None for a bug, which keeps its trace.
    """
    if isinstance(error, errors.UserError):
        print(f"error: {error.message(_spell)}", file=sys.stderr)
        return USER_ERROR
    if isinstance(error, errors.DivergedError):
        print(f"error: {errors.spell_fields(str(error), _spell)}", file=sys.stderr)
        return USER_ERROR
    if isinstance(error, errors.SavingError):
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"error: {error}. Make room for --workdir, and run the same command again.", file=sys.stderr)
        return FAILED
    if not _is_distributed():
        return None
    from skipnet_jax.runs import hosts

    if hosts.is_lost(error):
        print(f"error: {hosts.lost_text(error, WORKDIR.value)}", file=sys.stderr)
        return hosts.LOST
    traceback.print_exception(error)  # now, since the other hosts must not wait for the end of this process
    return FAILED


def _spell(field: str) -> str:
    """A field as the user types it: optim.lr is --config.optim.lr, and workdir is --workdir."""
    mode = flags.FLAGS["mode"].value  # not MODE.value, which raises before the flags are parsed
    if mode != "train" and field in _FLAGS_OF_FIELDS:
        return f"--{_FLAGS_OF_FIELDS[field].name}"
    if field in config.fields():
        return f"--config.{field}"
    return f"--{field}" if field in flags.FLAGS else field


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags: help ends with status 0, a mistake with one line instead of a stack trace."""
    if {"--help", "-help", "-h", "-?"} & set(argv):
        print(f"{__doc__}\nFlags:\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        sys.exit(0)
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # configs/ import each other
    try:
        return config.parse_flags(argv)
    except errors.UserError as error:
        print(f"error: {error.message(_spell)}", file=sys.stderr)
    except (flags.Error, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
