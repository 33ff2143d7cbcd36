import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import evaluate, specs
from skipnet_jax.data import sources
from skipnet_jax.errors import UserError
from skipnet_jax.evaluation import predictor
from skipnet_jax.exports import artifacts, export, formats
from skipnet_jax.interop import torch_weights
from skipnet_jax.runs import checkpoint, weights, workdir
from tests.exports.small_networks import add_small_networks, make_variables, write_weights

SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_tiny", num_classes=10, dtype="bfloat16", remat=True),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(),
    batch_size=256,
    epochs=1,
    ema_decay=0.5,
)
STEP = 3


@pytest.fixture(scope="module", autouse=True)
def networks():
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run with a moving average, in half precision."""
    path = workdir.open_for_training(tmp_path_factory.mktemp("export") / "run", SPEC)
    source = sources.load(SPEC.data, "test")
    workdir.require_same_data(path, class_names=source.class_names, training_images=1437, started=False)
    parameters, average = make_variables("skip_tiny", seed=1), make_variables("skip_tiny", seed=2)
    state = {"step": jnp.asarray(STEP), **parameters, "opt_state": {"m": jnp.ones(3)}, "average": average}
    with checkpoint.open_manager(path / workdir.CHECKPOINTS) as manager:
        checkpoint.save(manager, STEP, state, {"accuracy": 0.5})
    return path


@pytest.fixture(scope="module")
def exported(run):
    """Returns the folder with the export of a format, which is made when first asked for."""

    def get(format):
        if not (run / "export" / format).exists():
            export.export_workdir(run, format)
        return run / "export" / format

    return get


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("converted") / "weights", "tiny")


@pytest.fixture(scope="module")
def expected(run):
    """The logits of the moving average in float32, on five test images."""
    spec = dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, dtype="float32"))
    average = weights.Weights(spec, STEP, make_variables("skip_tiny", seed=2), True)
    return predictor.from_weights(run, average).logits(digits(5))


def digits(count):
    return sources.load(SPEC.data, "test").images[:count]


@pytest.mark.parametrize(
    "format", ["orbax", "stablehlo", pytest.param("savedmodel", marks=pytest.mark.slow), "onnx", "safetensors"]
)
def test_an_export_computes_what_the_average_does_and_says_what_it_is(run, expected, exported, format):
    artifact = artifacts.load_artifact(exported(format))
    for batch_size in (1, 5):
        logits = artifact.logits(digits(batch_size))
        assert logits.dtype == np.float32 and logits.shape == (batch_size, 10)
        np.testing.assert_allclose(logits, expected[:batch_size], rtol=0, atol=2e-5)
    source = sources.load(SPEC.data, "test")
    made = artifact.preprocessing
    assert (made.model, made.image_size) == ("skip_tiny", 8)
    assert (made.statistics, made.class_names) == (source.statistics, source.class_names)
    record = json.loads((exported(format) / "export.json").read_text())
    assert (record["format"], record["step"], record["weights"]) == (format, STEP, "moving average")
    assert record["checkpoint"] == str(run / "checkpoints" / str(STEP))
    network = record["network"]
    assert (network["name"], network["num_classes"], network["dtype"]) == ("skip_tiny", 10, "float32")
    assert record["input"]["shape"] == ["b", 8, 8, 3] and record["output"]["shape"] == ["b", 10]
    assert record["compared_on"] == "5 test images of digits"
    assert 0 <= record["largest_difference"] <= record["tolerance"] <= 1e-4 * max(1, record["largest_logit"])


def test_stablehlo_is_for_cpu_cuda_and_tpu_and_any_batch_size(exported):
    program = jax.export.deserialize(bytearray((exported("stablehlo") / "network.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    [images] = program.in_avals
    assert str(images.shape) == "(b, 8, 8, 3)" and images.dtype == np.float32


@pytest.mark.slow
def test_a_saved_model_runs_without_jax(exported):
    lines = [
        "import sys",
        "sys.modules.update(jax=None, skipnet_jax=None)",  # cannot be imported
        "import tensorflow as tf",
        f"model = tf.saved_model.load({str(exported('savedmodel'))!r})",
        "signature = model.signatures['serving_default']",
        "print([signature(images=tf.zeros([b, 8, 8, 3]))['logits'].shape.as_list() for b in (1, 3)])",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[1, 10], [3, 10]]"


def test_safetensors_has_the_names_of_the_original(exported):
    import safetensors.numpy

    state_dict = safetensors.numpy.load_file(exported("safetensors") / "network.safetensors")
    assert "blocks.0.junction.op.conv1.weight" in state_dict
    variables = torch_weights.from_state_dict("skip_tiny", state_dict, num_classes=10)
    jax.tree.map(np.testing.assert_array_equal, variables, make_variables("skip_tiny", seed=2))


def test_an_orbax_export_is_a_workdir_that_holds_the_average_alone(exported):
    [checkpoints] = (exported("orbax") / "checkpoints").iterdir()
    assert checkpoints.name == str(STEP)
    loaded = weights.load(exported("orbax"))
    assert (loaded.step, loaded.averaged, loaded.spec.ema_decay) == (STEP, False, 0)
    assert loaded.spec.model == SPEC.model
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, make_variables("skip_tiny", seed=2))
    with pytest.raises(UserError):
        weights.load(exported("orbax"), averaged=True)


@pytest.mark.slow
def test_an_orbax_export_is_evaluated_as_the_run_is(run, exported):
    [of_run] = evaluate.evaluate_workdir(run)
    [of_export] = evaluate.evaluate_workdir(exported("orbax"))
    assert (of_export["accuracy"], of_export["step"]) == (of_run["average_accuracy"], of_run["step"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "skip_tinyregnet", "skip_tinyconvnext", "skip_tinyswin"])
def test_networks_of_other_families_are_exported(tmp_path, name):
    """Each export compares itself; ONNX has tests of its own."""
    write_weights(tmp_path / "weights", name)
    for format in ("stablehlo", "savedmodel", "safetensors"):
        record = export.export_workdir(tmp_path / "weights", format, tmp_path / "out")
        assert record["largest_difference"] < 1e-5


def test_converted_weights_are_exported_too_and_compared_on_noise(converted, tmp_path, capsys):
    record = export.export_workdir(converted, "orbax", tmp_path / "out")
    assert record["compared_on"].startswith("5 images of noise, since the weights were trained elsewhere")
    assert record["weights"] == "parameters" and record["step"] == 0
    assert artifacts.load_artifact(tmp_path / "out").preprocessing.class_names == tuple("0123456789")
    printed = capsys.readouterr().out
    assert printed.startswith("tiny at step 0 (parameters) as orbax, ")
    assert re.search(r"largest difference from the network \d\.\de[-+]\d\d in logits up to 1\.\d+ \(2e-04 all", printed)
    assert printed.endswith(f"written to {tmp_path / 'out'}\n")


def test_noise_is_compared_if_the_run_s_images_are_gone(run, tmp_path, monkeypatch):
    data = dataclasses.replace(SPEC.data, name="folder", dir=str(tmp_path / "gone"))
    monkeypatch.setattr(workdir, "read_spec", lambda path: dataclasses.replace(SPEC, data=data))
    record = export.export_workdir(run, "safetensors", tmp_path / "out")
    assert record["compared_on"].startswith("5 images of noise, since the run's images are not available")


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_an_export_that_computes_something_else_is_not_left_behind(converted, tmp_path, monkeypatch, factor):
    def write_wrong(folder_of_run, trained, folder):
        wrong = jax.tree.map(lambda array: array * np.float32(factor), trained.variables)
        formats.FORMATS["safetensors"].write(folder_of_run, trained._replace(variables=wrong), folder)

    monkeypatch.setitem(
        formats.FORMATS, "wrong", dataclasses.replace(formats.FORMATS["safetensors"], write=write_wrong)
    )
    with pytest.raises(UserError, match=r"got a wrong export whose logits differ by .* expected at most"):
        export.export_workdir(converted, "wrong", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_takes_the_place_of_an_earlier_one_unless_it_fails(converted, tmp_path, monkeypatch):
    place = tmp_path / "out"
    place.mkdir()  # an empty folder is free too
    export.export_workdir(converted, "safetensors", place)
    (place / "stray").write_text("")
    (tmp_path / ".out.new").mkdir()  # left by an export that was killed

    def fail(folder_of_run, trained, folder):
        (folder / "half").write_text("a half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(formats.FORMATS, "orbax", dataclasses.replace(formats.FORMATS["orbax"], write=fail))
        with pytest.raises(UserError, match=r"out: got .* which cannot be written \(No space left on device\)"):
            export.export_workdir(converted, "orbax", place)
    assert (place / "stray").exists()
    export.export_workdir(converted, "safetensors", place)
    assert not (place / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_mistakes_are_reported_before_the_long_work(converted, tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("")
    for taken in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(
            UserError, match=r"out: got .* which holds something else, expected a new folder, or an ear"
        ):
            export.export_workdir(converted, "orbax", taken)
    with pytest.raises(UserError, match="out: got gs://bucket/out, expected a local folder"):
        export.export_workdir(converted, "orbax", "gs://bucket/out")
    with pytest.raises(UserError, match="format: got 'tflite', expected one of orbax, stablehlo, savedmodel, onnx"):
        export.export_workdir(converted, "tflite")
    for format, library in (("onnx", "onnxruntime"), ("safetensors", "safetensors")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(
            UserError, match=rf'format: got {format}, expected .*{library} .* install -e "\.\[export\]"'
        ):
            export.export_workdir(tmp_path / "no run", format)
