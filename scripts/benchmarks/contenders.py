"""JAX's side of the step benchmark: a network's real training and evaluation steps, compiled, with their batch."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.models import build_network, model_info
from skipnet_jax.optim import optimizers, schedules
from skipnet_jax.specs import DataSpec, MixingSpec, ModelSpec, OptimSpec, TrainSpec
from skipnet_jax.training import sharding, steps

# As in the recipes, but with a small constant rate: hundreds of steps on noise must not diverge.
OPTIM = OptimSpec(name="sgd", lr=1e-3, schedule="constant", momentum=0.9, nesterov=True, weight_decay=5e-4)

TINY_BATCH = 2  # the smallest that a gate's batch norm takes


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all contenders have in common.

    Args:
      batch: examples per step.
      image_size: side of the square images in pixels; 0 = each network's own.
      bn_group_size: examples that one batch norm normalises together; 0 = the whole batch, as in PyTorch.
      remat: recompute each block in the backward pass.
    """

    batch: int
    image_size: int = 0
    dtype: str = "float32"
    bn_group_size: int = 0
    remat: bool = False

    def size_of(self, name: str) -> int:
        """The side of this network's images, in pixels."""
        return self.image_size or model_info(name).image_size


def plain_spec(name: str, setting: Setting) -> TrainSpec:
    """A recipe without mixing for a network, with as many classes as in the network's published table."""
    return TrainSpec(
        model=ModelSpec(
            name=name,
            num_classes=model_info(name).num_classes,
            dtype=setting.dtype,
            bn_group_size=setting.bn_group_size,
            remat=setting.remat,
        ),
        data=DataSpec(name="noise", image_size=setting.size_of(name), pad_crop=0),
        mixing=MixingSpec(),
        optim=OPTIM,
        batch_size=setting.batch,
        epochs=1,
    )


def noise(name: str, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [b, s, s, 3] and labels int32 [b], the same for JAX and PyTorch."""
    random, size = np.random.default_rng(0), setting.size_of(name)
    images = random.integers(0, 256, (setting.batch, size, size, 3), np.uint8)
    return images, random.integers(0, model_info(name).num_classes, setting.batch, np.int32)


class Steps:
    """A network on one device, with the trainer's own steps."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.spec = spec = plain_spec(name, setting)
        self.mesh = sharding.make_mesh(jax.devices()[:1])
        self.model = build_network(spec.model)
        schedule = schedules.make_schedule(spec.optim, batch_size=setting.batch, epochs=1, steps_per_epoch=1)
        self.optimizer = optimizers.make_optimizer(spec.optim, schedule)
        self.train_step = steps.make_train_step(
            self.model, self.optimizer, schedule, spec, steps_per_epoch=1, statistics=IMAGENET, mesh=self.mesh
        )
        self.eval_step = steps.make_eval_step(self.model, statistics=IMAGENET, mesh=self.mesh)
        images, labels = noise(name, setting)
        rows = {"image": images, "label": labels}
        self.batch = sharding.to_global(rows, self.mesh)
        self.eval_batch = sharding.to_global(rows | {"mask": np.ones(len(labels), bool)}, self.mesh)
        self.state: Any = None
        self._compiled: dict[str, Any] = {}

    def init(self) -> float:
        """Makes the state, and returns the seconds that it took."""
        begin = time.perf_counter()
        size = self.spec.data.image_size
        self.state = steps.init_state(self.model, self.optimizer, image_size=size, seed=0, mesh=self.mesh)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin

    def compile(self, mode: str) -> dict[str, float | None]:
        """Compiles the step of a mode.

        Returns:
          "lower_s" and "compile_s" in seconds, and "memory": the bytes that the program's arguments, results and
          intermediate arrays take on the device, as the compiler counts them.
        """
        begin = time.perf_counter()
        if mode == "train":
            lowered = self.train_step.lower(self.state, self.batch)
        else:
            lowered = self.eval_step.lower(self.state.variables, self.eval_batch)
        middle = time.perf_counter()
        self._compiled[mode] = compiled = lowered.compile()
        end = time.perf_counter()
        return {"lower_s": middle - begin, "compile_s": end - middle, "memory": program_memory(compiled)}

    def train(self, count: int) -> None:
        """Takes `count` steps. Each needs the state of the one before, so waiting for the last state is enough."""
        metrics = None
        for _ in range(count):
            self.state, metrics = self._compiled["train"](self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def evaluate(self, count: int) -> None:
        """Scores the batch `count` times, one after the other: a CPU would run several at once."""
        for _ in range(count):
            jax.block_until_ready(self._compiled["eval"](self.state.variables, self.eval_batch))


def program_memory(compiled: Any) -> int | None:
    """Bytes of a compiled program's arguments, results and intermediate arrays; aliased buffers count once."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held + sizes.temp_size_in_bytes


class HostCalls:
    """Times how long Python is busy with a training step.

    It calls the jitted step as the training loop does, on a batch so small that the device has next to nothing to do,
    and times each call until it returns; JAX returns before the result is ready, on CPUs too. Each call begins when the
    last state is ready, so that no queue delays it. The time does not depend on the batch size: if it is shorter than a
    step, an accelerator never waits for Python. On a CPU the computing threads share the cores with the call, so the
    time is an upper bound. Fetching a batch and copying it to the device are not included.
    """

    def __init__(self, name: str, dtype: str) -> None:
        size = 8 if model_info(name).image_size < 64 else 32  # the smallest that all families take
        self._steps = Steps(name, Setting(TINY_BATCH, size, dtype))
        self._steps.init()
        self.arrays = len(jax.tree.leaves(self._steps.state))
        self.time(2)  # compiles

    def time(self, count: int) -> tuple[list[float], list[float]]:
        """Seconds of each call until it returns, and until its state is ready."""
        returned, ready = [], []
        steps = self._steps
        for _ in range(count):
            begin = time.perf_counter()
            steps.state, _ = steps.train_step(steps.state, steps.batch)
            returned.append(time.perf_counter() - begin)
            jax.block_until_ready(steps.state)
            ready.append(time.perf_counter() - begin)
        return returned, ready
