"""The input pipeline as a PyTorch user would write it, for comparison: DataLoader, Pillow and torchvision.

    pip install -e ".[peer]"

Workers are spawned, because a process with TensorFlow's and JAX's threads cannot be forked safely.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

import scripts.benchmarks.torchvision_operators  # noqa: F401

# isort: split
import torchvision
from PIL import Image
from torchvision import transforms

from skipnet_jax.data.folders import Files
from skipnet_jax.data.in_memory import InMemory
from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.specs import DataSpec

VERSIONS = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"

# Krizhevsky et al. (NIPS 2012), section 4.1: principal components of ImageNet's colours, and their standard deviations.
_COMPONENTS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_COMPONENT_STDS = torch.tensor([0.2175, 0.0188, 0.0045])


def batches(
    source: Files | InMemory, spec: DataSpec, *, batch_size: int, workers: int, normalize: bool
) -> Iterator[Any]:
    """Endless batches in random order.

    Examples are drawn with replacement, so that the workers never run dry at the end of an epoch.

    Args:
      spec: says which augmentation.
      workers: processes.
      normalize: subtract the mean and divide by the standard deviation on the host, as PyTorch users do.
    """
    dataset = _Images(source, _transform(spec, normalize))
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        # A worker that is stopped at work may abort, which torch reports as an error.
        with contextlib.suppress(RuntimeError):
            iterator._shutdown_workers()


class _Images(torch.utils.data.Dataset):
    def __init__(self, source: Files | InMemory, transform: Any) -> None:
        self._source, self._transform = source, transform

    def __len__(self) -> int:
        return self._source.num_examples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if isinstance(self._source, InMemory):
            image = Image.fromarray(self._source.images[index])
        else:
            with open(self._source.paths[index], "rb") as file:
                image = Image.open(file).convert("RGB")
        return self._transform(image), int(self._source.labels[index])


class _Lighting:
    def __init__(self, std: float) -> None:
        self._std = std

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        shift = _COMPONENTS @ (self._std * torch.randn(3) * _COMPONENT_STDS)
        return image + shift[:, None, None]


def _transform(spec: DataSpec, normalize: bool) -> Any:
    """The operations of the spec as torchvision's transforms, in the order of the recipes."""
    steps: list[Any] = []
    if spec.auto_augment != "none":
        steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy(spec.auto_augment)))
    if spec.crop_min_area:
        steps.append(transforms.RandomResizedCrop(spec.image_size, scale=(spec.crop_min_area, 1)))
    if spec.pad_crop:
        steps.append(transforms.RandomCrop(spec.image_size, padding=spec.pad_crop, padding_mode="reflect"))
    if spec.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if spec.color_jitter:
        steps.append(transforms.ColorJitter(*(spec.color_jitter,) * 3))
    steps.append(transforms.ToTensor())
    if spec.lighting:
        steps.append(_Lighting(spec.lighting))
    if normalize:
        steps.append(transforms.Normalize(IMAGENET.mean, IMAGENET.std))
    return transforms.Compose(steps)
