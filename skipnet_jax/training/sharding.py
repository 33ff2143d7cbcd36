"""Where arrays live: one mesh axis, the batch split over it, everything else on every device.

The same code serves one CPU, a GPU host and a pod; nothing below depends on the number of devices or hosts.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run: one axis, "data".

    Devices stay in JAX's order, which goes host by host, so that each host feeds neighbouring rows of the batch.

    Args:
      devices: None = all devices of all hosts.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def platform(mesh: Mesh) -> str:
    """What the devices are, as JAX names it: "cpu", "gpu", "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_global(batch: dict[str, Shaped[np.ndarray, "local ..."]], mesh: Mesh) -> dict[str, Shaped[Array, "b ..."]]:
    """Joins what each host has read into arrays over the whole mesh.

    Args:
      batch: this host's share of the batch; the first axis runs over examples.

    Returns:
      The same names; the first axis is that of all hosts together.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays that are equal on every host on every device.

    Args:
      tree: of arrays on this host.

    Returns:
      The same tree and numbers, replicated over the mesh.
    """
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def require_divisible(name: str, batch_size: int, mesh: Mesh) -> None:
    """Checks, before anything is compiled, that every device gets the same number of examples.

    Args:
      name: of the field that holds it, for the message: batch_size or eval_batch_size.
      batch_size: over all devices.

    Raises:
      ValueError: it does not divide by the number of devices.
    """
    devices = mesh.size
    if batch_size % devices:
        near = [size for size in (batch_size // devices * devices, -(-batch_size // devices) * devices) if size]
        raise ValueError(
            f"{name}: got {batch_size}, expected a multiple of the number of devices ({devices}). "
            f"Try {' or '.join(f'--config.{name}={size}' for size in near)}."
        )
