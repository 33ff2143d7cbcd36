"""Batches for training and evaluation.

The training input is a pure function of (seed, step): a run that resumes at step s asks for the batches from s on and
gets the very ones that it would have seen, without decoding any image of those before. Nothing of the input is saved in
a checkpoint.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from skipnet_jax.data import encoded, in_memory, streams
from skipnet_jax.data.corrupt_images import checked
from skipnet_jax.data.splits import Files, InMemory, Shards, Source
from skipnet_jax.errors import UserError
from skipnet_jax.specs import DataSpec


def train_batches(
    source: Source,
    spec: DataSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled and augmented batches, from a step on.

    An epoch is floor(examples / batch_size) steps, in which no example comes twice: in memory and from files over a
    permutation keyed by (seed, epoch), from shards in the order of `streams.py`. What is left over differs from epoch
    to epoch. The augmentation of an example is keyed by (seed, epoch, index of the example). Each host gets its
    contiguous slice of every global batch, so the global batch does not depend on the number of hosts.

    Args:
      source: the training split.
      spec: says which augmentation, and what happens to an image that cannot be decoded.
      batch_size: examples per step over all hosts.
      seed: of the run.
      start_step: steps already done; 0 = from the beginning.
      process_index: this host, 0..process_count - 1.
      process_count: number of hosts.

    Returns:
      Iterator over {"image": uint8 [batch_size / process_count, s, s, 3], "label": int32 [batch_size / process_count]}
      and, with spec.lighting, "lighting": float32 [batch_size / process_count, 3], colour offsets on the scale 0..1.
      Label -1: an image that could not be decoded, and is black (spec.on_corrupt == "skip" alone).

    Raises:
      ValueError: the batch is larger than the data set or does not divide over the hosts.
      DataError: on `next`: an image, a label or a shard is bad; the message names it.
    """
    _require_host_batch("batch_size", batch_size, process_count)
    if batch_size > source.num_examples:
        raise UserError(
            "batch_size",
            f"{batch_size}",
            f"at most {source.num_examples}, the training examples of {source.name}, since an epoch is "
            f"floor(examples / batch_size) steps",
            "Lower `batch_size`.",
        )
    hosts = {"process_index": process_index, "process_count": process_count}
    if isinstance(source, InMemory):
        return in_memory.train_batches(source, spec, batch_size=batch_size, seed=seed, start_step=start_step, **hosts)
    if isinstance(source, Shards):
        streams.require_streams(batch_size, process_count)

    def open_batches(done: int, careful: bool) -> Any:
        step = start_step + done
        return encoded.train_batches(
            source, spec, batch_size=batch_size, seed=seed, start_step=step, careful=careful, **hosts
        )

    return checked(open_batches, source, skip=spec.on_corrupt == "skip")


def eval_batches(
    source: Source,
    spec: DataSpec,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, the last batches padded.

    Padding has black images, label 0 (of several labels: -1) and mask False. All hosts get the same number of batches.
    Images that are in memory come in order, host h having the h-th contiguous slice of each global batch; of files and
    shards host h has the h-th contiguous range of all examples. An image without any right label is masked too.

    Args:
      source: the split to evaluate.
      spec: says the image size.
      batch_size: examples per batch over all hosts.
      process_index: this host, 0..process_count - 1.
      process_count: number of hosts.

    Returns:
      Iterator over {"image": uint8 [b, s, s, 3], "label": int32 [b] or [b, k] (several right ones, padded with -1),
      "mask": bool [b]} with b = batch_size / process_count.

    Raises:
      ValueError: the batch does not divide over the hosts.
      DataError: on `next`: an image, a label or a shard is bad; the message names it.
    """
    _require_host_batch("eval_batch_size", batch_size, process_count)
    hosts = {"process_index": process_index, "process_count": process_count}
    if isinstance(source, InMemory):
        return in_memory.eval_batches(source, spec, batch_size=batch_size, **hosts)

    def open_batches(done: int, careful: bool) -> Any:
        return encoded.eval_batches(source, spec, batch_size=batch_size, start_batch=done, careful=careful, **hosts)

    host_batch, share = batch_size // process_count, -(-source.num_examples // process_count)
    number = -(-share // host_batch)
    return _padded(checked(open_batches, source, skip=False), source, spec.image_size, host_batch, number)


def _padded(
    batches: Iterator[dict[str, np.ndarray]], source: Files | Shards, size: int, host_batch: int, number: int
) -> Iterator[dict[str, np.ndarray]]:
    """So many batches of that size, whatever there is."""
    width = source.label_width if isinstance(source, Shards) else 0
    for _ in range(number):
        image = np.zeros((host_batch, size, size, 3), np.uint8)
        label = np.full((host_batch, width), -1, np.int32) if width else np.zeros(host_batch, np.int32)
        mask = np.zeros(host_batch, bool)
        batch = next(batches, None)
        if batch is not None:
            count = len(batch["label"])
            image[:count], label[:count], mask[:count] = batch["image"], batch["label"], True
        yield {"image": image, "label": label, "mask": mask & (label >= 0).any(axis=1) if width else mask}


def _require_host_batch(name: str, batch_size: int, process_count: int) -> None:
    if batch_size % process_count:
        raise UserError(
            name,
            f"{batch_size}",
            f"a multiple of {process_count}, the number of hosts, since each reads an equal share",
            f"Change `{name}`.",
        )
