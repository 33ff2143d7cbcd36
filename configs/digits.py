"""Skip-ResNet-20 on the digits that come with scikit-learn: no download.

    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits

Nothing is published for this data set.
"""

import ml_collections

from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """The digits recipe."""
    return recipes.digits()
