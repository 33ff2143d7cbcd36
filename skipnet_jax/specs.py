"""Every hyperparameter of a run, documented and validated once.

A leaf: anyone may import it, it imports nothing of the project. A recipe in `configs/` fills these
dataclasses, `config.py` reads them back from a ConfigDict or a workdir, and from there a field keeps
its name down to the layer that uses it.
"""

import dataclasses

DTYPES = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Which network, and how it computes.

    Args:
      name: a name of `skipnet_jax.models.list_models()`.
      num_classes: width of the classifier; has to equal the data set's number of classes.
      dtype: of the computation: float32, bfloat16 or float64 (needs JAX_ENABLE_X64=1). Parameters
        and statistics stay in float32 (float64 in float64).
      bn_group_size: examples that one batch norm normalises together; 0 = the whole batch.
      gate_reduction: divides a gate's hidden width; 0 = the network's own (8, or 2 for CIFAR ResNets).
      dropout: probability of dropping a feature before the classifier.
      drop_path: probability of dropping the last block's branch (stochastic depth; earlier blocks
        linearly less).
      remat: recompute each block in the backward pass: less memory, about a third more time.
    """

    name: str
    num_classes: int
    dtype: str = "float32"
    bn_group_size: int = 128
    gate_reduction: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False

    def __post_init__(self) -> None:
        _require_choice("model.dtype", self.dtype, DTYPES)
        _require_at_least("model.num_classes", self.num_classes, 1)
        _require_at_least("model.bn_group_size", self.bn_group_size, 0)
        _require_at_least("model.gate_reduction", self.gate_reduction, 0)
        _require_below_one("model.dropout", self.dropout)
        _require_below_one("model.drop_path", self.drop_path)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Which images, and what the host does to them.

    Args:
      name: digits, cifar10 or cifar100.
      dir: where TensorFlow Datasets keeps its data; empty = its default (~/tensorflow_datasets).
      image_size: side of the square images that the network sees, in pixels.
      pad_crop: training images are padded by this many pixels (by reflection) and cropped at random
        to `image_size`; 0 = off.
      flip: mirror training images left to right with probability 1/2.
    """

    name: str
    dir: str = ""
    image_size: int = 32
    pad_crop: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        _require_at_least("data.image_size", self.image_size, 8)
        _require_at_least("data.pad_crop", self.pad_crop, 0)
        if self.pad_crop >= self.image_size:
            raise ValueError(
                f"data.pad_crop: got {self.pad_crop}, expected less than data.image_size ({self.image_size}), "
                f"since reflection cannot pad by more than the image has. Lower --config.data.pad_crop."
            )


@dataclasses.dataclass(frozen=True)
class MixingSpec:
    """What the device does to images and targets inside the training step.

    Args:
      cutmix_prob: share of the examples that get CutMix, 0..1.
      cutmix_alpha: of lambda ~ Beta(alpha, alpha), of which the larger of lambda and 1 - lambda is kept.
      label_smoothing: k in (1 - k) * target + k / classes, after mixing.
    """

    cutmix_prob: float = 0.0
    cutmix_alpha: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require_fraction("mixing.cutmix_prob", self.cutmix_prob)
        _require_fraction("mixing.label_smoothing", self.label_smoothing)
        _require_positive("mixing.cutmix_alpha", self.cutmix_alpha)


@dataclasses.dataclass(frozen=True)
class OptimSpec:
    """SGD with momentum and its learning rate over the epochs.

    Args:
      lr: base learning rate, for the batch size of the recipe (not rescaled when you change that).
      momentum: 0..1.
      nesterov: Nesterov's form of momentum.
      weight_decay: added to the gradient (coupled, as in torch), for convolution and linear kernels
        and for the static junction's table; not for norms and biases.
      warmup_epochs: the rate of epoch e < W is multiplied by (e + 1) / (W + 1).
      last_lr: where the cosine ends.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_epochs: int = 5
    last_lr: float = 0.0

    def __post_init__(self) -> None:
        _require_positive("optim.lr", self.lr)
        _require_fraction("optim.momentum", self.momentum)
        _require_at_least("optim.weight_decay", self.weight_decay, 0)
        _require_at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        _require_at_least("optim.last_lr", self.last_lr, 0)


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """A whole run.

    Args:
      model, data, mixing, optim: see there.
      batch_size: training examples per step, over all devices and hosts. An epoch is
        floor(training examples / batch_size) steps.
      eval_batch_size: the same for evaluation; the result does not depend on it.
      epochs: length of the run.
      seed: of initialisation, order, augmentation and mixing; 0..2^32 - 1.
      log_every_steps: how often metrics are fetched from the device and written.
      checkpoint_every_epochs: the last epoch is always saved.
    """

    model: ModelSpec
    data: DataSpec
    mixing: MixingSpec
    optim: OptimSpec
    batch_size: int
    epochs: int
    eval_batch_size: int = 256
    seed: int = 0
    log_every_steps: int = 100
    checkpoint_every_epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "epochs", "log_every_steps", "checkpoint_every_epochs"):
            _require_at_least(name, getattr(self, name), 1)
        if not 0 <= self.seed < 2**32:
            raise ValueError(
                f"seed: got {self.seed}, expected 0..4294967295, all that JAX tells apart. Change --config.seed."
            )
        group = self.model.bn_group_size
        if group and self.batch_size > group and self.batch_size % group:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected a multiple of model.bn_group_size ({group}) or less "
                f"than one group. Change --config.batch_size or --config.model.bn_group_size (0 = whole batch)."
            )


def _require_at_least(name: str, value: int | float, least: int | float) -> None:
    if not value >= least:  # not a number is refused too
        raise ValueError(f"{name}: got {value}, expected at least {least}. Change --config.{name}.")


def _require_positive(name: str, value: int | float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: got {value}, expected more than 0. Change --config.{name}.")


def _require_fraction(name: str, value: int | float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}, expected 0..1. Change --config.{name}.")


def _require_below_one(name: str, value: int | float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}, expected 0 or more and less than 1. Change --config.{name}.")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}. Change --config.{name}.")
