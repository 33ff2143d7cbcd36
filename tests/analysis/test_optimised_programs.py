"""Reads a compilation before it ends. A stand-in writes XLA's files; a slow test of plans runs XLA:TPU itself."""

import pathlib
import threading

import jax
import jax.numpy as jnp
import pytest
from jax.stages import Lowered

from skipnet_jax import errors
from skipnet_jax.analysis import optimised_programs

NAME = "module_0003.jit_train_step.cl_933746096"
REPORT = """Memory Space: vmem (color=1)
Total bytes: 117436928 (112.00MiB)
Memory Space: default (color=0)
Total bytes: 19405312 (18.51MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
"""


class Compilation(Lowered):
    """Writes the files that XLA:TPU writes, and then goes on until it is told to stop."""

    def __init__(self, texts):
        self.texts, self.ended = texts, threading.Event()

    def compile(self, compiler_options):
        folder = pathlib.Path(compiler_options["xla_dump_to"])
        for ending, text in self.texts.items():
            (folder / f"{NAME}.{ending}").write_text(text)
        self.ended.wait(60)


def test_it_does_not_wait_for_the_machine_code():
    compilation = Compilation(
        {
            "before_optimizations.txt": "HloModule before",
            "after_optimizations.txt": "HloModule after",
            "after_optimizations-memory-usage-report.txt": REPORT,
            "after_optimizations_after_buffer_assignment.txt": "HloModule after",
        }
    )
    assert optimised_programs.optimise(compilation) == optimised_programs.OptimisedProgram("HloModule after", 19405312)
    assert not compilation.ended.is_set()
    compilation.ended.set()


def test_what_xla_refuses_is_raised():
    step = jax.jit(jnp.tanh, compiler_options={"no_such_option": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        optimised_programs.optimise(step.lower(jax.ShapeDtypeStruct((4,), jnp.float32)))


def test_a_compiler_that_writes_other_files_is_named():
    lowered = jax.jit(jnp.tanh).lower(jax.ShapeDtypeStruct((4,), jnp.float32))  # XLA:CPU has other names
    with pytest.raises(errors.UserError, match="quick: got a version of XLA:TPU that does not dump"):
        optimised_programs.optimise(lowered)
