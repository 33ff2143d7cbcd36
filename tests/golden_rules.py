"""The networks' golden files, and the rules by which weights and images follow from names and seeds.

`tests/golden/NAME-HxW.json` and `.npz` were measured by running the published PyTorch implementation in float64.
They hold no weights: each follows from its name, shape and kind, all in torch's layout.
"""

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "golden"
NETWORKS = sorted(path.stem for path in FOLDER.glob("*-[0-9]*x[0-9]*.npz"))


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def weight(name: str, shape: Sequence[int], kind: str) -> np.ndarray:
    """The weight that follows from its name, in torch's layout and in float32."""
    g = generator(zlib.crc32(name.encode()))
    match kind:
        case "kernel":
            value = g.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        case "bias":
            value = g.standard_normal(shape) * 0.3
        case "norm_scale":
            value = g.uniform(0.7, 1.2, shape)
        case "norm_bias" | "running_mean":
            value = g.standard_normal(shape) * 0.1
        case "running_var":
            value = g.uniform(0.5, 1.5, shape)
        case "layer_scale":
            value = g.uniform(0.1, 0.5, shape)
        case "position_bias" | "static_logits":
            value = g.standard_normal(shape) * 0.5
        case _:
            raise ValueError(f"golden weight {name}: got kind {kind!r}, which has no rule")
    return value.astype(np.float32)


def images(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    """Images [b, h, w, 3] in float32, each with a colour of its own."""
    g = generator(seed)
    x = g.standard_normal((batch, 3, height, width))
    x = x + 2 * g.standard_normal((batch, 3, 1, 1))
    return x.astype(np.float32).transpose(0, 2, 3, 1)


@dataclasses.dataclass(frozen=True, repr=False)
class GoldenNetwork:
    """One network's golden file.

    Args:
      record: what the json file holds.
      logits, train_logits: [b, num_classes], float64.
    """

    record: dict[str, Any]
    logits: np.ndarray
    train_logits: np.ndarray

    @classmethod
    def load(cls, stem: str) -> "GoldenNetwork":
        record = json.loads((FOLDER / f"{stem}.json").read_text())
        arrays = np.load(FOLDER / f"{stem}.npz")
        return cls(record, arrays["logits"], arrays["train_logits"])

    @functools.cached_property
    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights under the original's names."""
        return {entry["name"]: weight(entry["name"], entry["shape"], entry["kind"]) for entry in self.record["state"]}

    @functools.cached_property
    def images(self) -> np.ndarray:
        return images(self.record["input_seed"], self.record["batch"], *self.record["image_size"])
