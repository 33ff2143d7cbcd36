import sys
import types

from skipnet_jax import libraries


def test_only_abandoned_reads_are_silenced(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    libraries._quieten_abandoned_reads()
    dropped = RuntimeError("Event loop is closed"), Exception("Encountered error while reading array index: (0). See")
    for error in (*dropped, RuntimeError("another")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in told] == ["another"]
