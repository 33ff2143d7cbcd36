"""The distinct recipes. Every other file in this folder names a network and picks one of them.

A published setting that a recipe leaves out is the default of its spec (`skipnet_jax/specs.py`): Nesterov momentum
0.9, five warm-up epochs, a cosine to 0, batch norm over 128 examples, AdamW's betas 0.9 and 0.999.

Source: Takeda et al., MIRU2020, and the settings behind its published tables.
"""

import ml_collections

from skipnet_jax.config import to_config_dict
from skipnet_jax.errors import UserError
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec

_CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}


def digits() -> ml_collections.ConfigDict:
    """The digits that come with scikit-learn: half a minute on a CPU, no download, no published figures.

    The images have 8x8 pixels and are enlarged to 16. They are never mirrored: a mirrored 7 is no digit.
    """
    return to_config_dict(
        TrainSpec(
            model=ModelSpec(name="skip_resnet20", num_classes=10),
            data=DataSpec(name="digits", image_size=16, pad_crop=2, flip=False),
            mixing=MixingSpec(cutmix_prob=0.5, label_smoothing=0.1),
            optim=OptimSpec(lr=0.1, lr_batch_size=128, weight_decay=5e-4),
            batch_size=128,
            eval_batch_size=120,
            epochs=24,
            log_every_steps=10,
            checkpoint_every_epochs=4,
        )
    )


def fashion_mnist(network: str) -> ml_collections.ConfigDict:
    """Fashion-MNIST at its own 28 pixels: 20 epochs, which two CPU cores train in an hour or two.

    Batch size, learning rate, momentum, weight decay, crops and mirroring follow the published comparison. It also has
    results with random erasing, which `--config.mixing.erasing_prob=0.5` adds. The comparison trains for 300 epochs and
    divides the rate by ten after 150 and 225; this recipe follows a cosine.

    Args:
      network: a name of `skipnet_jax.models.list_models()`.

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020, section 4.
    """
    return to_config_dict(
        TrainSpec(
            model=ModelSpec(name=network, num_classes=10),
            data=DataSpec(name="fashion_mnist", image_size=28, pad_crop=4, flip=True),
            mixing=MixingSpec(),
            optim=OptimSpec(lr=0.1, lr_batch_size=128, nesterov=False, warmup_epochs=0, weight_decay=5e-4),
            batch_size=128,
            eval_batch_size=250,
            epochs=20,
        )
    )


def cifar_resnet(network: str, dataset: str) -> ml_collections.ConfigDict:
    """ResNet-110 and its relatives on CIFAR: CutMix on every example, 600 epochs.

    Args:
      network: a name of `skipnet_jax.models.list_models()`.
      dataset: cifar10 or cifar100.

    Raises:
      UserError: another data set.
    """
    return _cifar(
        network,
        dataset,
        auto_augment="none",
        mixing=MixingSpec(cutmix_prob=1.0),
        optim=OptimSpec(lr=0.2, lr_batch_size=256, weight_decay=5e-4),
    )


def cifar_wide(network: str, dataset: str) -> ml_collections.ConfigDict:
    """WideResNets on CIFAR: as ResNets, with AutoAugment and label smoothing as well.

    Args:
      network: a name of `skipnet_jax.models.list_models()`.
      dataset: cifar10 or cifar100.

    Raises:
      UserError: another data set.
    """
    return _cifar(
        network,
        dataset,
        auto_augment="cifar10",
        mixing=MixingSpec(cutmix_prob=1.0, label_smoothing=0.1),
        optim=OptimSpec(lr=0.4, lr_batch_size=256, weight_decay=5e-4),
    )


def imagenet_resnet(network: str) -> ml_collections.ConfigDict:
    """ResNet, ResNeXt and SE-ResNe(X)t on ImageNet: CutMix on every example, 300 epochs."""
    return _imagenet(
        ModelSpec(name=network, num_classes=1000, dtype="auto"),
        mixing=MixingSpec(cutmix_prob=1.0),
        optim=OptimSpec(lr=0.4, lr_batch_size=1024, weight_decay=1e-4),
    )


def imagenet_regnet(network: str) -> ml_collections.ConfigDict:
    """RegNet on ImageNet: no mixing."""
    return _imagenet(
        ModelSpec(name=network, num_classes=1000, dtype="auto"),
        mixing=MixingSpec(),
        optim=OptimSpec(lr=0.8, lr_batch_size=1024, weight_decay=5e-5),
    )


def imagenet_adamw(network: str, drop_path: float) -> ml_collections.ConfigDict:
    """ConvNeXt and Swin on ImageNet: AdamW, RandAugment, Mixup or CutMix, random erasing, stochastic depth.

    The published settings ask for Mixup and CutMix with probability 0.5 each, and clip gradients to norm 1. The
    published code renormalised the probabilities, so that about 0.3 of the examples got Mixup and 0.7 CutMix, and did
    not clip. This recipe does what the code did. To follow the settings, add `--config.optim.clip_norm=1.0
    --config.mixing.mixup_prob=0.5 --config.mixing.cutmix_prob=0.5`.

    Args:
      network: a name of `skipnet_jax.models.list_models()`.
      drop_path: stochastic depth, which depends on the network's size.
    """
    return _imagenet(
        ModelSpec(name=network, num_classes=1000, dtype="auto", drop_path=drop_path),
        mixing=MixingSpec(cutmix_prob=0.7, mixup_prob=0.3, erasing_prob=0.25, label_smoothing=0.1),
        optim=OptimSpec(name="adamw", lr=1e-3, lr_batch_size=1024, weight_decay=0.05),
        rand_augment_ops=2,
    )


def _cifar(
    network: str, dataset: str, *, auto_augment: str, mixing: MixingSpec, optim: OptimSpec
) -> ml_collections.ConfigDict:
    if dataset not in _CIFAR_CLASSES:
        expected = f"{' or '.join(_CIFAR_CLASSES)}, as in --config=FILE.py:cifar100"
        raise UserError("config", f"the data set {dataset!r}", expected)
    return to_config_dict(
        TrainSpec(
            model=ModelSpec(name=network, num_classes=_CIFAR_CLASSES[dataset]),
            data=DataSpec(name=dataset, image_size=32, pad_crop=4, flip=True, auto_augment=auto_augment),
            mixing=mixing,
            optim=optim,
            batch_size=256,
            epochs=600,
            checkpoint_every_epochs=10,
        )
    )


def _imagenet(
    model: ModelSpec, *, mixing: MixingSpec, optim: OptimSpec, rand_augment_ops: int = 0
) -> ml_collections.ConfigDict:
    return to_config_dict(
        TrainSpec(
            model=model,
            data=DataSpec(
                name="imagenet2012",
                image_size=224,
                pad_crop=0,
                crop_min_area=0.08,
                flip=True,
                rand_augment_ops=rand_augment_ops,
                color_jitter=0.4,
                lighting=0.1,
            ),
            mixing=mixing,
            optim=optim,
            batch_size=1024,
            eval_batch_size=1024,
            epochs=300,
        )
    )
