"""Checksums of the arrays and the records of a checkpoint, so that no flipped bit goes unnoticed.

Orbax's format has checksums for its own indexes only, not for the arrays. CRC-32 detects any damage of up to 32
neighbouring bits, and any other damage with a probability of 1 - 2^-32.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from skipnet_jax.runs import array_mismatch

CRC = "crc32"  # a record's field with the checksum of its other fields
ARRAYS = "arrays"  # the field with the checksums of arrays: path with slashes -> [type and shape, checksum]


def of_arrays(tree: Any) -> dict[str, tuple[str, int]]:
    """Copies a tree off the devices, and computes the checksum of each of its arrays.

    Returns:
      Path with slashes -> type and shape, as in float32[3, 2]; checksum.
    """
    shapes = array_mismatch.shapes(tree)
    values = [np.ascontiguousarray(array) for array in jax.device_get(jax.tree.leaves(tree))]
    sums = [zlib.crc32(value.reshape(-1).view(np.uint8).data) for value in values]
    return dict(zip(shapes, zip(shapes.values(), sums, strict=True), strict=True))


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a checksum to a record of JSON."""
    return {**record, CRC: _sum(record)}


def unseal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the checksum."""
    return {name: value for name, value in record.items() if name != CRC}


def is_intact(record: Mapping[str, Any]) -> bool:
    """Tells whether a record has a checksum, and the right one."""
    return record.get(CRC) == _sum(unseal(record))


def _sum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
