"""Batches for training and evaluation.

The training input is a pure function of (seed, step). A run that resumes at step s asks for the batches from s on, and
gets the very batches that it would have seen, without decoding any earlier image. So a checkpoint holds no state of
the input.
"""

from collections.abc import Iterator

from skipnet_jax.data.splits import Batch, BatchRequest, DataSplit
from skipnet_jax.errors import UserError
from skipnet_jax.specs import DataSpec


def train_batches(
    split: DataSplit,
    spec: DataSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Makes endless shuffled and augmented batches.

    An epoch is floor(examples / batch_size) steps, and no example comes twice in it; each epoch leaves out different
    examples. Images in memory and in files follow a permutation keyed by (seed, epoch), shards follow `streams.py`. The
    augmentation of an example is keyed by (seed, epoch, index). Each host gets a contiguous slice of every global
    batch, so the global batch does not depend on the number of hosts.

    Args:
      spec: says which augmentation, and what happens to an image that cannot be decoded.
      batch_size: examples per step, over all hosts.
      start_step: steps already done.
      process_index: this host, 0..process_count - 1.

    Returns:
      Iterator over {"image": uint8 [b, s, s, 3], "label": int32 [b]} with b = batch_size / process_count, and with
      `spec.lighting` also {"lighting": float32 [b, 3]}, colour offsets on the 0..1 scale. An image that could not be
      decoded is black and has label -1; this happens only with spec.on_corrupt == "skip".

    Raises:
      UserError: the batch is larger than the data set, or does not divide over the hosts.
      DataError: on `next`, if an image, a label or a shard is bad; the message names it.
    """
    request = BatchRequest(
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    _require_equal_shares("batch_size", request)
    if not request.steps_per_epoch(split.num_examples):
        images = f"at most {split.num_examples}, the number of training images of {split.name}"
        raise UserError("batch_size", f"{batch_size}", images, "Lower `batch_size`.")
    return split.train_batches(spec, request)


def eval_batches(
    split: DataSplit, spec: DataSpec, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Makes batches that hold every example once; the last ones are padded.

    Padding has black images, label 0 (-1 where an image may have several labels) and mask False. An image without any
    right label is masked too. All hosts get the same number of batches. If the images are in memory, a host
    gets a contiguous slice of each global batch; otherwise, a contiguous range of all examples.

    Args:
      batch_size: examples per batch, over all hosts.
      process_index: this host, 0..process_count - 1.

    Returns:
      Iterator over {"image": uint8 [b, s, s, 3], "label": int32 [b] or [b, k] (several right ones, padded with -1),
      "mask": bool [b]} with b = batch_size / process_count.

    Raises:
      UserError: the batch does not divide over the hosts.
      DataError: on `next`, if an image, a label or a shard is bad; the message names it.
    """
    request = BatchRequest(batch_size=batch_size, process_index=process_index, process_count=process_count)
    _require_equal_shares("eval_batch_size", request)
    return split.eval_batches(spec, request)


def _require_equal_shares(field: str, request: BatchRequest) -> None:
    if request.batch_size % request.process_count:
        expected = f"a multiple of {request.process_count}, the number of hosts, since each reads an equal share"
        raise UserError(field, f"{request.batch_size}", expected, f"Change `{field}`.")
