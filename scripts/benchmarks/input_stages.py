"""The stages of the input pipeline that `input_rates` times, for two recipes, on images made here."""

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
from scripts.benchmarks.machine import cores, say
from skipnet_jax import config
from skipnet_jax.data import archives, folders, pipeline, shard_plan, shard_writer, sources
from skipnet_jax.data.folders import Files
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.splits import DataSplit
from skipnet_jax.specs import DataSpec, TrainSpec
from skipnet_jax.training import sharding

_REPEATS = 20  # times that each file is listed: epoch ends, which reopen the streams, become as rare as in reality
_SHARDS = 8
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_WIDTH, _HEIGHT = 500, 375
_QUALITY = 97  # enlarged photographs have little detail: this gives 94 kB, where an ImageNet file has about 110
_PEER, _BARE_PEER = "PyTorch DataLoader", "PyTorch DataLoader without Normalize"

Contenders = dict[str, Callable[[], Iterator[Any]]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A recipe's input, and the contenders to measure in alternation.

    Args:
      source: the images of the timed training steps.
      contenders: by name; each opens its batches.
      pairs: which of our contenders to compare with which of the peer's.
      delivered: the contender that delivers what a training step gets.
      goal: how many times the peer's images per second.
    """

    title: str
    spec: TrainSpec
    source: DataSplit
    contenders: Contenders
    pairs: Sequence[tuple[str, str]]
    delivered: str
    goal: float


def make_photographs(folder: pathlib.Path, count: int) -> None:
    """Writes random crops of scikit-learn's photographs, as JPEGs and as shards, unless they are there.

    Args:
      folder: gets train/CLASS/*.jpg, test/CLASS/*.jpg and shards/.
    """
    import sklearn.datasets
    from PIL import Image

    if (folder / "shards" / "dataset.json").exists():
        return
    say(f"making {count} JPEGs in {folder}")
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
    photographs = [Image.fromarray(sklearn.datasets.load_sample_image(name)) for name in _PHOTOGRAPHS]
    for index in range(count):
        random, kind = np.random.default_rng(index), index % len(_PHOTOGRAPHS)
        width = int(random.integers(400, 570))
        height = width * _HEIGHT // _WIDTH
        left, top = (
            int(random.integers(side - crop + 1))
            for side, crop in zip(photographs[kind].size, (width, height), strict=True)
        )
        box = (left, top, left + width, top + height)
        crop = photographs[kind].resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC, box=box)
        if random.integers(2):
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for split in ["train", "test"] if index < len(_PHOTOGRAPHS) else ["train"]:  # a folder must have both
            path = folder / split / _PHOTOGRAPHS[kind].removesuffix(".jpg") / f"{index:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.save(path, quality=_QUALITY)
    listings = {"train": archives.find_images(str(folder / "train"), lambda: None)}
    classes, num_shards = shard_plan.class_names_of(listings), {"train": min(_SHARDS, count)}
    plan = shard_plan.ShardPlan("photographs", classes, listings, num_shards)
    shard_writer.make(str(folder / "shards"), plan, threads=cores(), advance=lambda images: None, say=say)


def imagenet(folder: pathlib.Path, images: int, network: str, batch_size: int, peer: Any) -> Setting:
    """ImageNet's recipe on JPEGs of about ImageNet's size.

    Args:
      folder: keeps the JPEGs.
      images: number of JPEGs.
      peer: the module `peer_loader`, or None if PyTorch is not installed.
    """
    make_photographs(folder, images)
    spec = config.train_spec(recipes.imagenet_resnet(network))
    data = dataclasses.replace(spec.data, name="tfrecords", dir=str(folder / "shards"))
    plain = dataclasses.replace(data, flip=False, color_jitter=0.0, lighting=0.0)
    shards = sources.load(data, "train")
    shards = dataclasses.replace(shards, shards=shards.shards * _REPEATS)
    files = folders.open_folder(dataclasses.replace(data, name="folder", dir=str(folder)), "train")
    size = sum(os.path.getsize(path) for path in files.paths) / len(files.paths) / 1000
    files = dataclasses.replace(files, paths=files.paths * _REPEATS, labels=np.tile(files.labels, _REPEATS))
    contenders: Contenders = {
        "read, decode, crop, batch": lambda: _batches(shards, plain, batch_size),
        "+ flip, jitter, lighting": lambda: _batches(shards, data, batch_size),
        "+ transfer": lambda: _transferred(_batches(shards, data, batch_size)),
        "all but transfer, from files": lambda: _batches(files, data, batch_size),
        **_peers(peer, files, data, batch_size),
    }
    return Setting(
        title=f"ImageNet's recipe: {images} JPEGs of {_WIDTH}x{_HEIGHT}, {size:.0f} kB each, batches of {batch_size}",
        spec=dataclasses.replace(spec, data=data, batch_size=batch_size),
        source=shards,
        contenders=contenders,
        pairs=list(
            itertools.product(
                ("all but transfer, from files", "+ flip, jitter, lighting"), (_PEER, _BARE_PEER) if peer else ()
            )
        ),
        delivered="+ transfer",
        goal=1.5,
    )


def cifar(network: str, batch_size: int, peer: Any) -> Setting:
    """CIFAR's recipes, with AutoAugment and without, on 50,000 images of noise.

    Args:
      peer: the module `peer_loader`, or None if PyTorch is not installed.
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
    return Setting(
        title=f"CIFAR's recipe: 50,000 images of 32x32 in memory, batches of {batch_size}",
        spec=dataclasses.replace(spec, batch_size=batch_size),
        source=source,
        contenders=contenders,
        pairs=[("+ crop, flip", name) for name in peers] + [(with_policy, name) for name in policy_peers],
        delivered="+ transfer",
        goal=5.0,
    )


def _batches(source: DataSplit, spec: DataSpec, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
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
