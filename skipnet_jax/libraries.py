"""What other libraries are told before they are used: to keep off the screen, and off the accelerators."""

import logging
import os
import sys
from typing import Any

from absl import logging as absl_logging


def quieten_orbax() -> None:
    """Keeps Orbax and TFDS off the screen, which tell every move, and pages of what they then raise."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of a full disk, once per array
    _quieten_broken_readings()


def quieten_tensorflow(level: int) -> None:
    """Keeps TensorFlow off the screen; before it is imported.

    Args:
      level: 2 = only errors are told; 3 = nothing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(level))
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # with it a notice is printed that the level does not hide


def hide_accelerators() -> None:
    """Keeps TensorFlow, which only reads data here, off the accelerators."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _quieten_broken_readings() -> None:
    """Keeps thousands of lines off the screen, among which nobody would see ours: those of a damaged checkpoint.

    When the first array cannot be read, Orbax drops the readings of the others, and Python tells each one's error.
    """
    otherwise = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            otherwise(unraisable)

    sys.unraisablehook = tell
