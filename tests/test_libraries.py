import gc
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

from skipnet_jax import libraries

ROOT = pathlib.Path(__file__).parents[1]


def test_only_abandoned_reads_are_silenced(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    libraries._quieten_abandoned_reads()
    dropped = RuntimeError("Event loop is closed"), Exception("Encountered error while reading array index: (0). See")
    for error in (*dropped, RuntimeError("another")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in told] == ["another"]


def test_ctrl_c_during_the_garbage_collection_comes_back(monkeypatch):
    """JAX has such a callback, and Python ignores what a callback raises."""

    def interrupted(phase, info):
        gc.callbacks.remove(interrupted)
        raise KeyboardInterrupt

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    libraries.keep_interruptions()
    gc.callbacks.append(interrupted)
    with pytest.raises(KeyboardInterrupt):
        gc.collect()
        time.sleep(10)
    assert not told


def test_a_plugin_that_fails_is_one_line_with_its_cause(tmp_path):
    """JAX prints the trace of each plugin's error, though another device serves."""
    (tmp_path / "jax_plugins" / "broken").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "broken" / "__init__.py").write_text(
        "def initialize():\n    raise OSError('no card')\n"
    )
    code = "from absl import logging; logging.set_verbosity(logging.FATAL)\n"
    code += "from skipnet_jax import libraries; libraries.require_devices()\n"
    code += "import jax.experimental.pallas"  # which registers its operations with all platforms
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = (
        "WARNING: Jax plugin configuration error: Exception when calling jax_plugins.broken.initialize(): no card\n"
    )
    assert done.stderr == expected


@pytest.mark.slow
def test_tensorflow_starts_without_keras_and_has_it_when_asked():
    code = "import sys; from skipnet_jax import libraries; libraries.import_tensorflow(); import tensorflow as tf\n"
    code += "print(sorted({'keras', 'matplotlib', 'sklearn', 'tensorflow'} & set(sys.modules)))\n"
    code += "print(tf.keras.__name__, tf.losses.MeanSquaredError.__name__)"
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    told = "['tensorflow']\nkeras._tf_keras.keras MeanSquaredError\n"
    assert (done.returncode, done.stdout) == (0, told), done.stderr


@pytest.fixture
def variables(monkeypatch):
    """The environment of a process without anything about JAX's cache."""
    for name in ("DIR", "MAX_SIZE"):
        monkeypatch.delenv(f"JAX_COMPILATION_CACHE_{name}", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return os.environ


def test_compiled_programs_are_kept_per_user_and_bounded(variables, tmp_path):
    variables["XDG_CACHE_HOME"] = str(tmp_path)
    libraries.keep_compiled_programs()
    folder = pathlib.Path(variables["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == tmp_path / "skipnet_jax"
    assert int(variables["JAX_COMPILATION_CACHE_MAX_SIZE"]) == 2 * 2**30


def test_a_cache_that_the_user_has_chosen_stays(variables, tmp_path):
    variables |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "mine"}
    libraries.keep_compiled_programs()
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "mine" and "JAX_COMPILATION_CACHE_MAX_SIZE" not in variables
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_a_cache_there_is_none(variables, tmp_path):
    (tmp_path / "file").touch()
    variables["XDG_CACHE_HOME"] = str(tmp_path / "file")
    libraries.keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in variables


@pytest.mark.slow
def test_the_command_keeps_programs_unless_a_flag_says_no(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_C", "JAX_P", "XLA_"))}
    small = ["--config=digits", "--config.model.name=resnet20", "--config.data.image_size=8", "--config.epochs=1"]
    small += ["--config.optim.warmup_epochs=0"]
    for cache in ("off", "on"):
        environment["XDG_CACHE_HOME"] = str(tmp_path / cache)
        command = [sys.executable, "-m", "skipnet_jax.main", *small, f"--workdir={tmp_path / f'run_{cache}'}"]
        command += [f"--compile_cache={cache}"]
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    kept = list((tmp_path / "on").glob("skipnet_jax/compiled_*/*-cache"))
    assert kept and not (tmp_path / "off" / "skipnet_jax").exists()
