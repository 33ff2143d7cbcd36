"""Counts a network's parameters and FLOPs, by the rules of the published tables.

The network is traced, but nothing is computed. Each call of a module adds the module's own FLOPs, without its
children's, by the rule of its class in `RULES`. A class without a rule is an error, not a zero.

The rules: a multiply-add counts 1 (a bias 1 per output), batch norm 2 per element, layer norm 9 per element and 2 per
normalised vector, ReLU 2, GELU 8, sigmoid 4, softmax over n 3n - 1, an addition or multiplication 1, average pool k^2
and max pool k^2 - 1 per output, global average pool 1 per input element; all else 0. They count the definition, not
the implementation: in the count, a gate pools everything that it sees.

Source: the published tables of SkipResNet (Takeda, MIRU2020). The tables have no count for Swin; the same rules apply.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext
from jax.typing import DTypeLike
from jaxtyping import Array

from skipnet_jax.models import block, initializers, junctions, layers, network, noise, ops, shortcuts, stems, zoo
from skipnet_jax.models.families import convnext, regnet, resnet, swin, wide_resnet

RELU, GELU, SIGMOID = 2, 8, 4  # per element
ACTIVATIONS: dict[Callable[..., Array], int] = {ops.relu: RELU, ops.gelu: GELU}

MAX_POOL = 3**2 - 1  # per output, in stems


def _softmax(n: int) -> int:
    return 3 * n - 1


def _squeeze_excite(module: layers.SqueezeExcite, out: Array, x: Array) -> int:
    pool, scale = x.size, out.size
    return pool + RELU * module.hidden + SIGMOID * x.shape[-1] + scale


def _weighted_sum(size: int, n: int) -> int:
    """The branch plus n weighted states. The published count also adds zero times the first state."""
    return (2 * n + 2) * size


def _gate(
    module: junctions.Gate, out: layers.FeatureMap, y: layers.FeatureMap, states: Sequence[layers.FeatureMap]
) -> int:
    """The linear layers, the norm and the activation are counted where they are called."""
    n, channels, size = len(states), y.value.shape[-1], y.value.size
    pool = (1 + n) * size
    branch = SIGMOID * channels + size if module.weigh_branch else 0
    return pool + branch + _softmax(n) * channels + _weighted_sum(size, n)


def _static(
    module: junctions.Static, out: layers.FeatureMap, y: layers.FeatureMap, states: Sequence[layers.FeatureMap]
) -> int:
    return _softmax(len(states)) * y.value.shape[-1] + _weighted_sum(y.value.size, len(states))


def _average_pool(
    module: shortcuts.AverageShortcut | shortcuts.AverageLinearShortcut, out: Array | layers.FeatureMap, x: Array
) -> int:
    pixels = x.shape[0] * math.prod(-(-side // module.stride) for side in x.shape[1:3])
    # The pool comes before the width changes.
    return module.stride**2 * pixels * x.shape[-1] if module.stride > 1 else 0


def _attention(module: swin.AttentionOperation, out: Array, x: Array) -> int:
    window = module.window
    height, width = (-(-size // window) * window for size in x.shape[1:3])  # padded to whole windows
    masked = module.shifted and (height, width) != (window, window)
    pixels, pairs = height * width, height * width * window**2
    scale = pixels * module.features
    products = 2 * pairs * module.features
    position_bias_and_mask = (1 + masked) * pairs * module.heads
    softmax = pixels * module.heads * _softmax(window**2)
    return scale + products + position_bias_and_mask + softmax


# FLOPs of a call without its children's: (module, output, *inputs) -> count.
RULES: dict[type[nn.Module], Callable[..., int]] = {
    layers.Conv: lambda conv, y, x: y.size * (conv.kernel**2 * x.shape[-1] // conv.groups + conv.use_bias),
    layers.Dense: lambda dense, y, x: y.size * (x.shape[-1] + dense.use_bias),
    layers.BatchNorm: lambda norm, y, x: 2 * y.size,
    layers.LayerNorm: lambda norm, y, x: 9 * y.size + 2 * (y.size // y.shape[-1]),
    layers.SqueezeExcite: _squeeze_excite,
    junctions.Gate: _gate,
    junctions.Static: _static,
    junctions.Sum: lambda junction, out, y, states: len(states) * y.value.size,
    junctions.Mean: lambda junction, out, y, states: (len(states) + 1) * y.value.size,
    shortcuts.AverageShortcut: _average_pool,
    shortcuts.AverageLinearShortcut: _average_pool,
    stems.LargeStem: lambda stem, out, x: MAX_POOL * out.size,
    stems.DeepStem: lambda stem, out, x: MAX_POOL * out.size,
    convnext.ConvNeXtOperation: lambda operation, out, x: out.size,  # layer scale
    swin.AttentionOperation: _attention,
    network.Network: lambda network, logits, images: 0,  # `count` adds its global pool
    # These only call other modules; activations are counted where they are called.
    **dict.fromkeys(
        (
            *(block.Block, nn.Dropout, noise.DropPath, noise.ShakeDrop, noise.DropBlock, noise.SignalAugment),
            *(stems.SmallStem, stems.RegNetStem, stems.PatchStem, shortcuts.LinearShortcut, convnext.ConvNeXtShortcut),
            *(resnet.BasicOperation, resnet.BottleneckOperation, wide_resnet.PreActivationOperation),
            *(regnet.RegNetOperation, swin.PerceptronOperation, swin.PatchMerging),
        ),
        lambda module, *shapes: 0,
    ),
}


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The size of a network.

    Args:
      params: number of parameters, running statistics excluded.
      flops: of classifying one image, by the rules of the published tables.
      features: height, width and channels of each output of `method="features"`, in order.
    """

    params: int
    flops: int
    features: tuple[tuple[int, int, int], ...]


def count(
    name: str, *, image_size: int | None = None, num_classes: int | None = None, gate_reduction: int = 0
) -> Complexity:
    """Counts a network's parameters and FLOPs, and finds the shapes of its feature pyramid.

    Args:
      image_size: side of the image in pixels; None = as in the published tables.
      num_classes: None = as in the published tables.
      gate_reduction: see `specs.ModelSpec`; 0 = the network's own.

    Raises:
      UserError: the name is unknown; the message lists the nearest ones.
      TypeError: no rule counts one of the network's modules or activations.
    """
    model = zoo.create_model(name, num_classes=num_classes, gate_reduction=gate_reduction)
    counter = _Counter()
    counting = functools.partial(counter.counting_layers, model.architecture.layers)
    counted = model.clone(architecture=dataclasses.replace(model.architecture, layers=counting))
    with nn.intercept_methods(counter.intercept):
        variables = initializers.abstract_variables(counted, image_size or model.architecture.image_size)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    global_pool = math.prod(counter.features[-1])
    return Complexity(params, counter.flops + global_pool, tuple(counter.features))


def xla_flops(name: str) -> int | None:
    """XLA's own estimate for one image at the network's size: a multiply-add counts 2, and padding counts nothing.

    XLA analyses the program before any optimisation; nothing is compiled.

    Returns:
      None if the backend gives no estimate.
    """
    model = zoo.create_model(name)
    size = model.architecture.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    apply = jax.jit(functools.partial(model.apply, train=False))
    costs = apply.lower(initializers.abstract_variables(model, size), image).cost_analysis()
    return int(costs["flops"]) if isinstance(costs, Mapping) and "flops" in costs else None


class _Counter:
    """Adds up the FLOPs of a network's modules while the network is traced."""

    def __init__(self) -> None:
        self.flops = 0
        self.features: list[tuple[int, int, int]] = []  # [h, w, c] of each section's last output
        self._inside: list[nn.Module] = []

    def counting_layers(
        self, make: Callable[..., layers.Layers], dtype: DTypeLike, bn_group_size: int
    ) -> layers.Layers:
        """The network's layers, with an activation that counts its FLOPs."""
        own = make(dtype, bn_group_size)
        return dataclasses.replace(
            own,
            act=functools.partial(self._activate, own.act),
            norm_and_act=None,
            norm_and_pool=None,
            deferred_norm=None,
        )

    def _activate(self, act: Callable[..., Array], x: Array) -> Array:
        if act not in ACTIVATIONS:
            raise TypeError(f"no rule counts the activation {act}: add one to models.complexity.ACTIVATIONS.")
        self.flops += ACTIVATIONS[act] * x.size
        return act(x)

    def intercept(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        """Calls a module, and counts it by the rule of its class."""
        module = context.module
        if context.method_name != "__call__" or (self._inside and self._inside[-1] is module):  # super().__call__
            return call(*args, **kwargs)
        if type(module) not in RULES:
            raise TypeError(f"no rule counts the module {type(module)}: add one to models.complexity.RULES.")
        self._inside.append(module)
        out = call(*args, **kwargs)
        self._inside.pop()
        self.flops += RULES[type(module)](module, out, *args)
        if isinstance(module, block.Block):
            if module.architecture.stride == 1:  # the same section
                del self.features[-1:]
            self.features.append(out[0].value.shape[1:])
        return out
