import pytest

from skipnet_jax.models import connectivity


def test_plain_networks_see_their_own_shortcut_only():
    assert [connectivity.own_distance(reach) for reach in (0, 1, 20)] == [(0,)] * 3


@pytest.mark.parametrize(
    ("reach", "distances"),
    [
        (0, (0,)),
        (1, (0, 1)),
        (2, (0, 1)),
        (3, (0, 1, 3)),
        (6, (0, 1, 3)),
        (7, (0, 1, 3, 7)),
        (14, (0, 1, 3, 7)),
        (15, (0, 1, 3, 7, 15)),
        (17, (0, 1, 3, 7, 15)),
    ],
)
def test_skip_distances_are_powers_of_two_less_one(reach, distances):
    assert connectivity.skip_distances(reach) == distances


@pytest.mark.parametrize(
    ("reach", "distances"),
    [(0, (0,)), (1, (0, 1)), (3, (0, 1, 2, 3)), (4, (0, 1, 2, 3, 4)), (5, (0, 1, 2, 3, 4)), (40, (0, 1, 2, 3, 4))],
)
def test_dense_distances_are_the_nearest_five(reach, distances):
    assert connectivity.dense_distances(reach) == distances
