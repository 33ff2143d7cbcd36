"""Plans of a tiny network on this machine's devices, and on others where their compilers are installed."""

import dataclasses
import json
import math
import os
import re

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from skipnet_jax import errors, plan, train
from skipnet_jax.analysis import input_records, topologies
from skipnet_jax.data import sizes, sources
from skipnet_jax.models import complexity
from skipnet_jax.training import run_steps, sharding
from tests import command_line
from tests.compilers import needs_gpu_compiler, needs_libtpu
from tests.tiny_runs import STEPS_PER_EPOCH, TinyNet, make_spec, use_network

KEYS = {
    *("topology", "chips", "device_kind", "fits", "memory", "flops", "hbm_bytes", "estimated_cycles", "step_seconds"),
    *("images_per_second", "collectives", "host_images_per_second", "compile_seconds", "quick"),
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    use_network(monkeypatch, TinyNet())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def planned(capsys, spec, topology, **options):
    fits = plan.plan_run(spec, [topology], output_format="json", **options)
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] == fits
    return told


def plan_here(spec, topology, chips=None, *, quick=False):
    """In this process, which knows of the tiny network."""
    made = plan.plan_topology(spec, topology, chips, images=sizes.count_images(spec.data), quick=quick)
    return plan.as_json(made, [])


def test_json_has_every_number_and_the_memory_adds_up(tiny, capsys, compile_once):
    spec = make_spec(ema_decay=0.9)
    told = planned(capsys, spec, "cpu")
    assert told.keys() >= KEYS
    assert (told["topology"], told["chips"], told["fits"], told["batch_size"]) == ("cpu", 8, True, 256)
    assert not told["quick"]
    memory = told["memory"]
    params = 3 * 3 * 3 * 8 + 8 + 2 * 8 + 4 * 4 * 8 * 10 + 10
    assert memory["parameters"] - 4 * params in (0, 4)  # and the step's number
    assert memory["average"] == 4 * params + memory["statistics"] and memory["statistics"] == 4 * 2 * 8
    assert memory["inputs"] == 3 * (256 // 8) * (8 * 8 * 3 + 4)  # of a device, two batches ahead
    kinds = ("parameters", "optimiser", "statistics", "average", "inputs", "activations", "program")
    assert memory["total"] == sum(memory[kind] for kind in kinds) and memory["activations"] > 0
    assert told["flops"] > 2 * 3 * 256 / 8 * (4 * 4 * 8 * 27) and told["hbm_bytes"] > 0
    reduced = told["collectives"]["all-reduce"]
    assert reduced["bytes"] >= 4 * params and reduced["sent"] == pytest.approx(2 * 7 / 8 * reduced["bytes"])
    assert (
        told["estimated_cycles"] is told["step_seconds"] is told["images_per_second"] is None
    )  # a CPU's peak is unknown
    assert len(told["places"]) == 10


def test_the_parts_of_a_batch_have_the_operations_of_the_whole(tiny, capsys, compile_once):
    """XLA counts the body of a loop once, however often it runs."""
    parts = planned(capsys, make_spec(accumulate_steps=2), "cpu", chips=1)
    forward = complexity.count("skip_resnet20", image_size=8, num_classes=10).flops
    assert parts["flops"] == 3 * 2 * forward * 256


def without_sources(program):
    """Without names of files and lines, which differ by the caller."""
    tables = r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d+ .*\n)*"
    text = re.sub(tables, "", program, flags=re.MULTILINE)
    return re.sub(r', metadata=\{[^}]*\}|fingerprint_before_lhs="\w*"', "", text)


@pytest.fixture
def compile_anew():
    """A program that the cache on disk has kept from elsewhere may have other names in it."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is in use
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def test_the_programs_are_the_trainers_own(tiny, tmp_path, compile_anew):
    spec = make_spec()
    plan.plan_run(spec, ["cpu"], out=str(tmp_path / "out"))
    mesh, splits = sharding.make_mesh(), [sources.load(spec.data, split) for split in ("train", "test")]
    state, train_step, eval_step = train._compile(spec, *splits, STEPS_PER_EPOCH, mesh)
    batches = run_steps.abstract_train_batch(spec), run_steps.abstract_eval_batch(spec, mesh)
    for file, lowered in (
        ("train.hlo", train_step.lower(state, batches[0])),
        ("eval.hlo", eval_step.lower(state.variables, batches[1])),
    ):
        program = (tmp_path / "out" / file).read_text()
        assert program.startswith("HloModule jit_") and len(program) > 1000
        same = without_sources(program) == without_sources(lowered.compile().as_text())
        assert same, file  # pytest would compare the lines for minutes


def test_where_it_does_not_fit_the_batch_that_does_is_found_by_compiling(tiny, capsys, compile_once):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    spec = make_spec(model=dataclasses.replace(make_spec().model, remat=True))
    size = math.isqrt(memory // 600)  # the weights and their gradients take half of the memory, the images more
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, image_size=size))
    told = planned(capsys, spec, "cpu", chips=8)
    assert not told["fits"] and told["memory"]["total"] > told["memory"]["available"]
    (found,) = told["what_fits"]
    assert found["changes"]["batch_size"] in (8, 16, 32, 64)
    assert found["changes"]["eval_batch_size"] in (8, 16, 32, 64, 128)
    assert max(found["memory"]["total"], found["memory"]["evaluation"]) <= found["memory"]["available"]


def test_text_is_one_table_for_all_topologies(tiny, capsys, compile_once):
    spec = make_spec(model=dataclasses.replace(make_spec().model, dtype="auto"))
    assert plan.plan_run(spec, ["cpu"], chips=2)
    told = capsys.readouterr()
    assert "skip_resnet20, 8 px, batch 256: 3 epochs of 1,437 images of digits" in told.out
    for row in (
        r"chips, hosts +2, 1",
        r"computes in +float32",
        r"fits +yes",
        r"  total, training +\d+\.\d{3}",
        r"  GFLOP +\d+\.\d",
    ):
        assert re.search(rf"^{row}$", told.out, re.MULTILINE), row
    assert "average" not in told.out  # there is none
    assert "python -m scripts.benchmarks input --paths=cifar" in told.out
    assert re.search(r"^cpu: compiling the training step of skip_resnet20, batch 256: \d+ s$", told.err, re.MULTILINE)
    input_records.record("cifar", 12345.6, cores=2)
    plan.plan_run(spec, ["cpu"], chips=2)
    assert "input delivered 12,346 images/s on 2 cores" in capsys.readouterr().out


def test_a_crash_on_one_topology_leaves_the_table_of_the_others(tiny, monkeypatch, capsys, compile_once):
    plan_apart = plan.plan_apart

    def crash_on_a_tpu(spec, topology, chips, **options):
        if topology == "v6e:2x4":
            raise errors.UserError("topology", "v6e:2x4, on which XLA's compiler crashed (SIGSEGV)", "another")
        return plan_apart(spec, topology, chips, **options)

    here = topologies.open_topology("cpu")
    monkeypatch.setattr(topologies, "open_topology", lambda name, chips: dataclasses.replace(here, name=name))
    monkeypatch.setattr(plan, "plan_apart", crash_on_a_tpu)
    with pytest.raises(errors.UserError, match="crashed"):
        plan.plan_run(make_spec(), ["cpu", "v6e:2x4"])
    assert re.search(r"^fits +yes$", capsys.readouterr().out, re.MULTILINE)


@pytest.fixture
def asked(tiny, monkeypatch, compile_once):
    """Whether each plan was asked for as a quick one. On the slice that is planned for, half of the batch just fits."""
    full = plan.plan_topology(make_spec(), "cpu", 8, images=sizes.count_images(make_spec().data))
    available, asked = full.memory["available"], []

    def fit_half_the_batch(spec, topology, chips, *, images, quick):
        asked.append(quick)
        fits = spec.batch_size < 256
        memory = full.memory | {"total": available - 2**28 if fits else 2 * available}
        places = full.places if fits else {}
        return dataclasses.replace(full, topology="v5e:2x4", quick=quick, fits=fits, memory=memory, places=places)

    monkeypatch.setattr(plan, "plan_apart", fit_half_the_batch)
    return asked


def test_the_search_for_what_fits_makes_no_machine_code(asked, capsys):
    assert not plan.plan_run(make_spec(), ["cpu"], chips=8)
    assert asked == [False, True, True]  # the run, rematerialised, and with half of its batch
    told = capsys.readouterr().out
    assert "on v5e:2x4. These changes fit, by a quick plan:\n  --config.batch_size=128: " in told
    assert told.count(" GiB, if the programs fit too\n") == 1
    assert "costliest places" not in told and "CPU" not in told


def test_a_quick_plan_says_where_the_programs_may_be_too_much(asked, capsys):
    assert plan.plan_run(dataclasses.replace(make_spec(), batch_size=128), ["cpu"], chips=8, quick=True)
    assert asked == [True]
    assert "Little memory is left on v5e:2x4: leave out --quick" in capsys.readouterr().out


def test_the_search_makes_whole_plans_where_there_are_no_quick_ones(asked, monkeypatch, capsys):
    whole = plan.plan_apart

    def refuse_to_be_quick(*arguments, quick, **options):
        if quick:
            raise errors.UserError("quick", "a version of XLA:TPU that does not dump", "one that does")
        return whole(*arguments, quick=quick, **options)

    monkeypatch.setattr(plan, "plan_apart", refuse_to_be_quick)
    assert not plan.plan_run(make_spec(), ["cpu"], chips=8)
    assert asked == [False, False, False]
    assert "on v5e:2x4. These changes fit, as compiled:\n  --config.batch_size=128: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "wanted", "words"),
    [
        ({}, [], "topology: got ''"),
        ({}, ["cpu", "cpu"], "several different ones"),
        ({"batch_size": 100}, ["cpu"], r"batch_size: got 100, expected a multiple of the number of devices \(8\)"),
        ({"batch_size": 2048}, ["cpu"], "at most the 1437 training images of digits"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(tiny, monkeypatch, changes, wanted, words):
    monkeypatch.setattr(run_steps, "abstract_state", None)
    with pytest.raises(errors.UserError, match=words):
        plan.plan_run(make_spec(**changes), wanted)


@pytest.mark.parametrize("changes", [{}, {"holdout": "0.1"}, {"classes": (1, 7)}])
def test_known_sizes_are_the_data_s_own(changes):
    spec = dataclasses.replace(make_spec().data, **changes)
    judge = sources.load_holdout(spec) or sources.load(spec, "test")
    assert sizes.count_images(spec) == (sources.load(spec, "train").num_examples, judge.num_examples)


def test_the_command_plans_and_needs_no_workdir(tmp_path):
    flags = ["--mode=plan", "--config=configs/digits.py", "--config.model.name=resnet20", "--topology=cpu"]
    done, missing, unknown = command_line.run_all(
        [[*flags, "--format=json", "--chips=1"], flags[:3], [*flags[:3], "--topology=v5e:7"]]
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.keys() >= KEYS and told["fits"] and told["memory"]["parameters"] > 4 * 270_000
    assert all(line.startswith("cpu: compiling the ") for line in done.stderr.splitlines())
    assert any("junction" in place or "norm" in place for place in told["places"])
    for mistake, words in ((missing, "--topology: got nothing"), (unknown, "--topology: got 'v5e:7', expected one of")):
        assert (mistake.returncode, mistake.stderr.count("\n")) == (2, 1) and words in mistake.stderr


@needs_libtpu
@pytest.mark.slow
def test_a_slice_of_tpus(tiny):
    spec = make_spec(model=dataclasses.replace(make_spec().model, dtype="auto"))
    told = {name: plan_here(spec, name) for name in ("v5e:2x2", "v5e:4x4")}
    small, large = told.values()
    assert (small["chips"], small["hosts"], large["chips"], large["hosts"]) == (4, 1, 16, 4)
    assert small["fits"] and large["fits"] and small["device_kind"] == "TPU v5 lite"
    assert small["dtype"] == "bfloat16"
    assert small["estimated_cycles"] > large["estimated_cycles"] > 1000  # a quarter of the images per chip
    sent = small["collectives"]["all-reduce"]["sent"]
    assert small["step_seconds"] == pytest.approx(small["estimated_cycles"] / 1.5e9 + sent / 200e9, rel=0.5)
    assert large["host_images_per_second"] == pytest.approx(large["images_per_second"] / 4)
    assert small["step_bounds"]["hbm"] < small["step_seconds"]
    assert jax.config.jax_enable_compilation_cache  # as before
    quick = plan_here(spec, "v5e:2x2", quick=True)
    assert quick["quick"] and quick["fits"] and quick["estimated_cycles"] is None
    assert quick["compile_seconds"] < small["compile_seconds"]
    assert quick["step_seconds"] == max(quick["step_bounds"].values())
    for number in ("hbm_bytes", "collectives"):
        assert quick[number] == small[number], number
    for kind in ("parameters", "optimiser", "statistics", "inputs"):
        assert quick["memory"][kind] == small["memory"][kind], kind
    assert quick["memory"]["program"] == 0 < quick["memory"]["activations"] <= small["memory"]["activations"]


@needs_gpu_compiler
@pytest.mark.slow
def test_gpus_without_a_gpu(tiny):
    told = plan_here(make_spec(), "gpu:h200", chips=4)
    assert told["fits"] and told["chips"] == 4 and "H200" in told["device_kind"]
    assert told["estimated_cycles"] is None and told["flops"] > 0 and told["hbm_bytes"] > 0
    assert told["collectives"]["all-reduce"]["count"] > 0
    assert told["step_seconds"] == max(filter(None, told["step_bounds"].values()))
