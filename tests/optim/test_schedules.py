import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.optim import schedules
from skipnet_jax.specs import SCHEDULES, OptimSpec

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "schedules.json").read_text())


def make(spec, *, epochs, steps_per_epoch=1, batch_size=256):
    return schedules.make_schedule(spec, batch_size=batch_size, epochs=epochs, steps_per_epoch=steps_per_epoch)


def rates_of(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.asarray(steps)))


def golden_spec(entry, **changes):
    return OptimSpec(
        schedule=entry["schedule"],
        lr=entry["base_lr"],
        last_lr=entry["last_lr"],
        warmup_epochs=entry["warmup_epochs"],
        **changes,
    )


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize(
    "entry", GOLDEN, ids=lambda entry: f"{entry['schedule']}-lr{entry['base_lr']}-last{entry['last_lr']}"
)
def test_rates_match_the_published_schedules(entry, unit, x64):
    """With unit epoch every step of an epoch has its rate; with unit step the first one has."""
    schedule = make(golden_spec(entry, schedule_unit=unit), epochs=entry["epochs"], steps_per_epoch=7)
    first = 7 * np.arange(entry["epochs"])
    for steps in (first, first + 6) if unit == "epoch" else (first,):
        rates = rates_of(schedule, steps)
        assert rates.dtype == np.float64
        np.testing.assert_allclose(rates, entry["lr_per_epoch"], rtol=1e-9, atol=1e-15)


def test_every_schedule_is_tested():
    assert {entry["schedule"] for entry in GOLDEN} == set(SCHEDULES) == set(schedules.CURVES)


def test_with_unit_step_the_rate_changes_within_an_epoch(x64):
    spec = OptimSpec(lr=0.2, warmup_epochs=2, schedule_unit="step")
    rates = rates_of(make(spec, epochs=10, steps_per_epoch=4), np.arange(40))
    epoch = np.arange(40) / 4
    expected = 0.1 * (1 + np.cos(np.pi * epoch / 10)) * np.minimum(1, (epoch + 1) / 3)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_linear_scaling_scales_the_whole_curve(schedule, x64):
    spec = {"schedule": schedule, "lr": 0.4, "last_lr": 0.1, "warmup_epochs": 2, "lr_batch_size": 1024}
    plain = make(OptimSpec(**spec), epochs=6, batch_size=256)
    scaled = make(OptimSpec(**spec, lr_scale="linear"), epochs=6, batch_size=256)
    np.testing.assert_allclose(rates_of(scaled, np.arange(6)), rates_of(plain, np.arange(6)) / 4, rtol=1e-12)


@pytest.mark.parametrize(("unit", "last"), [("epoch", 14), ("step", 15)])
def test_after_the_last_step_the_rate_stays_constant(unit, last):
    schedule = make(OptimSpec(lr=0.2, schedule_unit=unit), epochs=8, steps_per_epoch=2)
    assert schedule(last) == schedule(15) == schedule(16) == schedule(1000) > 0
    assert schedule(last) != schedule(last - 1)
