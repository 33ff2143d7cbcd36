"""What other libraries must be told before they are used: stay quiet, and leave the accelerators to JAX."""

import logging
import os
import sys
from typing import Any

from absl import logging as absl_logging


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


def hide_accelerators() -> None:
    """Keeps TensorFlow, which only reads data here, off the accelerators."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


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
