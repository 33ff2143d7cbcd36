"""What `input_benchmark.py` measures: the stages of the input of two recipes, on data made for it."""

import dataclasses
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from configs import recipes
from scripts.machine import cores, say
from skipnet_jax import config
from skipnet_jax.data import (
    archives,
    augment,
    encoded,
    folders,
    keys,
    pipeline,
    records,
    shard_plan,
    shard_writer,
    sources,
)
from skipnet_jax.data.splits import Files, InMemory, Shards, Source
from skipnet_jax.data.streams import Streams
from skipnet_jax.specs import DataSpec, TrainSpec
from skipnet_jax.training import sharding

# Each file is listed so many times, so that an epoch's end, where streams are opened anew, is as rare as in reality.
_TIMES_LISTED = 20
_SHARDS = 8
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_WIDTH, _HEIGHT = 500, 375
_QUALITY = 97  # an enlarged photograph has little detail: this gives 94 kB, where an ImageNet file has about 110
_PEER, _BARE_PEER = "PyTorch DataLoader", "PyTorch DataLoader without Normalize"

Contenders = dict[str, Callable[[], Iterator[Any]]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured together.

    Args:
      name: of the goal.
      title: of the table.
      spec: recipe whose input it is, and whose step.
      source: for the training steps.
      contenders: by name; each opens batches.
      pairs: which of ours is compared with which of the peer's.
      delivered: the one that delivers what a training step gets.
    """

    name: str
    title: str
    spec: TrainSpec
    source: Source
    contenders: Contenders
    pairs: Sequence[tuple[str, str]]
    delivered: str


def make_photographs(folder: pathlib.Path, count: int) -> None:
    """Random pieces of scikit-learn's photographs as JPEGs in class folders, and the same in shards; once.

    Args:
      folder: gets train/CLASS/*.jpg and shards/.
      count: how many.
    """
    import sklearn.datasets
    from PIL import Image

    if (folder / "shards" / "dataset.json").exists():
        return
    say(f"making {count} JPEGs in {folder}")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    photographs = [Image.fromarray(sklearn.datasets.load_sample_image(name)) for name in _PHOTOGRAPHS]
    for index in range(count):
        random, kind = np.random.default_rng(index), index % len(_PHOTOGRAPHS)
        width = int(random.integers(400, 570))
        height = width * _HEIGHT // _WIDTH
        left, top = (
            int(random.integers(side - piece + 1))
            for side, piece in zip(photographs[kind].size, (width, height), strict=True)
        )
        box = (left, top, left + width, top + height)
        piece = photographs[kind].resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC, box=box)
        if random.integers(2):
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        path = folder / "train" / _PHOTOGRAPHS[kind].removesuffix(".jpg") / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        piece.save(path, quality=_QUALITY)
    listings = {"train": archives.find_images(str(folder / "train"), lambda: None)}
    plan = shard_plan.Plan("photographs", shard_plan.class_names_of(listings), listings, {"train": min(_SHARDS, count)})
    shard_writer.make(str(folder / "shards"), plan, threads=cores(), advance=lambda images: None, say=say)


def imagenet(folder: pathlib.Path, images: int, network: str, batch_size: int, peer: Any) -> Setting:
    """ImageNet's recipe on JPEGs of about ImageNet's size.

    Args:
      folder: where these are kept.
      images: how many.
      network: whose recipe.
      batch_size: examples per batch.
      peer: the module `peer_loader`, or None where PyTorch is not installed.
    """
    make_photographs(folder, images)
    spec = config.train_spec(recipes.imagenet_resnet(network))
    data = dataclasses.replace(spec.data, name="tfrecords", dir=str(folder / "shards"))
    shards = sources.load(data, "train")
    shards = dataclasses.replace(shards, shards=shards.shards * _TIMES_LISTED)
    files = folders.open_folder(dataclasses.replace(data, name="folder", dir=str(folder)), "train")
    size = sum(os.path.getsize(path) for path in files.paths) / len(files.paths) / 1000
    files = dataclasses.replace(files, paths=files.paths * _TIMES_LISTED, labels=np.tile(files.labels, _TIMES_LISTED))

    cropped = dataclasses.replace(data, flip=False, color_jitter=0.0, lighting=0.0)
    contenders: Contenders = {
        "read shards": lambda: _unfinished(shards, data, batch_size, _size),
        "+ decode and crop": lambda: _unfinished(shards, data, batch_size, _pixel_of(cropped)),
        "+ flip, jitter, lighting": lambda: _unfinished(shards, data, batch_size, _pixel_of(data)),
        "+ batch": lambda: _batches(shards, data, batch_size),
        "+ transfer": lambda: _transferred(_batches(shards, data, batch_size)),
        "all but transfer, from files": lambda: _batches(files, data, batch_size),
        **_peers(peer, files, data, batch_size),
    }
    return Setting(
        name="imagenet",
        title=f"ImageNet's recipe: {images} JPEGs of {_WIDTH}x{_HEIGHT}, {size:.0f} kB each, batches of {batch_size}",
        spec=dataclasses.replace(spec, data=data, batch_size=batch_size),
        source=shards,
        contenders=contenders,
        pairs=list(itertools.product(("all but transfer, from files", "+ batch"), (_PEER, _BARE_PEER))),
        delivered="+ transfer",
    )


def cifar(network: str, batch_size: int, peer: Any) -> Setting:
    """CIFAR's recipes, with AutoAugment and without, on as many images of noise.

    Args:
      network: whose recipe.
      batch_size: examples per batch.
      peer: the module `peer_loader`, or None where PyTorch is not installed.
    """
    spec = config.train_spec(recipes.cifar_resnet(network, "cifar10"))
    random = np.random.default_rng(0)
    source = InMemory(
        name="noise",
        class_names=tuple("0123456789"),
        images=random.integers(0, 256, (50_000, 32, 32, 3), np.uint8),
        labels=random.integers(0, 10, 50_000, np.int32),
    )
    data = spec.data
    plain = dataclasses.replace(data, pad_crop=0, flip=False)
    policy = config.train_spec(recipes.cifar_wide(network, "cifar10")).data
    with_policy = "AutoAugment, crop, flip, batch"
    peers = _peers(peer, source, data, batch_size)
    policy_peers = {f"{name}, AutoAugment": opened for name, opened in _peers(peer, source, policy, batch_size).items()}
    contenders: Contenders = {
        "read and batch": lambda: _batches(source, plain, batch_size),
        "+ crop, flip": lambda: _batches(source, data, batch_size),
        "+ transfer": lambda: _transferred(_batches(source, data, batch_size)),
        with_policy: lambda: _batches(source, policy, batch_size),
        **peers,
        **policy_peers,
    }
    pairs = [("+ crop, flip", name) for name in peers] + [(with_policy, name) for name in policy_peers]
    return Setting(
        name="cifar",
        title=f"CIFAR's recipe: 50,000 images of 32x32 in memory, batches of {batch_size}",
        spec=dataclasses.replace(spec, batch_size=batch_size),
        source=source,
        contenders=contenders,
        pairs=pairs,
        delivered="+ transfer",
    )


def _batches(source: Source, spec: DataSpec, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.train_batches(source, spec, batch_size=batch_size, seed=0, start_step=0)


def _transferred(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[Any]:
    mesh = sharding.make_mesh()
    return (jax.block_until_ready(sharding.to_global(batch, mesh)) for batch in batches)


def _peers(peer: Any, source: Files | InMemory, spec: DataSpec, batch_size: int) -> Contenders:
    if peer is None:
        return {}

    def opener(normalize: bool) -> Callable[[], Iterator[Any]]:
        return lambda: peer.batches(source, spec, batch_size=batch_size, workers=cores(), normalize=normalize)

    return {_PEER: opener(True), _BARE_PEER: opener(False)}


def _unfinished(shards: Shards, spec: DataSpec, batch_size: int, make: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """The training input up to one of its stages, which has no public name: of each example one number goes on.

    Args:
      shards: the images.
      spec: of the training input.
      batch_size: numbers handed out at a time.
      make: what is done up to this stage: file (string), key -> number.
    """
    streams = Streams(tuple(shard.examples for shard in shards.shards), batch_size, seed=0)

    def load(epoch: Any, index: Any, record: Any) -> dict[str, Any]:
        file, label = shards.parse(record)
        return {"image": make(file, keys.example_key(0, epoch, index)), "label": label}

    examples = encoded._load_each(records.of_streams(shards, streams, 0, 0, 1), load, shards, spec, careful=False)
    return iter(examples.batch(batch_size, drop_remainder=True).with_options(encoded._options()))


def _size(file: Any, key: Any) -> Any:
    import tensorflow as tf

    return tf.strings.length(file)


def _pixel_of(spec: DataSpec) -> Callable[[Any, Any], Any]:
    """The image is made, but not copied."""
    import tensorflow as tf

    def pixel(file: Any, key: Any) -> Any:
        value = tf.cast(augment.train_image(file, key, spec)[0, 0, 0], tf.float32)
        return value + augment.lighting(key, spec)[0] if spec.lighting else value

    return pixel
