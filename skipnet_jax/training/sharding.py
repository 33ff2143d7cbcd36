"""Where arrays live: the mesh has one axis; the batch is split over it, and everything else is on every device.

The same code serves a CPU, a GPU host and a TPU pod.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from skipnet_jax.errors import UserError

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with one axis, "data".

    JAX orders devices by host, so each host feeds consecutive rows of the batch.

    Args:
      devices: None = all devices of all hosts.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def platform(mesh: Mesh) -> str:
    """Returns JAX's name for the kind of device: "cpu", "gpu" or "tpu"; or "tpu_v6e", which has its own operations."""
    device = mesh.devices.flat[0]
    return "tpu_v6e" if device.device_kind in ("TPU v6 lite", "TPU v6e") else device.platform


def to_global(batch: dict[str, Shaped[np.ndarray, "local ..."]], mesh: Mesh) -> dict[str, Shaped[Array, "b ..."]]:
    """Joins every host's rows of a batch into arrays that are split over the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts the arrays of a tree on every device; they must be equal on every host."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Checks, before anything is compiled, that the training batch can be split evenly over the devices.

    Raises:
      UserError: it cannot.
    """
    devices = mesh.size
    if batch_size % devices:
        below = batch_size // devices * devices
        sizes = [size for size in (below, below + devices) if size]
        raise UserError(
            "batch_size",
            f"{batch_size}",
            f"a multiple of the number of devices ({devices})",
            f"Try {' or '.join(f'`batch_size`={size}' for size in sizes)}.",
        )
