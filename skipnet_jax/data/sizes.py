"""How many images a data set has."""

from skipnet_jax.data import holdout, sources, statistics
from skipnet_jax.specs import DataSpec

# (training images, test images). Source: the catalogue of TensorFlow Datasets, which lists the splits of each version;
# for the digits, the split in `sources.py`.
SIZES = {
    "digits": (1_437, 360),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "imagenet2012": (1_281_167, 50_000),
}


def count_images(spec: DataSpec) -> tuple[int, int]:
    """Returns the number of training images, and the number of hold-out or test images that judge each epoch.

    Opens only data sets that `SIZES` lacks, and parts of a data set that no list counts.

    Raises:
      UserError: an unknown data set, or one without training images.
      DataError: your own images are not where the spec says.
    """
    known, kept = SIZES.get(statistics.base_name(spec.name)), holdout.parse(spec.holdout)
    parts = spec.classes or spec.pattern != "*" or spec.train_split or spec.test_split
    if known is None or parts or (isinstance(kept, str) and kept):
        judge = sources.load_holdout(spec) or sources.load(spec, "test")
        return sources.load(spec, "train").num_examples, judge.num_examples
    if isinstance(kept, holdout.Amount):
        count = kept.of(known[0])
        return known[0] - count, count
    return known
