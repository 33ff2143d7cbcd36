"""Sets up other libraries before their first use: they stay quiet, and leave the accelerators to JAX."""

import hashlib
import io
import logging
import os
import platform
import signal
import sys
import threading
from typing import Any

from absl import logging as absl_logging

from skipnet_jax.errors import UserError

_AGAIN_SECONDS = 0.1  # until a callback that Ctrl-C has interrupted is over
_CACHE_BYTES = 2 * 2**30  # dozens of networks: the programs that train skip_resnet50 take some 20 MB


def print_every_letter() -> None:
    """Escapes letters that the encoding of standard output lacks, where Python would end the program instead.

    Names of folders, images and classes have letters of any kind, and locales such as Latin-1 few.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does anyway


def keep_interruptions() -> None:
    """Repeats a Ctrl-C that Python would drop.

    Python's garbage collector calls JAX back. If Ctrl-C comes meanwhile, nothing can raise KeyboardInterrupt there:
    Python would report that it ignores the exception, and the program would go on.
    """
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            report(unraisable)
        elif threading.current_thread() is threading.main_thread():
            again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
            again.daemon = True
            again.start()

    sys.unraisablehook = report_others


def quieten_orbax() -> None:
    """Silences Orbax and TFDS, which report every move and print pages about each error before they raise it."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # otherwise a full disk gives one message per array
    _quieten_abandoned_reads()


def quieten_tensorflow(level: int) -> None:
    """Silences TensorFlow; call it before TensorFlow is imported.

    Args:
      level: 2 = show errors only, 3 = show nothing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(level))
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN prints a notice that the level does not hide


def import_tensorflow() -> None:
    """Imports TensorFlow without Keras, and keeps it off the accelerators, since it only reads data here.

    TensorFlow imports Keras, and with it Matplotlib and scikit-learn, to register optimisers that nothing here uses.
    That takes a third of its start. Told to use Keras 2, TensorFlow skips this step if Keras 2 is not installed.
    `tf.keras` stays usable: TensorFlow imports Keras on first use.
    """
    variable = "TF_USE_LEGACY_KERAS"
    given = os.environ.get(variable)
    os.environ.setdefault(variable, "1")
    try:
        import tensorflow as tf
    finally:
        if given is None:
            del os.environ[variable]
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def cache_folder() -> str:
    """This project's folder in the user's cache; it may not exist yet."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(os.path.expanduser(caches), "skipnet_jax")


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk for this user's next start. Call it before JAX is imported.

    JAX removes the least recently used programs, and locks the folder meanwhile. Environment variables for JAX's cache
    take precedence.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = os.path.join(cache_folder(), f"compiled_{_processor()}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return  # no home, or a full or read-only one
    if not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_CACHE_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _processor() -> str:
    """Names this machine's kind of processor: machines may share a home, and a program for another kind may crash."""
    try:
        with open("/proc/cpuinfo") as file:
            features = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        features = platform.processor()
    return f"{platform.machine()}_{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def require_devices() -> None:
    """Opens JAX's devices, and prints one line for each warning that JAX would print pages about.

    On a machine without a TPU, libtpu is not even asked: it would complain that it found none.

    Raises:
      UserError: a platform that the user wants is not there.
    """
    import jax
    from jax._src import cloud_tpu_init, xla_bridge  # there is no public way to leave a platform out

    factories = xla_bridge._backend_factories
    tpu = None if cloud_tpu_init.running_in_cloud_tpu_vm else factories.pop("tpu", None)
    reports = _Reports()
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    logger.addHandler(reports)
    logger.setLevel(logging.WARNING)  # whatever the levels of its parents
    logger.propagate = False
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a GPU is there
        if "coordination" in str(error).lower():
            raise  # another host is gone
        why = "; ".join([*reports.lines, *str(error).splitlines()[:1]]) or "JAX finds no such device"
        raise UserError(
            "JAX_PLATFORMS" if "JAX_PLATFORMS" in os.environ else "devices",
            f"{os.environ.get('JAX_PLATFORMS', 'none')!r} ({why})",
            "devices that are in this machine and not in use",
            "Install what JAX needs for them, or unset JAX_PLATFORMS to let JAX choose.",
        ) from error
    finally:
        if tpu is not None:
            factories["tpu"] = tpu  # Pallas wants to know the platform
        logger.removeHandler(reports)
        logger.setLevel(level)
        logger.propagate = True
    for line in reports.lines:
        print(f"WARNING: {line}", file=sys.stderr, flush=True)


class _Reports(logging.Handler):
    """Keeps warnings and errors, each as one line with its cause."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        self.lines.append(f"{text}: {record.exc_info[1]}" if record.exc_info else text)


def _quieten_abandoned_reads() -> None:
    """Suppresses Python's report for each read that Orbax abandons.

    When one array of a damaged checkpoint cannot be read, Orbax drops the reads of all others. Python would print
    thousands of lines about them, and nobody would see our one line.
    """
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            report(unraisable)

    sys.unraisablehook = report_others
