import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.analysis import step_memory
from skipnet_jax.training import steps

NEEDS = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (1.50T) exceeds "
USED = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded hbm"


@pytest.mark.parametrize(("message", "total"), [(NEEDS, 1.5 * 2**40 + 60), (USED, 20.5 * 2**30)])
def test_what_a_refused_program_needs_is_read_from_xlas_message(message, total):
    state = steps.TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params={"w": jax.ShapeDtypeStruct((5,), jnp.float32)},
        batch_stats={"mean": jax.ShapeDtypeStruct((2,), jnp.float32)},
        opt_state=jax.ShapeDtypeStruct((5,), jnp.float32),
    )
    memory = step_memory.of_refused(state, {"image": jax.ShapeDtypeStruct((8, 1), jnp.uint8)}, message, devices=1)
    assert {kind: size for kind, size in memory.items() if kind != "activations"} == {
        "parameters": 4 + 20, "statistics": 8, "optimiser": 20, "average": 0, "inputs": 8, "program": 0,
    }  # fmt: skip
    assert sum(memory.values()) == total


def test_batches_wait_and_an_evaluation_keeps_the_optimiser():
    train = step_memory.NOTHING | {"parameters": 10, "optimiser": 20, "inputs": 1, "activations": 100, "program": 2}
    evaluation = step_memory.NOTHING | {"parameters": 10, "inputs": 5, "activations": 30, "program": 3}
    memory = step_memory.add_up(train, evaluation, 1000)
    assert memory["inputs"] == 3 and memory["program"] == 5
    assert memory["total"] == 10 + 20 + 3 + 100 + 5
    assert memory["evaluation"] == 10 + 20 + 3 * 5 + 30 + 5
    assert memory["available"] == 1000
