"""On programs that XLA compiles here, and on lines as XLA:TPU writes them."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.analysis import program_costs
from skipnet_jax.training import sharding, steps

TPU = pathlib.Path(__file__).with_name("tpu_step.hlo")  # written by hand


@pytest.fixture(scope="module")
def costs():
    return program_costs.read(TPU.read_text())


def test_cycles_are_added_by_place_and_loops_count_as_often_as_they_run(costs):
    assert costs.places["blocks/operation/norm2/batch_norm, backward"].cycles == 1500  # not the 999 inside the fusion
    assert costs.places["blocks/norm1"].cycles == 4 * 10
    assert costs.cycles == 1500 + 40 + 7  # of the branches, the costlier
    assert costs.unestimated == 1


def test_bytes_are_those_outside_the_chip_with_the_padding_of_their_tiles(costs):
    padded, vector = 104 * 128 * 2, 128 * 4
    assert costs.places["blocks/operation/norm2/batch_norm, backward"].bytes == 2 * padded + padded
    assert costs.places["blocks/norm1"].bytes == 4 * 2 * vector
    assert costs.arguments == {"batch": padded, "state.params": vector, "": vector // 128}


def test_the_common_memory_of_a_v4_is_on_the_chip_as_well(costs):
    text = TPU.read_text()
    assert "S(1)" in text and program_costs.read(text.replace("S(1)", "S(3)")) == costs


def test_collectives_count_by_kind_with_the_size_of_their_groups(costs):
    reduced, gathered = costs.collectives["all-reduce"], costs.collectives["all-gather"]
    assert (reduced.count, reduced.bytes, reduced.sent) == (1, 4096, 2 * 3 / 4 * 4096)
    assert (gathered.count, gathered.bytes, gathered.sent) == (1, 512, 7 / 8 * 512)


SLICE = """
HloModule jit_step, is_scheduled=true

%part (p.1: f32[64,128]) -> f32[8,128] {
  %p.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %slice.1 = f32[8,128]{1,0:T(8,128)S(1)} slice(%p.1), slice={[0:8], [0:128]}
}

ENTRY %main (param.0: f32[64,128]) -> f32[8,128] {
  %param.0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %slice-start.1 = ((f32[64,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) OPERATION
  ROOT %slice-done.1 = f32[8,128]{1,0:T(8,128)S(1)} async-done(%slice-start.1)
}
"""


@pytest.mark.parametrize(
    "operation", ["slice-start(%param.0), slice={[0:8], [0:128]}", "async-start(%param.0), calls=%part"]
)
def test_of_a_slice_only_the_piece_moves_however_xla_writes_it(operation):
    assert program_costs.read(SLICE.replace("OPERATION", operation)).bytes == 8 * 128 * 4


def test_an_asynchronous_computation_counts_what_it_does(costs):
    text = SLICE.replace("OPERATION", "async-start(%param.0), calls=%part").replace(" slice(", " negate(")
    assert program_costs.read(text).bytes == 64 * 128 * 4


FORWARD = "jit(train_step)/jvp(Network)/Network._run"
BACKWARD = "jit(train_step)/transpose(jvp(Network))/Network._run"


@pytest.mark.parametrize(
    ("op_name", "place"),
    [
        (f"{FORWARD}/stem/conv/conv_general_dilated", "stem/conv"),
        (f"{BACKWARD}/blocks_12/junction/jit(_gate)/mul", "blocks/junction/gate, backward"),
        (f"{FORWARD}/blocks_0/checkpoint/rematted_computation/operation/conv1/dot", "blocks/operation/conv1"),
        (f"{FORWARD}/reduce_sum", "network"),
        ("jit(train_step)/jit(_roll_static)/concatenate", "roll_static"),
        ("jit(train_step)/mul", "(outside the network)"),
        ("jit(eval_step)/Network/Network._run/classifier/dot_general", "classifier"),
        ("", "(unnamed)"),
    ],
)
def test_places_have_the_names_of_the_model(op_name, place):
    assert program_costs.place_of(op_name) == place


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_a_loop_of_xla_on_this_machine_counts_as_often_as_it_runs():
    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)

    def read(trips):
        text = compiled(lambda x: jax.lax.fori_loop(0, trips, lambda _, y: jnp.tanh(y @ x), x), x).as_text()
        return program_costs.read(text)

    once, *rest = (read(trips).bytes for trips in (10, 20, 30))
    assert rest[1] - rest[0] == rest[0] - once >= 10 * 2 * 32 * 32 * 4
    assert read(10).cycles is None


def test_a_sum_over_devices_of_this_machine_is_an_all_reduce_of_its_result():
    mesh = sharding.make_mesh()
    rows = jax.ShapeDtypeStruct((8 * 16, 100), jnp.float32)
    total = jax.jit(
        lambda rows: rows.sum(0), in_shardings=sharding.batch_sharding(mesh), out_shardings=sharding.replicated(mesh)
    )
    (traffic,) = program_costs.read(total.lower(rows).compile().as_text()).collectives.values()
    assert (traffic.count, traffic.bytes, traffic.sent) == (1, 400, 2 * 7 / 8 * 400)


def test_arguments_of_this_machine_s_programs_are_known_by_their_names():
    def step(state, batch):
        return state.params["w"] * batch["image"].sum() + state.opt_state

    state = steps.TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params={"w": jax.ShapeDtypeStruct((5, 3), jnp.float32)},
        batch_stats={},
        opt_state=jax.ShapeDtypeStruct((1, 3), jnp.bfloat16),
    )
    program = compiled(step, state, {"image": jax.ShapeDtypeStruct((7, 2), jnp.uint8)})
    assert program_costs.read(program.as_text()).arguments == {"state.params": 60, "state.opt_state": 6, "batch": 14}
