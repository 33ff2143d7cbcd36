"""Every hyperparameter of a run, documented and validated once.

A recipe in `configs/` fills these dataclasses, and `config.py` reads them back from a ConfigDict or a workdir. From
here a field keeps its name down to the layer that uses it.

Workdirs of earlier versions lack newer fields. So a new field needs a default that means "as before".
"""

import dataclasses
import math

from skipnet_jax.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float64")
OPTIMIZERS = ("sgd", "sam", "adamw", "rmsprop", "rmsprop_tf")
SCHEDULES = ("cosine", "exponential", "constant")
SCHEDULE_UNITS = ("epoch", "step")
LR_SCALES = ("none", "linear")
AUTO_AUGMENT_POLICIES = ("none", "cifar10", "imagenet", "svhn")
CLASS_SPACES = ("all", "own")
INTERPOLATIONS = ("bilinear", "bicubic")
INIT_HEADS = ("auto", "keep")
CORRUPT_POLICIES = ("error", "skip")
ABSENT_CLASSES = ("error", "allow")
NONFINITE_POLICIES = ("stop", "skip")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Normalises the pixels of a data set: (pixel / 255 - mean) / std.

    Args:
      mean, std: of each channel, for pixels scaled to 0..1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Which network, and how it computes.

    Args:
      name: one of `skipnet_jax.models.list_models()`.
      num_classes: width of the classifier; must equal the data set's number of classes.
      dtype: of the computation: float32, bfloat16 or float64 (needs JAX_ENABLE_X64=1); or auto, which a new run
        replaces by bfloat16 on TPUs and on GPUs that support it, and by float32 elsewhere. Parameters and statistics
        stay in float32 (float64 in float64).
      bn_group_size: examples that batch norm normalises together; 0 = the whole batch.
      gate_reduction: a gate's hidden width is its channels divided by this; 0 = the network's own (8, or 2 for CIFAR
        ResNets).
      dropout: probability of dropping a feature before the classifier.
      drop_path: probability of dropping the last block's branch (stochastic depth). It grows linearly with the depth.
      shake_drop: probability of scaling the last block's branch by a random factor (ShakeDrop). It grows linearly with
        the depth.
      drop_block: probability of dropping a pixel of a feature map, in squares (DropBlock), at the end of training. It
        grows linearly over the epochs, and applies from the last but one strided block on.
      drop_block_size: side of those squares, in pixels of the feature map.
      signal_augment: standard deviation of a random gain on each sample's branch (signal augmentation).
      remat: recompute each block in the backward pass: less memory, about a third more time.
    """

    name: str
    num_classes: int
    dtype: str = "float32"
    bn_group_size: int = 128
    gate_reduction: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0
    shake_drop: float = 0.0
    drop_block: float = 0.0
    drop_block_size: int = 7
    signal_augment: float = 0.0
    remat: bool = False

    def __post_init__(self) -> None:
        _require_choice("model.dtype", self.dtype, DTYPES)
        _require_at_least("model.num_classes", self.num_classes, 2)
        _require_at_least("model.bn_group_size", self.bn_group_size, 0)
        _require_at_least("model.gate_reduction", self.gate_reduction, 0)
        _require_below_one("model.dropout", self.dropout)
        _require_below_one("model.drop_path", self.drop_path)
        _require_below_one("model.shake_drop", self.shake_drop)
        _require_below_one("model.drop_block", self.drop_block)
        _require_at_least("model.drop_block_size", self.drop_block_size, 1)
        _require_at_least("model.signal_augment", self.signal_augment, 0)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Which images, and what the host does to them.

    Args:
      name: digits; a data set of TensorFlow Datasets as NAME[/CONFIG][:VERSION] (cifar10, imagenet2012, ...), or tfds
        for one that is prepared in `dir`; or your own images: tfrecords (made or described by
        scripts/make_tfrecords.py), folder (one folder per class, under train/ and test/) or webdataset (tars of
        samples).
      dir: where the data lie, local or gs://; ~ and $VARIABLES are replaced; empty = the default of TensorFlow Datasets
        (~/tensorflow_datasets).
      train_split, test_split: for TensorFlow Datasets: the training and the test images in its own split language, as
        train[:90%] or validation+test; empty = train, and test (validation if there is no test).
      image_key, label_key: for TensorFlow Datasets: the features with the image and the label; empty = the data set's
        supervised keys, or its only image and label. For webdataset: the ending of the image's name, as in left.jpg,
        and the label's key in JSON.
      pattern: for tfrecords: train only on the shards whose names match this shell pattern.
      holdout: the training images that choose the best checkpoint instead of the test images: a fraction (0.1), a
        number (5000), the name of a split or folder, or none; empty = the validation images if folders, tars or
        TensorFlow Datasets have training, validation and test images, otherwise none.
      absent_classes: for folders, if a class has no test images: `error`, or `allow` = evaluate the others.
      background: red, green and blue (0..255) behind transparent images.
      classes: keep only these classes and renumber them in this order; empty = all. Not for data in shards.
      eval_classes: for TensorFlow Datasets: predict one of `all` classes of the network, or one of the data set's
        `own`, the classes of its test images: 200 for imagenet_a and for imagenet_r.
      image_size: side of the square images that the network sees, in pixels.
      mean, std: normalise each channel by these, for pixels scaled to 0..1; empty = the data set's own.
      eval_crop: for images in files: share of the shorter side that evaluation shows; 0 = 0.875, or all of it from 384
        pixels on.
      interpolation: for images in files: how evaluation resizes, bilinear or bicubic.
      pad_crop: pad training images by this many pixels (by reflection), then crop them at random to `image_size`;
        0 = off.
      crop_min_area: crop training images to random rectangles (aspect 3/4..4/3) of at least this share of the image,
        then resize them to `image_size`; 0 = off, 0.08 = as published for ImageNet.
      flip: mirror training images left to right with probability 1/2.
      auto_augment: none, or a policy of AutoAugment: cifar10, imagenet or svhn.
      rand_augment_ops: operations of RandAugment on each training image; 0 = off.
      rand_augment_magnitude, rand_augment_std: mean and standard deviation of their strength, 0..10.
      rand_augment_prob: probability that an operation is applied.
      color_jitter: scale brightness, contrast and saturation by 1 - x..1 + x, in random order; 0 = off.
      lighting: standard deviation of the noise along the principal components of ImageNet's colours; 0 = off.
      on_corrupt: what to do with a training image that cannot be decoded: `error` = stop and name it; `skip` = leave it
        out and report the number. Evaluation always stops.
    """

    name: str
    dir: str = ""
    pattern: str = "*"
    train_split: str = ""
    test_split: str = ""
    image_key: str = ""
    label_key: str = ""
    holdout: str = ""
    absent_classes: str = "error"
    background: tuple[int, ...] = (255, 255, 255)
    classes: tuple[int, ...] = ()
    eval_classes: str = "all"
    image_size: int = 32
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    eval_crop: float = 0.0
    interpolation: str = "bilinear"
    pad_crop: int = 4
    crop_min_area: float = 0.0
    flip: bool = True
    auto_augment: str = "none"
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 9.0
    rand_augment_std: float = 0.5
    rand_augment_prob: float = 0.5
    color_jitter: float = 0.0
    lighting: float = 0.0
    on_corrupt: str = "error"

    def __post_init__(self) -> None:
        _require_at_least("data.image_size", self.image_size, 8)
        _require_at_least("data.pad_crop", self.pad_crop, 0)
        _require_fraction("data.eval_crop", self.eval_crop)
        _require_choice("data.interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3) or len(self.mean) != len(self.std):
                got = f"mean={self.mean} and std={self.std}"
                raise UserError(f"data.{name}", got, "three numbers each, or none", f"Change `data.{name}`.")
        if not all(map(math.isfinite, self.mean)):
            raise UserError("data.mean", f"{self.mean}", "finite numbers", "Change `data.mean`.")
        for number in self.std:
            _require_positive("data.std", number)
        _require_choice("data.eval_classes", self.eval_classes, CLASS_SPACES)
        _require_fraction("data.crop_min_area", self.crop_min_area)
        _require_choice("data.auto_augment", self.auto_augment, AUTO_AUGMENT_POLICIES)
        _require_at_least("data.rand_augment_ops", self.rand_augment_ops, 0)
        _require_at_least("data.rand_augment_magnitude", self.rand_augment_magnitude, 0)
        _require_at_least("data.rand_augment_std", self.rand_augment_std, 0)
        _require_fraction("data.rand_augment_prob", self.rand_augment_prob)
        _require_fraction("data.color_jitter", self.color_jitter)
        _require_at_least("data.lighting", self.lighting, 0)
        _require_choice("data.on_corrupt", self.on_corrupt, CORRUPT_POLICIES)
        _require_choice("data.absent_classes", self.absent_classes, ABSENT_CLASSES)
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            expected = "three numbers 0..255: red, green and blue"
            raise UserError("data.background", f"{self.background}", expected, "Change `data.background`.")
        if self.pad_crop >= self.image_size:
            raise UserError(
                "data.pad_crop",
                f"{self.pad_crop}",
                f"less than data.image_size ({self.image_size}), since padding reflects the image's own pixels",
                "Lower `data.pad_crop`.",
            )
        if self.pad_crop and self.crop_min_area:
            raise UserError(
                "data.pad_crop",
                f"{self.pad_crop} beside data.crop_min_area={self.crop_min_area}",
                "one of the two to be 0, since an image is cropped once",
                "Change `data.pad_crop` or `data.crop_min_area`.",
            )
        if len(set(self.classes)) < len(self.classes) or any(number < 0 for number in self.classes):
            raise UserError("data.classes", f"{self.classes}", "different numbers, 0 or more", "Change `data.classes`.")


@dataclasses.dataclass(frozen=True)
class MixingSpec:
    """What the device does to images and targets inside the training step.

    An example gets CutMix or Mixup or neither.

    Args:
      cutmix_prob: share of the examples that get CutMix, 0..1.
      cutmix_alpha: lambda ~ Beta(alpha, alpha); the image keeps the larger of lambda and 1 - lambda.
      mixup_prob: share of the examples that get Mixup, 0..1.
      mixup_alpha: as cutmix_alpha.
      erasing_prob: share of the examples in which noise replaces a random rectangle (random erasing), 0..1.
      label_smoothing: k in (1 - k) * target + k / classes, after mixing.
    """

    cutmix_prob: float = 0.0
    cutmix_alpha: float = 1.0
    mixup_prob: float = 0.0
    mixup_alpha: float = 0.8
    erasing_prob: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cutmix_prob", "mixup_prob", "erasing_prob", "label_smoothing"):
            _require_fraction(f"mixing.{name}", getattr(self, name))
        _require_positive("mixing.cutmix_alpha", self.cutmix_alpha)
        _require_positive("mixing.mixup_alpha", self.mixup_alpha)
        if self.cutmix_prob + self.mixup_prob > 1 + 1e-6:  # 0.7 + 0.3 may round above 1
            raise UserError(
                "mixing.cutmix_prob",
                f"{self.cutmix_prob} beside mixing.mixup_prob={self.mixup_prob}",
                "at most 1 together",
                "Change `mixing.cutmix_prob` or `mixing.mixup_prob`.",
            )


@dataclasses.dataclass(frozen=True)
class OptimSpec:
    """The optimiser, and its learning rate over the epochs.

    Args:
      name: sgd; sam (sharpness-aware minimisation around SGD); adamw; rmsprop (torch's form); rmsprop_tf
        (TensorFlow's).
      lr: base learning rate, for the batch size of the recipe.
      lr_scale: none = `lr` as it is, whatever the batch size; linear = times batch_size / lr_batch_size.
      lr_batch_size: the batch size that `lr` was chosen for.
      schedule: cosine, exponential or constant (without warm-up).
      schedule_unit: the rate changes every `epoch`, as published, or every `step`, along the same curve.
      warmup_epochs: W; the rate of epoch e < W is multiplied by (e + 1) / (W + 1).
      last_lr: where the curve ends; 0 = at 0 (cosine) or at 1 % of `lr` (exponential).
      layer_lr_ratio: the stem learns at this share of the rate, the classifier at the full rate, and the blocks in
        between at a geometric series of shares; 1 = all alike.
      momentum: 0..1; for adamw, the first beta, less than 1.
      nesterov: use Nesterov's momentum (sgd, sam).
      beta2: decay of adamw's mean square.
      smoothing: decay of the mean square of rmsprop and rmsprop_tf.
      eps: keeps the division finite (adamw, rmsprop, rmsprop_tf).
      rho: length of sam's step uphill.
      weight_decay: for the kernels of convolutions and linear layers and for the static junction's table, not for norms
        and biases. It is added to the gradient, as in torch; adamw subtracts it from the parameter, times the rate.
      decay_bias: decay biases too, including those of norms.
      clip_value: cut each gradient to -x..x; 0 = off.
      clip_norm: scale all gradients together to at most this norm; 0 = off.
    """

    name: str = "sgd"
    lr: float = 0.1
    lr_scale: str = "none"
    lr_batch_size: int = 256
    schedule: str = "cosine"
    schedule_unit: str = "epoch"
    warmup_epochs: int = 5
    last_lr: float = 0.0
    layer_lr_ratio: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    beta2: float = 0.999
    smoothing: float = 0.99
    eps: float = 1e-8
    rho: float = 0.05
    weight_decay: float = 5e-4
    decay_bias: bool = False
    clip_value: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("optim.name", self.name, OPTIMIZERS)
        _require_choice("optim.lr_scale", self.lr_scale, LR_SCALES)
        _require_choice("optim.schedule", self.schedule, SCHEDULES)
        _require_choice("optim.schedule_unit", self.schedule_unit, SCHEDULE_UNITS)
        for name in ("lr", "eps", "rho", "layer_lr_ratio"):
            _require_positive(f"optim.{name}", getattr(self, name))
        for name in ("momentum", "layer_lr_ratio"):
            _require_fraction(f"optim.{name}", getattr(self, name))
        if self.name == "adamw":  # which divides the mean gradient by 1 - momentum^step
            _require_below_one("optim.momentum", self.momentum)
        for name in ("beta2", "smoothing"):
            _require_below_one(f"optim.{name}", getattr(self, name))
        for name in ("weight_decay", "warmup_epochs", "last_lr", "clip_value", "clip_norm"):
            _require_at_least(f"optim.{name}", getattr(self, name), 0)
        _require_at_least("optim.lr_batch_size", self.lr_batch_size, 1)


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """A whole run.

    Args:
      batch_size: training examples per step, over all devices and hosts. An epoch is
        floor(training examples / batch_size) steps.
      eval_batch_size: examples per evaluation step; the results do not depend on it.
      accumulate_steps: compute the gradient of a step in this many parts, one after the other, for batches that do not
        fit into memory. The update is the same, except that batch norm sees the parts and that each part draws its
        own noise.
      ema_decay: decay of a moving average of parameters and batch statistics, which is evaluated as well as the
        network. In step s the decay is at most (1 + s) / (10 + s), so that the average soon forgets the random start;
        0 = no average.
      init_from: a workdir, of a run or of converted weights, to start from; empty = random initial weights.
      init_head: with `init_from`, `auto` = start a new classifier if the classes differ in name or order, or if the
        weights name no classes; `keep` = take the classifier as it is.
      seed: for initialisation, order, augmentation and mixing; 0..2^32 - 1.
      log_every_steps: how often metrics are fetched from the device and written.
      checkpoint_every_epochs: how often a checkpoint is written; the last epoch always is.
      checkpoint_every_minutes: also save when the last save is this old, even within an epoch; 0 = off.
      on_nonfinite: what to do if a loss, gradient or update is not finite: `stop` = report it and keep the last good
        checkpoint; `skip` = leave the update out, count it and report it.
      wandb_project: send the metrics to this project at Weights & Biases too; empty = do not. Needs the extra `wandb`.
    """

    model: ModelSpec
    data: DataSpec
    mixing: MixingSpec
    optim: OptimSpec
    batch_size: int
    epochs: int
    eval_batch_size: int = 256
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    init_from: str = ""
    init_head: str = "auto"
    seed: int = 0
    log_every_steps: int = 100
    checkpoint_every_epochs: int = 1
    checkpoint_every_minutes: float = 10.0
    on_nonfinite: str = "stop"
    wandb_project: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "epochs", "accumulate_steps"):
            _require_at_least(name, getattr(self, name), 1)
        for name in ("log_every_steps", "checkpoint_every_epochs"):
            _require_at_least(name, getattr(self, name), 1)
        _require_at_least("checkpoint_every_minutes", self.checkpoint_every_minutes, 0)
        _require_choice("init_head", self.init_head, INIT_HEADS)
        _require_choice("on_nonfinite", self.on_nonfinite, NONFINITE_POLICIES)
        _require_below_one("ema_decay", self.ema_decay)
        if not 0 <= self.seed < 2**32:
            raise UserError("seed", f"{self.seed}", "0..4294967295, the range of JAX's seeds", "Change `seed`.")
        if self.batch_size % self.accumulate_steps:
            raise UserError(
                "accumulate_steps",
                f"{self.accumulate_steps}",
                f"a divisor of batch_size ({self.batch_size})",
                "Change `accumulate_steps` or `batch_size`.",
            )

    def require_whole_groups(self) -> None:
        """Checks that batch norm's groups fill each part of the batch. Only networks with batch norm need it.

        Raises:
          UserError: the part is neither a multiple of the group nor, without `accumulate_steps`, smaller than a group.
        """
        group, part = self.model.bn_group_size, self.batch_size // self.accumulate_steps
        smaller = " or less than one group" if self.accumulate_steps == 1 else ""  # parts must not shrink a group
        if group and part % group and not (smaller and part < group):
            raise UserError(
                "batch_size",
                f"{self.batch_size} in {self.accumulate_steps} part(s)",
                f"a part that is a multiple of model.bn_group_size ({group}){smaller}",
                "Change `batch_size`, `accumulate_steps` or `model.bn_group_size` (0 = the whole part).",
            )

    def steps_per_epoch(self, training_images: int) -> int:
        """Number of steps in an epoch. The images that do not fill a batch are left out, different ones in each epoch.

        Raises:
          UserError: a batch is larger than the training set.
        """
        if self.batch_size > training_images:
            raise UserError(
                "batch_size",
                f"{self.batch_size}",
                f"at most the {training_images} training images of {self.data.name}",
                "Lower `batch_size`.",
            )
        return training_images // self.batch_size


def _require_at_least(field: str, value: int | float, least: int | float) -> None:
    if not least <= value < math.inf:  # refuses NaN too
        finite = " and finite" if value == math.inf else ""
        raise UserError(field, f"{value}", f"at least {least}{finite}", f"Change `{field}`.")


def _require_positive(field: str, value: int | float) -> None:
    if not 0 < value < math.inf:
        finite = " and finite" if value == math.inf else ""
        raise UserError(field, f"{value}", f"more than 0{finite}", f"Change `{field}`.")


def _require_fraction(field: str, value: int | float) -> None:
    if not 0 <= value <= 1:
        raise UserError(field, f"{value}", "0..1", f"Change `{field}`.")


def _require_below_one(field: str, value: int | float) -> None:
    if not 0 <= value < 1:
        raise UserError(field, f"{value}", "0 or more and less than 1", f"Change `{field}`.")


def _require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(field, repr(value), f"one of {', '.join(choices)}", f"Change `{field}`.")
