"""Turns images into shuffled TFRecord shards, for --config.data.name=tfrecords.

ImageNet from its official archives, without unpacking them, straight into a bucket:
  %(prog)s --train=ILSVRC2012_img_train.tar --test=ILSVRC2012_img_val.tar --out=gs://bucket/dir

Your own images, one folder per class:
  %(prog)s --train=pics/train --test=pics/val --train_shards=8 --test_shards=2 --out=shards

WebDataset's tars, KEY.jpg beside KEY.cls:
  %(prog)s --train='wds/train-*.tar' --test='wds/val-{000000..000015}.tar' --out=shards

On many machines with Apache Beam, whose own flags say where (Dataflow, Flink, Spark, or processes of this machine):
  %(prog)s --train='gs://bucket/wds/train-*.tar' --out=gs://bucket/shards --beam --runner=DataflowRunner --project=...

After an interruption, even by kill -9, run the same command again. To check a data set at any time:
  %(prog)s --check=shards

To use shards made elsewhere, write a dataset.json for them. Keys and compression are detected; in tf-slim's ImageNet
the labels start at 1:
  %(prog)s --index=DIR --train='train-*' --test='validation-*' --label_offset=1

Plain JPEG and PNG files are kept unchanged. An image that TensorFlow would not decode as a viewer does becomes a PNG.
Exit status: 0 = done, 1 = --check found a problem, 2 = a mistake or an error.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import tqdm

from skipnet_jax import errors, libraries
from skipnet_jax.data import (
    archives,
    class_names,
    shard_checker,
    shard_plan,
    shard_writer,
    storage,
    tfrecords,
    walk,
    webdataset,
)

LINE_EVERY_SECONDS = 30.0  # without a terminal


class Progress:
    """Counts finished images, with a bar on a terminal and otherwise a line now and then. Threads may share it."""

    def __init__(self, doing: str, total: int | None = None) -> None:
        self._doing = doing
        self._bar = tqdm.tqdm(total=total, desc=doing, unit=" images", disable=not sys.stderr.isatty())
        self._total, self._done = total, 0
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, images: int = 1) -> None:
        """Counts more finished images."""
        with self._bar.get_lock():
            self._bar.update(images)
            self._done += images
            now = time.monotonic()
            if self._bar.disable and now - self._shown > LINE_EVERY_SECONDS:
                self._shown = now
                of = f" of {self._total:,}" if self._total else ""
                speed = self._done / (now - self._began)
                print(f"{self._doing}: {self._done:,}{of} images, {speed:,.0f} images/s", flush=True)


def main(argv: Sequence[str], program: str = "skipnet shards") -> int:
    """Makes, checks or describes shards.

    Args:
      argv: the command line without the program's name.

    Returns:
      The exit status.
    """
    arguments = _parse(argv, program)
    libraries.quieten_tensorflow(level=3)  # it reports damaged images too, but without their names
    import tensorflow as tf

    try:
        for field in ("out", "check", "index", "class_names"):
            if path := getattr(arguments, field):
                setattr(arguments, field, storage.expand(path, field))
        return arguments.do(arguments)
    except errors.UserError as error:
        message = error.message(lambda field: f"--{field}" if field in arguments else field)
    except tf.errors.OpError as error:
        message = f"{arguments.out or arguments.check or arguments.index}: {error.message or type(error).__name__}"
    except OSError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("stopped. Run the same command again to go on.", file=sys.stderr)
        return 130
    message = " ".join(message.split())
    print(f"error: {message if len(message) < 2000 else message[:2000] + '...'}", file=sys.stderr)
    return 2


def _parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", help="make shards: folder for them, local or gs://")
    what.add_argument("--check", help="check a data set: its folder, local or gs://")
    what.add_argument("--index", help="describe shards made elsewhere: their folder, local or gs://")
    for split in tfrecords.SPLITS:
        parser.add_argument(
            f"--{split}", help=f"{split} images: a folder, a tar or tars; with --index: shards, such as 'train-*'"
        )
    parser.add_argument("--train_shards", type=int, default=1024, help="default: 1024")
    parser.add_argument("--test_shards", type=int, default=128, help="default: 128")
    parser.add_argument("--seed", type=int, default=0, help="determines the order of the images; default: 0")
    parser.add_argument(
        "--corrupt",
        choices=shard_plan.ON_CORRUPT,
        default="error",
        help="what to do about an image that cannot be decoded; default: error",
    )
    parser.add_argument("--class_names", help="file with a name per line, in the order of the classes' numbers")
    parser.add_argument("--label_offset", type=int, default=0, help="with --index: label of class 0; default: 0")
    for key in ("image", "label"):
        text = f"with --index and WebDataset: key of the {key} in a record or sample; default: found in the first few"
        parser.add_argument(f"--{key}_key", default="", help=text)
    parser.add_argument("--name", help="name of the data set; default: the name of its folder")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="shards made at a time; default: one per core"
    )
    parser.add_argument(
        "--beam", action="store_true", help="with --out: run as a pipeline of Apache Beam, which gets all other flags"
    )
    arguments, rest = parser.parse_known_args(argv)
    if rest and not (arguments.beam and arguments.out):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.beam_flags = rest
    if arguments.threads < 1:
        parser.error(f"--threads: got {arguments.threads}, expected at least 1")
    if arguments.seed not in range(2**63):
        parser.error(f"--seed: got {arguments.seed}, expected 0 to 2**63 - 1")
    if not arguments.check and not (arguments.train or arguments.test):
        parser.error("--train, --test: got neither, expected at least one of them")
    arguments.program = program
    arguments.do = _check if arguments.check else _index if arguments.index else _make
    return arguments


def _make(arguments: argparse.Namespace) -> int:
    listings = {}
    for split, given in _given_splits(arguments).items():
        path = storage.expand(given, split)
        shown = storage.show(path)
        with Progress(f"looking through {shown}") as progress:
            listings[split] = listing = _list(path, arguments, progress.advance)
        names = f"; left out: {listing.left_out}" if listing.left_out.counts else ""
        print(f"{split}: {len(listing):,} images of {len(listing.class_names):,} classes in {shown}{names}", flush=True)
    given_names = tuple(map(walk.class_name, _read_names(arguments.class_names)))  # folders are spelt like this too
    plan = shard_plan.ShardPlan(
        name=arguments.name or _base(arguments.out),
        class_names=given_names or shard_plan.class_names_of(listings),
        listings=listings,
        num_shards={"train": arguments.train_shards, "test": arguments.test_shards},
        seed=arguments.seed,
        on_corrupt=arguments.corrupt,
    )
    with Progress("writing", sum(map(len, listings.values()))) as progress:
        if arguments.beam:
            from skipnet_jax.data import shard_beam

            index = shard_beam.make(arguments.out, plan, flags=arguments.beam_flags, advance=progress.advance)
        else:
            index = shard_writer.make(
                arguments.out, plan, threads=arguments.threads, advance=progress.advance, say=tqdm.tqdm.write
            )
    _summarize(arguments.out, index)
    left_out = sum(map(len, listings.values())) - _examples(index)
    if left_out:
        print(f'{left_out:,} images could not be decoded and are left out: see "skipped" in {tfrecords.INDEX}')
    print(f"check: {arguments.program} --check={arguments.out}")
    return 0


def _list(path: str, arguments: argparse.Namespace, found: Callable[[], None]) -> archives.Listing:
    if not webdataset.is_given(path):
        return archives.find_images(path, found)
    return webdataset.list_given(path, found, image_key=arguments.image_key, label_key=arguments.label_key)


def _check(arguments: argparse.Namespace) -> int:
    expected = _examples(tfrecords.read_index(arguments.check))
    with Progress("checking", expected) as progress:
        index, problems = shard_checker.check(arguments.check, threads=arguments.threads, advance=progress.advance)
    _summarize(arguments.check, index)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problem{'s' if problems[1:] else ''}" if problems else "no problems")
    return 1 if problems else 0


def _index(arguments: argparse.Namespace) -> int:
    with Progress("reading") as progress:
        index = shard_checker.describe(
            arguments.index,
            _given_splits(arguments),
            name=arguments.name or _base(arguments.index),
            label_offset=arguments.label_offset,
            class_names=_read_names(arguments.class_names),
            image_key=arguments.image_key,
            label_key=arguments.label_key,
            threads=arguments.threads,
            advance=progress.advance,
        )
    _summarize(arguments.index, index)
    print(f"{arguments.index}: images in {index.records.image}, labels in {index.records.label}")
    return 0


def _given_splits(arguments: argparse.Namespace) -> dict[str, str]:
    return {split: given for split, given in (("train", arguments.train), ("test", arguments.test)) if given}


def _read_names(path: str | None) -> tuple[str, ...]:
    return class_names.read("class_names", path) if path else ()


def _summarize(directory: str, index: tfrecords.Index) -> None:
    for split, shards in index.splits.items():
        images, size = sum(shard.examples for shard in shards), sum(shard.size for shard in shards)
        print(f"{split}: {images:,} images in {len(shards):,} shards, {size / 1e6:,.1f} MB")
    print(f"{directory}: {index.name}, {len(index.class_names):,} classes")


def _examples(index: tfrecords.Index) -> int:
    return sum(shard.examples for shards in index.splits.values() for shard in shards)


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
