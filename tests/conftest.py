"""What every test runs under: eight virtual CPU devices, no silent broadcasting, a quiet TensorFlow."""

import os

# All of these are read once, when the library is imported or first used.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# The command would keep its compiled programs in the user's home.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "..", ".cache", "jax"))

import pathlib
import signal
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.warm_python import warm_python  # noqa: F401 (a fixture; a session makes it once)

# The modules that take minutes.
LONGEST = ("docs", "strangers", "trajectories", "golden", "hosts", "kills")
MEMORY_LIMIT = 2 * 2**30  # bytes; on a machine of 16 GB three processes leave room for those that tests start

# [b, c] + [c] is often a forgotten axis; where it is meant, write the axis.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The programs that tests start have one device, for which they compile in a fifth of the time.
jax.config.update("jax_num_cpu_devices", 8)


# A script's background jobs ignore Ctrl-C, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests marked slow, unless --full or a single test's name asks for them.

    The longest modules come first, then the others with slow tests. The last ones are then short, and all processes
    finish together.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    modules = {item.path for item in slow}
    items.sort(key=lambda item: (item.path.stem.removeprefix("test_") not in LONGEST, item.path not in modules))
    if config.getoption("full") or any("::" in argument for argument in config.args):
        return
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """After a module, drops JAX's compiled programs once they have filled this process's share of the memory."""
    yield
    status = pathlib.Path("/proc/self/statm")  # Linux only
    if status.exists() and int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MEMORY_LIMIT:
        jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Computes in float64 where asked to, for as long as the test runs."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_device(monkeypatch) -> None:
    """Runs in this process use one device: a network of the project compiles in a fifth of the time."""
    from skipnet_jax.training import sharding

    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: make_mesh(devices or jax.devices()[:1]))


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of measured numbers to compare with."""
    return pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a run of `tiny_runs.TinyNet` with a moving average; tests that write copy it."""
    from skipnet_jax import train
    from tests import tiny_runs

    path = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_network(patch, tiny_runs.TinyNet())
        train.train_and_evaluate(tiny_runs.make_spec(ema_decay=0.9), path)
    return path


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory) -> Iterator[None]:
    """Runs of a module compile the same few steps; on disk the first one's serve all."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
