import types

import pytest

from skipnet_jax.training import precision
from tests.tiny_runs import make_spec


@pytest.mark.parametrize(
    ("platform", "compute_capability", "dtype"),
    [
        ("tpu", None, "bfloat16"),
        ("gpu", "9.0", "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "gfx942", "bfloat16"),
        ("gpu", "gfx906", "float32"),
        ("cpu", None, "float32"),
    ],
)
def test_bfloat16_where_the_device_has_it(platform, compute_capability, dtype):
    device = types.SimpleNamespace(platform=platform, compute_capability=compute_capability)
    automatic = precision.with_dtype(make_spec(), "auto")
    assert precision.resolve(automatic, device).model.dtype == dtype
    assert precision.resolve(make_spec(), device) == make_spec()
