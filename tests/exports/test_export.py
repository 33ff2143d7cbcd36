import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import evaluate, specs, train
from skipnet_jax.data import sources
from skipnet_jax.evaluation import predictor
from skipnet_jax.evaluation.preprocessing import Preprocessing
from skipnet_jax.exports import artifacts, export
from skipnet_jax.interop import torch_weights
from skipnet_jax.models import create_model
from skipnet_jax.runs import checkpoint, transfer, weights, workdir
from skipnet_jax.training import sharding, steps
from tests.exports.small_networks import add_small_networks, make_variables, write_weights

FORMATS = ["orbax", "stablehlo", "savedmodel", "onnx", "safetensors"]

SPEC = specs.TrainSpec(
    model=specs.ModelSpec(name="skip_tiny", num_classes=10),
    data=specs.DataSpec(name="digits", image_size=8, pad_crop=1, flip=False),
    mixing=specs.MixingSpec(),
    optim=specs.OptimSpec(lr=0.05, warmup_epochs=0),
    batch_size=256,
    epochs=1,
    ema_decay=0.5,
)


@pytest.fixture(scope="module", autouse=True)
def networks():
    with pytest.MonkeyPatch.context() as patch:
        add_small_networks(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a moving average."""
    path = tmp_path_factory.mktemp("export") / "run"
    train.train_and_evaluate(SPEC, path)
    return path


@pytest.fixture(scope="module")
def exported(run):
    """Folder of each format's export, made when first asked for."""
    made = {}

    def get(format):
        if format not in made:
            made[format] = export.export_workdir(run, format)
        return run / "export" / format

    return get


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("converted") / "weights", "tiny")


@pytest.fixture(scope="module")
def expected(run):
    """The network's own logits."""
    return predictor.load_workdir(run).logits(digits(5))


def digits(count):
    return sources.load(SPEC.data, "test").images[:count]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_computes_what_the_moving_average_does_at_any_batch_size(expected, exported, format):
    artifact = artifacts.load_artifact(exported(format))
    for batch_size in (1, 5):
        logits = artifact.logits(digits(batch_size))
        assert logits.dtype == np.float32 and logits.shape == (batch_size, 10)
        np.testing.assert_allclose(logits, expected[:batch_size], rtol=0, atol=2e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_preprocessing_travels_along(exported, format):
    made = Preprocessing.from_json((exported(format) / "preprocessing.json").read_text())
    source = sources.load(SPEC.data, "test")
    assert (made.model, made.image_size) == ("skip_tiny", 8)
    assert (made.mean, made.std, made.class_names) == (
        source.statistics.mean,
        source.statistics.std,
        source.class_names,
    )
    assert artifacts.load_artifact(exported(format)).preprocessing == made


@pytest.mark.parametrize("format", FORMATS)
def test_the_record_says_what_it_is(run, exported, format):
    record = json.loads((exported(format) / "export.json").read_text())
    step = max(int(path.name) for path in (run / "checkpoints").iterdir())
    assert (record["format"], record["step"], record["weights"]) == (format, step, "moving average")
    assert record["checkpoint"] == str(run / "checkpoints" / str(step))
    assert record["network"]["name"] == "skip_tiny" and record["network"]["num_classes"] == 10
    assert record["input"]["shape"] == ["b", 8, 8, 3] and record["output"]["shape"] == ["b", 10]
    assert record["compared_on"] == "5 test images of digits"
    assert 0 <= record["largest_difference"] <= record["tolerance"] <= 1e-4 * max(1, record["largest_logit"])


def test_stablehlo_is_for_cpu_cuda_and_tpu_and_any_batch(exported):
    from jax import export as jax_export

    program = jax_export.deserialize(bytearray((exported("stablehlo") / "network.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    [images] = program.in_avals
    assert str(images.shape) == "(b, 8, 8, 3)" and images.dtype == np.float32


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


def test_safetensors_has_the_names_of_the_original(run, exported):
    import safetensors.numpy

    state_dict = safetensors.numpy.load_file(exported("safetensors") / "network.safetensors")
    variables = torch_weights.from_state_dict("skip_tiny", state_dict, num_classes=10)
    jax.tree.map(np.testing.assert_array_equal, variables, predictor.load_workdir(run).variables)
    assert "blocks.0.junction.op.conv1.weight" in state_dict


def test_an_orbax_export_holds_the_average_alone_and_is_a_workdir(run, exported):
    folder, expected = exported("orbax"), predictor.load_workdir(run).variables
    with checkpoint.open_manager(folder / "checkpoints", read_only=True) as manager:
        step = checkpoint.find(manager, "best")
        stored = checkpoint.stored_shapes(manager, step, sharding.replicated(sharding.make_mesh()))
    assert sorted(stored) == ["batch_stats", "params", "step"]
    read = weights.load(folder, averaged=False)
    name, variables = read.spec.model.name, read.variables
    assert name == "skip_tiny"
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    last = weights.load(run, averaged=False).variables  # the parameters beside the average, which are others
    kernels = [of["params"]["classifier"]["kernel"] for of in (last, expected)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_an_orbax_export_is_evaluated_as_the_run_is(run, exported):
    [of_run] = evaluate.evaluate_workdir(run)
    [of_export] = evaluate.evaluate_workdir(exported("orbax"))
    assert of_export["accuracy"] == of_run["average_accuracy"]
    assert of_export["step"] == of_run["step"]


def test_an_orbax_export_can_be_started_from(run, exported):
    fresh = create_model("skip_tiny", num_classes=10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    state = steps.TrainState(step=0, opt_state={}, average={}, **fresh)
    started, told = transfer.start_from(state, str(exported("orbax")), tuple("0123456789"), sharding.make_mesh())
    assert told.fresh == () and not told.averaged
    jax.tree.map(np.testing.assert_array_equal, started.variables, predictor.load_workdir(run).variables)


@pytest.mark.parametrize("format", ["orbax", "stablehlo", "safetensors"])
def test_converted_weights_are_exported_too(converted, tmp_path, format, capsys):
    record = export.export_workdir(converted, format, tmp_path / "out")
    assert record["compared_on"].startswith("5 images of noise, since the weights were trained elsewhere")
    assert record["weights"] == "parameters" and record["step"] == 0
    artifact = artifacts.load_artifact(tmp_path / "out")
    assert artifact.preprocessing.class_names == tuple("0123456789")
    assert str(tmp_path / "out") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip_tinyregnet", "skip_tinyconvnext", "skip_tinyswin"])
def test_networks_of_other_families_are_exported(tmp_path, name):
    """Each export compares itself; ONNX has tests of its own."""
    write_weights(tmp_path / "weights", name)
    for format in ("stablehlo", "savedmodel", "safetensors"):
        record = export.export_workdir(tmp_path / "weights", format, tmp_path / "out")
        assert record["largest_difference"] < 1e-5


def test_without_the_run_s_images_noise_is_compared_and_said(run, tmp_path, monkeypatch):
    spec = workdir.read_spec(run)
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, name="folder", dir=str(tmp_path / "gone")))
    monkeypatch.setattr(workdir, "read_spec", lambda path: spec)
    record = export.export_workdir(run, "stablehlo", tmp_path / "out")
    assert record["compared_on"].startswith("5 images of noise, since the run's images cannot be had")


def test_what_is_printed_says_where_and_how_far_off(converted, tmp_path, capsys):
    export.export_workdir(converted, "orbax", tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.startswith("tiny at step 0 (parameters) as orbax, ")
    assert re.search(
        r"largest difference to the network \d\.\de[-+]\d\d in logits up to 1\.\d+ \(2e-04 allowed\)", printed
    )
    assert printed.endswith(f"written to {tmp_path / 'out'}\n")


def test_an_export_that_computes_something_else_is_not_left_behind(converted, tmp_path, monkeypatch):
    def write_wrong(source, network, folder):
        wrong = jax.tree.map(lambda array: array * np.float32(1.1), network.variables)
        export._write_stablehlo(source, dataclasses.replace(network, variables=wrong), folder)

    monkeypatch.setitem(export._WRITERS, "stablehlo", write_wrong)
    with pytest.raises(ValueError, match=r"got a stablehlo export whose logits differ by .* expected at most"):
        export.export_workdir(converted, "stablehlo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_not_finite_is_refused(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.Artifact, "logits", lambda self, images: np.full((len(images), 10), np.nan))
    with pytest.raises(ValueError, match="logits differ by nan"):
        export.export_workdir(converted, "orbax", tmp_path / "out")


def test_an_error_keeps_an_earlier_export(converted, tmp_path, monkeypatch):
    export.export_workdir(converted, "orbax", tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_text()

    def fail(source, network, folder):
        (folder / "half").write_text("a half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(export._WRITERS, "orbax", fail)
    with pytest.raises(ValueError, match=r"--out: got .* which cannot be written \(No space left on device\)"):
        export.export_workdir(converted, "orbax", tmp_path / "out")
    assert (tmp_path / "out" / "export.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_earlier_export_is_replaced_and_anything_else_refused(converted, tmp_path):
    export.export_workdir(converted, "orbax", tmp_path / "out")
    (tmp_path / "out" / "stray").write_text("")
    (tmp_path / ".out.new").mkdir()  # of an export that was killed
    export.export_workdir(converted, "orbax", tmp_path / "out")
    assert not (tmp_path / "out" / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(ValueError, match="which holds something else, expected a new folder or an earlier export"):
            export.export_workdir(converted, "orbax", taken)


def test_exports_are_local(converted):
    with pytest.raises(ValueError, match="--out: got gs://bucket/out, expected a local folder"):
        export.export_workdir(converted, "orbax", "gs://bucket/out")


def test_an_unknown_format_is_told(converted):
    with pytest.raises(ValueError, match="--format: got 'tflite', expected one of orbax, stablehlo, savedmodel, onnx"):
        export.export_workdir(converted, "tflite")


@pytest.mark.parametrize(("format", "library"), [("onnx", "onnxruntime"), ("safetensors", "safetensors")])
def test_a_missing_library_is_told_before_anything_is_read(tmp_path, monkeypatch, format, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ValueError, match=rf'--format: got {format}, expected {library} .* pip install -e "\.\[export\]"'
    ):
        export.export_workdir(tmp_path / "no run", format)


def test_a_run_in_half_precision_is_exported_in_float32(tmp_path):
    """Parameters are float32 in any case; in bfloat16 the logits would be off by more than is allowed."""
    model = dataclasses.replace(SPEC.model, name="tiny", dtype="bfloat16")
    spec = dataclasses.replace(SPEC, ema_decay=0.0, model=model)
    workdir.open_for_training(tmp_path / "run", spec)
    state = {"step": jnp.asarray(3), **make_variables("tiny", 10)}
    with checkpoint.open_manager(tmp_path / "run" / "checkpoints") as manager:
        checkpoint.save(manager, 3, state, {"accuracy": 0.5})
    for format in ("orbax", "onnx"):
        record = export.export_workdir(tmp_path / "run", format)
        assert record["largest_difference"] < 1e-5 * record["largest_logit"]
        assert record["network"]["dtype"] == "float32"
    assert workdir.read_spec(tmp_path / "run" / "export" / "orbax").model.dtype == "bfloat16"


def test_every_format_can_be_written_and_read():
    assert list(export._WRITERS) == list(artifacts._READERS) == list(artifacts.NEEDS) == FORMATS


def test_importing_it_needs_no_extra():
    hide = "import sys; sys.modules.update({n: None for n in ('onnx', 'onnxruntime', 'safetensors', 'tensorflow')})"
    command = [sys.executable, "-c", f"{hide}; import skipnet_jax.exports.export"]
    assert subprocess.run(command, cwd=pathlib.Path(__file__).parents[2]).returncode == 0
