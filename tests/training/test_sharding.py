import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.errors import UserError
from skipnet_jax.training import sharding


def test_the_mesh_has_all_devices_in_order_by_default():
    assert sharding.make_mesh().devices.tolist() == jax.devices()
    assert sharding.make_mesh(jax.devices()[:2]).devices.tolist() == jax.devices()[:2]
    assert sharding.make_mesh().axis_names == ("data",)


def test_to_global_splits_the_batch_and_keeps_the_numbers():
    mesh = sharding.make_mesh()
    rows = 2 * mesh.size
    batch = {"image": np.arange(rows * 12, dtype=np.uint8).reshape(rows, 2, 2, 3), "label": np.arange(rows)}
    out = sharding.to_global(batch, mesh)
    for name in batch:
        np.testing.assert_array_equal(out[name], batch[name])
        assert out[name].sharding.is_equivalent_to(sharding.batch_sharding(mesh), batch[name].ndim)
        shards = out[name].addressable_shards
        assert [shard.data.shape[0] for shard in shards] == [2] * mesh.size
        np.testing.assert_array_equal(shards[-1].data, batch[name][-2:])


def test_replicate_puts_everything_on_every_device():
    mesh = sharding.make_mesh()
    tree = {"step": jnp.zeros((), jnp.int32), "params": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    out = sharding.replicate(tree, mesh)
    jax.tree.map(np.testing.assert_array_equal, out, tree)
    for leaf in jax.tree.leaves(out):
        assert leaf.is_fully_replicated and len(leaf.addressable_shards) == mesh.size
    assert out["step"].dtype == jnp.int32


def test_a_batch_that_cannot_be_split_evenly_is_refused_with_the_nearest_sizes():
    mesh = sharding.make_mesh(jax.devices()[:4])
    sharding.require_divisible(64, mesh)
    with pytest.raises(UserError, match=r"batch_size: got 66, .*\(4\)\. Try batch_size=64 or batch_size=68\.$"):
        sharding.require_divisible(66, mesh)
    with pytest.raises(UserError, match=r"Try batch_size=4\.$"):
        sharding.require_divisible(3, mesh)
