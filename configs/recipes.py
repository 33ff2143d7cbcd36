"""The distinct recipes; each file beside this one is one of them with a network's name.

Every published setting that the recipe does not name is the default of its spec (`skipnet_jax/specs.py`):
Nesterov momentum 0.9, five warm-up epochs, a cosine to 0, batch norm over 128 examples.

Source: Takeda et al., MIRU2020, and the settings behind its published tables.
"""

import ml_collections

from skipnet_jax.config import to_config_dict
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

_CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}


def digits() -> ml_collections.ConfigDict:
    """The data set that comes with scikit-learn: minutes on a laptop's CPU, no download, nothing published.

    Digits are 8x8 pixels, enlarged to 16; they are never mirrored, since a mirrored digit is none.
    """
    return to_config_dict(
        TrainSpec(
            model=ModelSpec(name="skip_resnet20", num_classes=10),
            data=DataSpec(name="digits", image_size=16, pad_crop=2, flip=False),
            mixing=MixingSpec(cutmix_prob=0.5, label_smoothing=0.1),
            optim=OptimSpec(lr=0.1, weight_decay=5e-4),
            batch_size=128,
            eval_batch_size=120,
            epochs=24,
            log_every_steps=10,
            checkpoint_every_epochs=4,
        )
    )


def cifar_resnet(network: str, dataset: str) -> ml_collections.ConfigDict:
    """ResNet-110 and its relatives on CIFAR: CutMix on every example, 600 epochs.

    Args:
      network: a name of `skipnet_jax.models.list_models()`.
      dataset: cifar10 or cifar100.

    Raises:
      ValueError: for another data set.
    """
    if dataset not in _CIFAR_CLASSES:
        expected = " or ".join(_CIFAR_CLASSES)
        raise ValueError(f"data set: got {dataset!r}, expected {expected}, as in --config=FILE.py:cifar100.")
    return to_config_dict(
        TrainSpec(
            model=ModelSpec(name=network, num_classes=_CIFAR_CLASSES[dataset]),
            data=DataSpec(name=dataset, image_size=32, pad_crop=4, flip=True),
            mixing=MixingSpec(cutmix_prob=1.0, cutmix_alpha=1.0),
            optim=OptimSpec(lr=0.2, weight_decay=5e-4),
            batch_size=256,
            epochs=600,
            checkpoint_every_epochs=10,
        )
    )
