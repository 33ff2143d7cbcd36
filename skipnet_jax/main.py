r"""Trains, evaluates, explains and exports SkipResNets.

`skipnet MODE --FLAGS` and `python -m skipnet_jax.main --mode=MODE --FLAGS` are the same. MODE --help shows its flags.
For example:

  Train on the digits that come with scikit-learn:
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits

  Resume after an interruption: run the same command again.

  Change any field of the config:
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits_dense \
        --config.model.name=dense_resnet20 --config.optim.lr=0.05

  Resume with other values, which needs --allow_change:
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits \
        --config.epochs=48 --allow_change=epochs

  Evaluate the best checkpoint, the latest, or any step's; no config needed:
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/digits
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/digits --checkpoint=latest

  Evaluate on other data sets and at other sizes:
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/skip_resnet50 \
        --datasets=imagenet2012,imagenet_a --image_sizes=224,256,288,320
    python -m skipnet_jax.main --mode=evaluate --workdir=runs/digits --details --flip

  Draw what the gates let through, and export the network for others to run:
    python -m skipnet_jax.main --mode=explain --workdir=runs/digits
    python -m skipnet_jax.main --mode=export --workdir=runs/digits --format=onnx

  Convert the weights that the author published, or a PyTorch checkpoint:
    python -m skipnet_jax.main --mode=convert --pretrained=skip_resnet50 --workdir=runs/skip_resnet50
    python -m skipnet_jax.main --mode=convert --from=model_best.pth.tar --workdir=runs/start

  Train on several hosts, with the same command on each. On TPU pods and under Slurm, Open MPI or Kubernetes they find
  each other; elsewhere, say where host 0 is:
    python -m skipnet_jax.main ... --coordinator_address=HOST0:1234 --num_processes=4 --process_id=0
"""

import contextlib
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags

from skipnet_jax import errors, libraries
from skipnet_jax.command import command_line
from skipnet_jax.command.modes import COMPILE_CACHE, MODE, MODES, WORKDIR, Mode, Program
from skipnet_jax.runs import signals

FAILED = 1  # a bug, or the machine: worth another try
USER_ERROR = 2
INTERRUPTED = signals.EXIT + signal.SIGINT  # 130; a run that SIGTERM stopped ends with 143
PIPE_CLOSED = signals.EXIT + signal.SIGPIPE  # 141


def run() -> None:
    """Runs the command line of this process, and exits: the entry point of `skipnet`."""
    app.run(main, flags_parser=_parse)


def main(argv: Sequence[str]) -> int:
    """Does what the flags say.

    Args:
      argv: the rest of the command line, program name first.

    Returns:
      Exit status: 0 = done, 1 = the machine failed, 2 = a user's mistake, 130 and 143 = stopped by SIGINT and
      SIGTERM, 141 = nobody reads the output any more, 75 = another host is lost, so start all hosts again.
    """
    libraries.keep_interruptions()
    libraries.quieten_orbax()
    libraries.print_every_letter()
    name = str(flags.FLAGS["mode"].value)  # not MODE.value: a test or a notebook may call this without parsing flags
    mode = MODES[name]
    try:
        if isinstance(mode, Program):
            return mode.main(argv[1:], command_line.program_name(name))
        _check_flags(argv)
        return _dispatch()
    except signals.Stopped as stop:
        print(stop, file=sys.stderr)
        return _end(stop.exit_status)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped. Run the same command again.", file=sys.stderr)
        return _end(INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            if name == "train":  # others have done what their reader wanted
                with contextlib.suppress(OSError):  # standard error may go to the same reader
                    print("stopped, since nobody reads the output. Run the same command to resume.", file=sys.stderr)
            return _end(PIPE_CLOSED)
        status = None if isinstance(mode, Program) else _report(error)
        if status is None:
            raise
        return _end(status)


def _check_flags(argv: Sequence[str]) -> None:
    command_line.check_flags(argv)


def _dispatch() -> int:
    from skipnet_jax.data import storage

    libraries.quieten_tensorflow(level=2)  # its warnings about a damaged image do not say which image
    logging.getLogger("skipnet_jax").setLevel(logging.WARNING)  # users want to see which images are left out
    if COMPILE_CACHE.value == "on":
        libraries.keep_compiled_programs()
    storage.require_bucket(WORKDIR.value or "")  # TensorFlow would go on trying for minutes
    mode = MODES[MODE.value]
    assert isinstance(mode, Mode)
    return mode.run()


def _has_joined() -> bool:
    """Whether this process has joined other hosts."""
    jax = sys.modules.get("jax")  # a process that has not imported JAX has not joined
    return jax is not None and jax.distributed.is_initialized()


def _has_no_reader() -> bool:
    """Whether nobody reads standard output any more, as in `... | head`; then drops what is still to be written."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # a pipe without a reader is reported unasked
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout at its end, now into this
    return True


def _end(status: int) -> int:
    """Leaves the other hosts, if there are any, and exits: they may be waiting for this one. Otherwise returns."""
    if _has_joined():
        from skipnet_jax.runs import hosts

        hosts.leave(status)
    return status


def _report(error: Exception) -> int | None:
    """Tells the user about an error.

    Returns:
      The exit status, or None for a bug, which keeps its trace.
    """
    if isinstance(error, errors.UserError):
        print(f"error: {error.message(command_line.spell_field)}", file=sys.stderr)
        return USER_ERROR
    if isinstance(error, errors.DivergedError):
        print(f"error: {errors.spell_fields(str(error), command_line.spell_field)}", file=sys.stderr)
        return USER_ERROR
    if isinstance(error, errors.SavingError):
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if errors.is_full_disk(error):
        print(f"error: {error}. Make room for --workdir, and run the same command again.", file=sys.stderr)
        return FAILED
    if not _has_joined():
        return None
    from skipnet_jax.runs import hosts

    if hosts.is_lost(error):
        print(f"error: {hosts.lost_text(error, WORKDIR.value)}", file=sys.stderr)
        return hosts.LOST
    traceback.print_exception(error)  # now, since the other hosts must not wait for the end of this process
    return FAILED


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags: help ends with status 0, a mistake with one line instead of a stack trace."""
    try:
        return command_line.parse(argv, __doc__ or "")
    except errors.UserError as error:
        print(f"error: {error.message(command_line.spell_field)}", file=sys.stderr)
    except (flags.Error, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


if __name__ == "__main__":
    run()
