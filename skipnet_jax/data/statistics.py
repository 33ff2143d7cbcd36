"""Mean and standard deviation of each channel of the data sets."""

import re

from skipnet_jax.specs import DataSpec, Statistics

# ImageNet's, as in the published recipes.
IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

STATISTICS = {
    # Measured over all pixels of the training split at 32x32; the three channels are equal.
    "digits": Statistics((0.3054,) * 3, (0.3237,) * 3),
    # Measured over all pixels of the training images.
    "fashion_mnist": Statistics((0.2860,) * 3, (0.3530,) * 3),
    # As in the published recipes.
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def of_data(name: str) -> Statistics:
    """The statistics that normalise a data set (a name as in `specs.DataSpec`): its own, or else ImageNet's."""
    return STATISTICS.get(base_name(name), IMAGENET)


def base_name(name: str) -> str:
    """The name of a data set without its variant and version."""
    return re.split("[/:]", name)[0]


def of_spec(spec: DataSpec) -> Statistics:
    """The spec's own statistics, or else `of_data`."""
    if not spec.mean:
        return of_data(spec.name)
    (red, green, blue), (red_std, green_std, blue_std) = spec.mean, spec.std
    return Statistics((red, green, blue), (red_std, green_std, blue_std))
