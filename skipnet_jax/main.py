r"""Trains and evaluates SkipResNets.

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

  Train on several hosts, the same command on each: on TPU pods and under Slurm, Open MPI or Kubernetes with
  --distributed alone, elsewhere with
    python -m skipnet_jax.main ... --distributed --coordinator_address=HOST0:1234 --num_processes=4 --process_id=0
"""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from skipnet_jax import config, interruption
from skipnet_jax.data import sources, storage

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe to train with: a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://...")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Which checkpoint to evaluate: best, latest or a step.")
ALLOW_CHANGE = flags.DEFINE_list("allow_change", [], "Fields of the config that may change when a run goes on.")
DATASETS = flags.DEFINE_list("datasets", [], "Evaluate on these data sets; default: the run's own.")
IMAGE_SIZES = flags.DEFINE_list("image_sizes", [], "Evaluate at these sizes, in pixels; default: the run's own.")
EVAL_CLASSES = flags.DEFINE_enum(
    "eval_classes", "all", ["all", "own"], "Predict one of all classes, or of imagenet_a's and imagenet_r's own 200."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data sets to evaluate on are; default: as in training.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a run before anything else.")
COORDINATOR_ADDRESS = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where not detected.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts, where not detected.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this host from 0, where not detected.", lower_bound=0)

USER_ERROR = 2
INTERRUPTED = interruption.EXIT + signal.SIGINT  # 130; a run that SIGTERM stopped ends with 143
LEAVE_SECONDS = 10.0  # for hosts that stop together to say goodbye


def main(argv: Sequence[str]) -> int:
    """Does what the flags say.

    Args:
      argv: what is left of the command line, program name first.

    Returns:
      Exit status.
    """
    status = 0
    try:
        _check_flags(argv)
        _dispatch()
    except interruption.Stopped as stop:
        print(stop, file=sys.stderr)
        status = stop.exit_status
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped before training began. Run the same command again.", file=sys.stderr)
        status = INTERRUPTED
    except (ValueError, FloatingPointError) as error:
        if not _is_for_the_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = USER_ERROR
    if status and flags.FLAGS.is_parsed() and DISTRIBUTED.value:  # a test or a notebook may call this without flags
        _leave_hosts(status)
    return status


def _check_flags(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"command line: got {argv[1]!r}, expected flags only (--name=value). See --help.")
    if not WORKDIR.value:
        raise ValueError("--workdir: got nothing, expected the folder of the run. Give --workdir=runs/NAME.")
    if MODE.value == "train" and CONFIG.value is None:
        raise ValueError("--config: got nothing, expected a recipe. Give --config=configs/digits.py or another.")
    if MODE.value == "evaluate" and CONFIG.value is not None:
        raise ValueError("--config: got one, expected none, since the workdir remembers its own. Leave out --config.")
    if MODE.value == "train" and CHECKPOINT.present:
        raise ValueError("--checkpoint: got one, expected none, since training goes on from the latest. Leave it out.")
    if MODE.value == "train" and any(flag.present for flag in (DATASETS, IMAGE_SIZES, EVAL_CLASSES, DATA_DIR)):
        raise ValueError(
            "--datasets, --image_sizes, --eval_classes, --data_dir: got one, expected none, since they are for "
            "--mode=evaluate. Training has --config.data.name and so on."
        )
    if MODE.value == "evaluate" and ALLOW_CHANGE.present:
        raise ValueError("--allow_change: got one, expected none, since it is for training. Leave it out.")
    for size in IMAGE_SIZES.value:
        if not size.isdecimal():
            raise ValueError(f"--image_sizes: got {size!r}, expected pixels, as in --image_sizes=224,256.")
    if not DISTRIBUTED.value and any(flag.present for flag in (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)):
        raise ValueError(
            "--distributed: got no, expected yes with the address or number of a process. Add --distributed."
        )


def _dispatch() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax and TFDS tell every move, and warn of what concerns no user
    logging.getLogger("skipnet_jax").setLevel(logging.WARNING)  # what is left out of the data is to be seen
    _quieten_tensorflow()
    storage.require_bucket(WORKDIR.value or "")  # TensorFlow would go on trying for minutes
    if MODE.value == "train":
        spec = config.train_spec(CONFIG.value)
        sources.require_available(spec.data)  # before the many seconds that the other imports take
        _join_hosts()
        _hide_accelerators()
        from skipnet_jax.train import train_and_evaluate

        train_and_evaluate(spec, WORKDIR.value, allow_change=ALLOW_CHANGE.value)
    else:
        _join_hosts()
        _hide_accelerators()
        from skipnet_jax.evaluate import evaluate_workdir

        evaluate_workdir(
            WORKDIR.value,
            CHECKPOINT.value,
            datasets=DATASETS.value,
            image_sizes=[int(size) for size in IMAGE_SIZES.value],
            eval_classes=EVAL_CLASSES.value,
            data_dir=DATA_DIR.value,
        )


def _join_hosts() -> None:
    if DISTRIBUTED.value:
        import jax

        jax.distributed.initialize(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)


def _leave_hosts(status: int) -> None:
    """Ends this process though the other hosts may not be ending.

    At its end Python waits for them, while they wait for this one's part of the next sum: with the connections gone,
    they fail within seconds instead. Hosts that stop together part properly.
    """
    import jax

    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _quieten_tensorflow() -> None:
    """Keeps TensorFlow off the screen; before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # with it a notice is printed that the level does not hide


def _hide_accelerators() -> None:
    """Keeps TensorFlow, which only reads data here, off the accelerators."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


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
