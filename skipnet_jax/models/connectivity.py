"""Which earlier states a block sees: pure Python, no arrays.

A section starts at block 0 and at every block with a stride. Inside a section, block i sees the state
of block j at distance d = i - j; distance 0, its own shortcut, always comes first.

Source: Takeda, MIRU2020 (skip wiring); DenseNet (Huang et al., CVPR 2017) for the idea of the dense one.
"""

DENSE_CONNECTIONS = 4


def own_distance(reach: int) -> tuple[int, ...]:
    """The wiring of a plain residual network: its own shortcut only, whatever the reach."""
    del reach
    return (0,)


def skip_distances(reach: int) -> tuple[int, ...]:
    """Distances 0, 1, 3, 7, 15, ... = 2^k - 1, as far as the section reaches back.

    Args:
      reach: number of earlier blocks in the section, 0 for its first.

    Returns:
      Distances in increasing order.
    """
    return tuple(2**k - 1 for k in range((reach + 1).bit_length()))


def dense_distances(reach: int) -> tuple[int, ...]:
    """Distances 0, 1, 2, ..., `DENSE_CONNECTIONS`, as far as the section reaches back.

    Args:
      reach: number of earlier blocks in the section, 0 for its first.

    Returns:
      Distances in increasing order.
    """
    return tuple(range(min(reach, DENSE_CONNECTIONS) + 1))
