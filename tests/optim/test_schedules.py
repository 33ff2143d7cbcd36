import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.optim import schedules
from skipnet_jax.specs import OptimSpec

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "schedules.json").read_text())
COSINES = [entry for entry in GOLDEN if entry["schedule"] == "cosine"]


@pytest.mark.parametrize("entry", COSINES, ids=lambda entry: f"lr{entry['base_lr']}-last{entry['last_lr']}")
def test_golden(entry, x64):
    spec = OptimSpec(lr=entry["base_lr"], last_lr=entry["last_lr"], warmup_epochs=entry["warmup_epochs"])
    schedule = schedules.cosine_by_epoch(spec, epochs=entry["epochs"], steps_per_epoch=7)
    for step_of_epoch in (0, 6):
        rates = jax.vmap(schedule)(7 * jnp.arange(entry["epochs"]) + step_of_epoch)
        assert rates.dtype == jnp.float64
        np.testing.assert_allclose(rates, entry["lr_per_epoch"], rtol=1e-9, atol=1e-15)


def test_without_warmup_it_starts_at_the_base_rate():
    schedule = schedules.cosine_by_epoch(OptimSpec(lr=0.2, warmup_epochs=0), epochs=4, steps_per_epoch=1)
    np.testing.assert_allclose(schedule(0), 0.2, rtol=1e-6)
    np.testing.assert_allclose(schedule(2), 0.1, rtol=1e-6)


def test_beyond_the_end_the_rate_stays():
    schedule = schedules.cosine_by_epoch(OptimSpec(lr=0.2), epochs=8, steps_per_epoch=2)
    assert schedule(15) == schedule(16) == schedule(1000) > 0


def test_an_epoch_without_a_step_is_refused():
    with pytest.raises(ValueError, match=r"got 0, .*--config\.batch_size"):
        schedules.cosine_by_epoch(OptimSpec(), epochs=3, steps_per_epoch=0)
