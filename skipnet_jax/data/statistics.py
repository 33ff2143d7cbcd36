"""Mean and standard deviation of each channel of the data sets, for pixels scaled to 0..1."""

from skipnet_jax.data.kinds import IMAGENET_MEAN, IMAGENET_STD

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# What is not here, images of your own included, is normalised as ImageNet.
STATISTICS: dict[str, Statistics] = {
    # Measured over the training split at 32x32, all pixels at once: the three channels are equal.
    "digits": ((0.3054,) * 3, (0.3237,) * 3),
    # Measured over the training images, all pixels at once.
    "fashion_mnist": ((0.2860,) * 3, (0.3530,) * 3),
    # Those of the published recipes.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def of_data(name: str) -> Statistics:
    """Mean and standard deviation that a data set is normalised with.

    Args:
      name: as of `specs.DataSpec`.
    """
    return STATISTICS.get(name.partition("/")[0], (IMAGENET_MEAN, IMAGENET_STD))
