"""The step benchmark at its full size, on one accelerator.

Each gated network and its plain counterpart get a process of their own, with PyTorch's, where all four alternate: so
they have the whole memory of the device, and one that does not fit stops no other.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from scripts import machine, step_tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLAIN = ("resnet50", "resnext50_32x4d", "regnety_016", "convnext_tiny")
ASK = "import jax; print(jax.devices()[0].platform)"  # in a process that ends: this one must hold no memory there


def run(*, batch: int, image_size: int, seconds: float, repeats: int, peer: bool) -> int:
    """Prints Markdown tables, with PyTorch's numbers where the accelerator is a GPU.

    Args:
      batch: examples per step.
      image_size: side of the images, in pixels.
      seconds, repeats: see `step_benchmark.Effort`.
      peer: False = without PyTorch.

    Returns:
      How many pairs failed; each has said why.

    Raises:
      ValueError: there is no accelerator, or its driver fails.
    """
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    platform = asked.stdout.strip()
    if platform in ("", "cpu"):
        raise ValueError(
            f"accelerator: got {'only CPUs' if platform else 'no device'} from JAX, expected a GPU or TPU. Is one "
            f'there, and was its form of JAX installed, by pip install -e ".[gpu]" or ".[tpu]"?'
        )
    peer = peer and platform == "gpu"
    results, failed = [], 0
    for plain in PLAIN:
        result = _pair(plain, batch=batch, image_size=image_size, seconds=seconds, repeats=repeats, peer=peer)
        if result is None:
            failed += 1
            machine.say(f"{plain} and skip_{plain} have no numbers: see above")
        else:
            results.append(result)
    if results:
        step_tables.print_result(_join(results), "markdown")
    return failed


def _pair(
    plain: str, *, batch: int, image_size: int, seconds: float, repeats: int, peer: bool
) -> dict[str, Any] | None:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "step", f"--models={plain},skip_{plain}"]
    command += [f"--batch={batch}", f"--image_size={image_size}", "--dtype=bfloat16", "--modes=train,eval,host"]
    command += [f"--seconds={seconds}", f"--repeats={repeats}", "--format=json", *(["--peer=torch"] if peer else [])]
    # JAX would take most of the memory at once, and leave none to PyTorch.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if peer else None
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _join(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of them all."""
    rows = {key: [row for result in results for row in result[key]] for key in ("steps", "gate_tax", "peer", "host")}
    for key in ("steps", "gate_tax", "peer"):
        rows[key].sort(key=lambda row: row["mode"] != "train")
    peaks = [result["device_peak_memory"] or 0 for result in results]
    return {**results[0], **rows, "device_peak_memory": max(peaks) or None}
