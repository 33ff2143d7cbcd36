import os
import pathlib
import subprocess
import sys

import jax
import pytest

from skipnet_jax import errors
from skipnet_jax.analysis import chips, topologies
from tests.compilers import needs_libtpu

HOLD_LOCK = """
from skipnet_jax.analysis import topologies
topologies.open_topology("v5e:2x2")
print("held", flush=True)
input()
"""


@pytest.mark.parametrize(
    ("name", "used", "words"),
    [
        ("v5e:3by3", None, "topology: got 'v5e:3by3', expected one of v3:2x2, "),
        ("gpu:h300", None, "cpu, gpu:h100, gpu:h200"),
        ("cpu", 9, "chips: got 9, expected at most 8, all that cpu has"),
        ("cpu", 0, "chips: got 0, expected at least 1"),
    ],
)
def test_mistakes_say_what_is_known(name, used, words):
    with pytest.raises(errors.UserError) as told:
        topologies.open_topology(name, used)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "library", "extra"), [("v5e:4x4", "libtpu", "tpu"), ("gpu:h100", "jax_cuda13_plugin", "gpu-compiler")]
)
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(monkeypatch, name, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, "jax_cuda12_plugin", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(errors.UserError, match=rf"{name} without .*Run: pip install -e \"\.\[{extra}\]\""):
        topologies.open_topology(name)


def test_this_machine_s_cpus_are_a_topology():
    topology = topologies.open_topology("cpu", 3)
    assert list(topology.devices) == jax.devices()[:3]
    assert (topology.chips, topology.hosts, topology.chip) == (3, 1, None)
    assert topology.memory > 2**30


def test_larger_slices_are_of_the_same_tpu():
    assert chips.larger_slices("v5e:4x4") == ["v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"]
    assert chips.larger_slices("cpu") == chips.larger_slices("gpu:h100") == []
    for shapes in chips.SHAPES.values():
        counts = [chips.chips_of(shape) for shape in shapes]
        assert counts == sorted(counts)


def test_clocks_follow_from_the_published_peaks():
    units = {"v3": 2 * 2 * 128**2, "v4": 2 * 4 * 128**2, "v5e": 4 * 128**2, "v5p": 2 * 4 * 128**2}
    for name, multipliers in units.items():
        chip = chips.TPUS[name]
        assert chip.clock == pytest.approx(chip.flops["bfloat16"] * chip.per_chip / (2 * multipliers), rel=0.005)


@needs_libtpu
@pytest.mark.slow
def test_each_documented_slice_has_its_chips_and_hosts():
    for generation, shapes in chips.SHAPES.items():
        for shape in shapes:
            topology = topologies.open_topology(f"{generation}:{shape}")
            assert topology.chips == chips.chips_of(shape)
            assert topology.devices[0].device_kind == chips.TPUS[generation].kind
    hosts = {"v5e:1x1": 1, "v5e:2x4": 1, "v5e:4x4": 4, "v4:4x4x4": 16, "v3:2x2": 1}
    assert {name: topologies.open_topology(name).hosts for name in hosts} == hosts
    with pytest.raises(errors.UserError, match="expected one of v3:2x2"):
        topologies.open_topology("v5e:3x5")


@needs_libtpu
@pytest.mark.slow
def test_a_process_that_holds_libtpus_lock_is_told_in_one_line():
    environment = {**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "0"}
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK], cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        plan = ["-m", "skipnet_jax.main", "--mode=plan", "--config=configs/digits.py", "--topology=v5e:2x2"]
        done = subprocess.run(
            [sys.executable, *plan], cwd=root, env=environment, capture_output=True, text=True, timeout=100
        )
        holder.communicate(b"\n")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "another process holds libtpu's lock" in done.stderr
