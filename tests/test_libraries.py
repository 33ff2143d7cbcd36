import sys
import types

from skipnet_jax import libraries


def test_of_readings_that_break_off_nothing_is_told_and_of_other_bugs_all(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    libraries._quieten_broken_readings()
    dropped = RuntimeError("Event loop is closed"), Exception("Encountered error while reading array index: (0). See")
    for error in (*dropped, RuntimeError("another")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in told] == ["another"]
