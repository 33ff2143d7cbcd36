"""PyTorch's side of the step benchmark: the whole step as a PyTorch user would write it, with a batch in memory.

On a CPU, PyTorch runs with its defaults, in both memory formats. On CUDA it runs channels last and compiled, with
TensorFloat-32 where JAX uses it too. bfloat16 means autocast.
"""

import time
from collections.abc import Mapping

import torch
from torch.nn import functional

from scripts.benchmarks import machine, peer_networks
from scripts.benchmarks.contenders import OPTIM, Setting, noise
from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.errors import UserError

FORMATS = {"PyTorch": torch.contiguous_format, "PyTorch, channels last": torch.channels_last}


def frameworks(device: str) -> list[str]:
    """The memory formats to measure on a device, "cpu" or "cuda"."""
    return list(FORMATS) if device == "cpu" else ["PyTorch, channels last"]


def prepare(device: str, sizes: Mapping[str, int]) -> None:
    """Gives PyTorch as many threads as JAX has, and on CUDA the fastest kernels and JAX's default precision.

    Args:
      sizes: network -> side of its images, in pixels.

    Raises:
      UserError: PyTorch does not see the device, or has no such network.
    """
    for name, size in sizes.items():
        peer_networks.require(name, size)
    torch.set_num_threads(machine.cores())
    torch.manual_seed(0)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--peer", "a torch without CUDA device", "the device that JAX sees")
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        # The limit counts all networks of a class; beyond it they would silently run uncompiled.
        torch._dynamo.config.recompile_limit = 64


class PeerSteps:
    """A network in PyTorch on one device, with a training and an evaluation step.

    Args:
      framework: one of `frameworks(device)`.
      device: "cpu" or "cuda".

    Raises:
      UserError: see `peer_networks.create`.
    """

    def __init__(self, name: str, setting: Setting, framework: str, device: str) -> None:
        self._device, self._bfloat16 = device, setting.dtype == "bfloat16"
        layout = FORMATS[framework]
        network = peer_networks.create(name, setting.size_of(name)).to(device, memory_format=layout)
        self._optimizer = _optimizer(network, fused=device == "cuda")
        self._network = torch.compile(network) if device == "cuda" else network
        images, labels = noise(name, setting)
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)
        self._labels = torch.from_numpy(labels).long().to(device)
        self._mean, self._std = (
            torch.tensor(numbers, device=device).mul(255).reshape(1, 3, 1, 1)
            for numbers in (IMAGENET.mean, IMAGENET.std)
        )

    def warm_up(self, mode: str) -> dict[str, float | None]:
        """Takes one step.

        Returns:
          As `contenders.Steps.compile`, with the time of the whole first step as "compile_s". "memory" is the
          allocator's peak, known on CUDA only.
        """
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        (self.train if mode == "train" else self.evaluate)(1)
        seconds = time.perf_counter() - begin
        memory = torch.cuda.max_memory_allocated() if self._device == "cuda" else None
        return {"lower_s": 0.0, "compile_s": seconds, "memory": memory}

    def train(self, count: int) -> None:
        """Takes `count` steps."""
        self._network.train()
        for _ in range(count):
            self._optimizer.zero_grad(set_to_none=True)
            self._loss().backward()
            self._optimizer.step()
        self._wait()

    @torch.no_grad()
    def evaluate(self, count: int) -> None:
        """Scores the batch `count` times."""
        self._network.eval()
        for _ in range(count):
            self._loss()
            self._wait()

    def rest(self) -> None:
        """Returns cached memory to the device, for the other contenders."""
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _loss(self) -> torch.Tensor:
        images = self._images.float().sub_(self._mean).div_(self._std)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16):
            logits = self._network(images)
        return functional.cross_entropy(logits.float(), self._labels)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _optimizer(network: torch.nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """SGD that decays kernels, but not norms and biases."""
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": OPTIM.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=OPTIM.lr, momentum=OPTIM.momentum, nesterov=OPTIM.nesterov, fused=fused)
