"""Classifies images.

A file, all images in a folder and below it, or an image on standard input:
  %(prog)s photo.jpg --workdir=runs/skip_resnet50
  %(prog)s photos/ --workdir=runs/skip_resnet50 --top=1
  curl -s https://example.org/photo.jpg | %(prog)s - --workdir=runs/skip_resnet50

One line of JSON per image, for programs:
  %(prog)s photos/ --workdir=runs/skip_resnet50 --format=jsonl > predictions.jsonl

Many images, also from a bucket, into one file in the order of the images; on a pod, start the command on all hosts, and
each takes its share:
  %(prog)s gs://bucket/photos --workdir=gs://bucket/runs/pets --format=jsonl --output=gs://bucket/found.jsonl

With an exported network:
  %(prog)s photo.jpg --artifact=runs/skip_resnet50/export/onnx

Images are decoded and cropped as in evaluation. An image that cannot be read is reported on standard error, and in JSON
also by a line with "error"; the others are classified all the same. Exit status: 0, 1 if an image could not be read, 2
for a mistake in the command.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING

from skipnet_jax import libraries
from skipnet_jax.errors import UserError, is_full_disk, one_line
from skipnet_jax.evaluation.image_predictions import STDIN, Result, classify, find_images
from skipnet_jax.runs.joining import Joining

if TYPE_CHECKING:
    from skipnet_jax.evaluation.predictor import Classifier

UNREADABLE, FAILED, USER_ERROR = 1, 1, 2  # exit statuses
INTERRUPTED, PIPE_CLOSED = 130, 141  # as in shells: 128 + the number of the signal
NAME_WIDTH = 60  # of the column of file names, in characters; longer names push the rest to the right


def main(argv: Sequence[str], program: str = "skipnet predict") -> int:
    """Runs the command.

    Args:
      argv: the command line without the program's name.

    Returns:
      The exit status.
    """
    arguments = _parse(argv, program)
    libraries.keep_interruptions()
    libraries.print_every_letter()
    joined = finished = False
    try:
        joined = _join_hosts(arguments)
        status = _run(arguments, joined)
        finished = True
    except UserError as error:
        print(f"error: {error.message(_spell)}", file=sys.stderr)
        status = USER_ERROR
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout at exit, now into this
        return PIPE_CLOSED
    except Exception as error:
        if is_full_disk(error):
            print(f"error: {error}. Make room for --output, and run the same command again.", file=sys.stderr)
        elif joined:
            traceback.print_exception(error)  # now, since the other hosts must not wait for the end of this process
        else:
            raise
        status = FAILED
    if joined and not finished:
        from skipnet_jax.runs import hosts

        hosts.leave(status)  # the others may be waiting for this one
    return status


def _join_hosts(arguments: argparse.Namespace) -> bool:
    """Joins the other hosts, if there are any to share the images with, and returns whether it did."""
    joining = Joining(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Joining)})
    joining.check()
    if not arguments.output:
        if joining.num_processes != 1 and (joining.distributed == "yes" or joining.place):
            raise UserError("output", "nothing", "a file that all hosts share")
        return False
    if STDIN in arguments.images:
        return False
    return joining.join(workdir=arguments.workdir or arguments.artifact)


def _run(arguments: argparse.Namespace, joined: bool) -> int:
    files = find_images(arguments.images)
    if not arguments.output:
        batches = classify(_load(arguments), files, arguments.top, arguments.batch_size)
        return UNREADABLE if _print(batches, len(files), arguments.format, _width(files)) else 0
    from skipnet_jax.runs import result_parts

    if joined:
        _require_same_work(arguments, files)
    output = result_parts.require_output(arguments.output)
    network = _load(arguments)
    mine = [files[number] for number in result_parts.share(len(files))]
    with result_parts.writing(output) as file:
        batches = classify(network, mine, arguments.top, arguments.batch_size)
        unreadable = _print(batches, len(mine), arguments.format, _width(files), file)
    return UNREADABLE if result_parts.join(output, unreadable) else 0


def _require_same_work(arguments: argparse.Namespace, files: Sequence[str]) -> None:
    """Checks that all hosts have found the same images and were given the same flags."""
    from skipnet_jax.runs import agreement

    digest = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
    told = {name: getattr(arguments, name) for name in ("output", "top", "format", "checkpoint")}
    agreement.require_alike({"mode": "predict", "images": f"{len(files)} ({digest[:12]})", **told})


def as_json(result: Result) -> str:
    """Makes one line, {"file": ..., "predictions": [{"class": ..., "probability": ...}, ...]} or "file" and "error"."""
    if result.error:
        return json.dumps({"file": result.file, "error": result.error})
    predictions = [{"class": name, "probability": float(f"{share:.6g}")} for name, share in result.predictions]
    return json.dumps({"file": result.file, "predictions": predictions})


def as_text(result: Result, width: int) -> str:
    """Makes one line per class, the first with the file's name; nothing for an error.

    Args:
      width: of the column of names, in characters.
    """
    names = [one_line(result.file), *itertools.repeat("", len(result.predictions))]
    return "\n".join(
        f"{name:{width}}  {share:7.2%}  {one_line(label)}"
        for name, (label, share) in zip(names, result.predictions, strict=False)
    )


def _width(files: Sequence[str]) -> int:
    """The width of the column of file names, in characters."""
    return min(max(len(file) for file in files), NAME_WIDTH)


def _print(batches: Iterable[list[Result]], total: int, form: str, width: int, output: IO[str] | None = None) -> int:
    """Prints results as they come, with a bar on a terminal, and returns how many images could not be read.

    Args:
      form: "jsonl" or "text".
      output: where to write them; None = on the screen.
    """
    import tqdm

    unreadable = 0
    with tqdm.tqdm(total=total, unit=" images", leave=False, disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            errors = [result for result in batch if result.error]
            for result in errors:
                bar.write(f"error: {result.error}", file=sys.stderr)
            shown = batch if form == "jsonl" else [result for result in batch if not result.error]
            lines = [as_json(result) if form == "jsonl" else as_text(result, width) for result in shown]
            if lines and output:
                output.write("\n".join(lines) + "\n")
            elif lines:
                bar.write("\n".join(lines), file=sys.stdout)
            sys.stdout.flush()
            unreadable += len(errors)
            bar.update(len(batch))
    return unreadable


def _load(arguments: argparse.Namespace) -> "Classifier":
    from absl import logging as absl_logging

    from skipnet_jax.data import storage

    libraries.quieten_tensorflow(level=3)  # this module reports bad images itself
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("skipnet_jax").setLevel(logging.WARNING)
    libraries.require_devices()
    storage.require_bucket(arguments.workdir or arguments.artifact)
    if arguments.workdir:
        from skipnet_jax.runs import workdir

        workdir.read_spec(arguments.workdir)  # report a mistake before importing TensorFlow, which takes seconds
    libraries.import_tensorflow()
    if arguments.artifact:
        from skipnet_jax.exports import artifacts

        return artifacts.load_artifact(arguments.artifact)
    from skipnet_jax.evaluation.predictor import load_workdir

    return load_workdir(arguments.workdir, arguments.checkpoint or "best", batch_size=arguments.batch_size)


def _parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, or - for an image on standard input")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", help="folder of a run or of converted weights, local or gs://...")
    where.add_argument("--artifact", help="folder of an exported network")
    parser.add_argument("--checkpoint", help="in the workdir: best (the default), latest or a step")
    parser.add_argument("--top", type=_count, default=5, help="classes per image (default: 5)")
    parser.add_argument("--format", choices=("text", "jsonl"), default="text", help="jsonl: a line of JSON per image")
    parser.add_argument("--batch_size", type=_count, default=64, help="images at once (default: 64)")
    parser.add_argument("--output", help="file for the results, local or gs://...; default: the screen")
    hosts = parser.add_argument_group("several hosts, with --output")
    hosts.add_argument(
        "--distributed",
        nargs="?",
        const="yes",
        default="auto",
        choices=("auto", "yes", "no"),
        help="share the images with the other hosts; auto (the default): if a cluster has started several",
    )
    hosts.add_argument("--coordinator_address", help="host:port of process 0, where not detected")
    hosts.add_argument("--num_processes", type=_count, help="number of hosts, where not detected")
    hosts.add_argument("--process_id", type=_number, help="number of this host from 0, where not detected")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.artifact and arguments.checkpoint:
        parser.error("argument --checkpoint: not allowed with --artifact, since an exported network has only one")
    return arguments


def _spell(field: str) -> str:
    """A field as the user types it."""
    if field == "images":
        return "IMAGE"
    named = ("workdir", "artifact", "checkpoint", "output", *(flag.name for flag in dataclasses.fields(Joining)))
    return f"--{field}" if field in named else field


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, 0 or more")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m skipnet_jax.predict"))
