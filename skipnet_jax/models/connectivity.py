"""Wiring: which states of its section each block sees. Pure Python, no arrays.

A section starts at block 0 and at every block with stride 2. Block i sees the state of block j at distance i - j.
Distances increase from 0, the block's own shortcut. `reach` is the number of earlier blocks in the section.

Source: Takeda, MIRU2020 (skip); Huang et al., DenseNet, CVPR 2017 (the idea of dense).
"""

DENSE_CONNECTIONS = 4


def own_distance(reach: int) -> tuple[int, ...]:
    """A plain residual network: only the block's own shortcut."""
    del reach
    return (0,)


def skip_distances(reach: int) -> tuple[int, ...]:
    """Distances 0, 1, 3, 7, 15, ... = 2^k - 1, as far back as the section reaches."""
    return tuple(2**k - 1 for k in range((reach + 1).bit_length()))


def dense_distances(reach: int) -> tuple[int, ...]:
    """Distances 0, 1, 2, ..., `DENSE_CONNECTIONS`, as far back as the section reaches."""
    return tuple(range(min(reach, DENSE_CONNECTIONS) + 1))
