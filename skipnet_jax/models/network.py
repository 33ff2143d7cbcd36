"""The network: stem -> blocks over the states of their section -> head -> pool -> classifier."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from skipnet_jax.models.block import Block, BlockArchitecture
from skipnet_jax.models.junctions import Junction, State
from skipnet_jax.models.layers import Layers, batch_norm_relu, mean_pool, param_dtype
from skipnet_jax.models.noise import BranchNoise, Progress
from skipnet_jax.specs import ModelSpec


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network as its family describes it, before a junction is chosen.

    Args:
      published_name: as in the papers, without the junction's prefix.
      image_size: side of the training images in pixels.
      num_classes: of the data set in the published tables.
      stem: module factory that takes `layers=` and `name=`.
      blocks: in order.
      layers: (dtype, bn_group_size) -> the family's norm and activation.
      head_norm: norm between the last block and the pool.
      head_act: activation after that norm.
      classifier_norm: norm between the pool and the classifier.
      gate_reduction: see `junctions.Gate`.
      shortcut_first: see `block.Block`.
      post_activation: the junctions end with the activation.
    """

    published_name: str
    image_size: int
    num_classes: int
    stem: Callable[..., nn.Module]
    blocks: tuple[BlockArchitecture, ...]
    layers: Callable[[DTypeLike, int], Layers] = batch_norm_relu
    head_norm: bool = False
    head_act: bool = False
    classifier_norm: bool = False
    gate_reduction: int = 8
    shortcut_first: bool = False
    post_activation: bool = True


class Network(nn.Module):
    """A residual network of any family with any junction.

    Args:
      architecture: of a family, from `zoo.NETWORKS`.
      junction: a row of `junctions.JUNCTIONS`.
      spec: the settings.
    """

    architecture: Architecture
    junction: Junction
    spec: ModelSpec

    @property
    def dtype(self) -> DTypeLike:
        """Of the computation."""
        return jnp.dtype(self.spec.dtype)

    @property
    def gate_reduction(self) -> int:
        """The spec's, or the architecture's own where the spec leaves it open."""
        return self.spec.gate_reduction or self.architecture.gate_reduction

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool, progress: Progress = 1.0
    ) -> Float[Array, "b n"]:
        """Classifies.

        Args:
          images: normalised.
          train: batch statistics and noise (needs the collection `batch_stats` mutable and, with dropout or
            noise on the branches, the random stream `dropout`).
          progress: share of the training that is done, 0..1; may be traced. DropBlock grows with it.

        Returns:
          Logits, in float32 at least.
        """
        return self._run(images, train=train, progress=progress, classify=True)[-1]

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool, progress: Progress = 1.0
    ) -> list[Float[Array, "b _h _w _c"]]:
        """The last output of each section, in order: a feature pyramid for detection and segmentation.

        Call it as `model.apply(variables, images, train=False, method="features")`; parameters of head
        and classifier are not needed.
        """
        return self._run(images, train=train, progress=progress, classify=False)

    @nn.compact
    def _run(self, images: Array, *, train: bool, progress: Progress, classify: bool) -> list[Array]:
        """The last output of each section, and then the logits if asked to classify."""
        layers = self.architecture.layers(self.dtype, self.spec.bn_group_size)
        x = self.architecture.stem(layers=layers, name="stem")(images, train=train)
        outputs = []
        states: list[State] = []  # of the section, oldest first
        for i, block in enumerate(self.architecture.blocks):
            if block.stride != 1 and i:
                outputs.append(x)
                states = []
            seen = [states[-distance] for distance in self.junction.distances(len(states)) if distance]
            x, state = self._block(i, layers)(x, seen, train, progress)
            states.append(state)
        outputs.append(x)
        return [*outputs, self._classify(x, layers, train=train)] if classify else outputs

    def _block(self, i: int, layers: Layers) -> Callable[[Array, list[State], bool, Progress], tuple[Array, State]]:
        block = Block(
            self.architecture.blocks[i],
            layers,
            self.junction.make(layers, self.gate_reduction, self.architecture.post_activation),
            noise=self._noise(i),
            shortcut_first=self.architecture.shortcut_first,
            name=f"blocks_{i}",
        )

        def run(block: Block, x: Array, seen: list[State], train: bool, progress: Progress) -> tuple[Array, State]:
            return block(x, seen, train=train, progress=progress)

        return functools.partial(nn.remat(run, static_argnums=(3,)) if self.spec.remat else run, block)

    def _noise(self, i: int) -> BranchNoise:
        """Of block i. Stochastic depth and ShakeDrop grow linearly with the depth.

        DropBlock acts from the block with the last-but-one stride on, that block included: in the last two of the
        sections that begin with a stride, which are the paper's groups 3 and 4 of a ResNet. If there is one such
        section only, in that one.
        """
        blocks = len(self.architecture.blocks)
        strided = [j for j, block in enumerate(self.architecture.blocks) if block.stride != 1]
        return BranchNoise(
            drop_path=self.spec.drop_path * (i + 1) / blocks,
            shake_drop=self.spec.shake_drop * (i + 1) / blocks,
            drop_block=self.spec.drop_block if i >= min(strided[-2:], default=0) else 0.0,
            drop_block_size=self.spec.drop_block_size,
            signal_augment=self.spec.signal_augment,
        )

    def _classify(self, x: Array, layers: Layers, *, train: bool) -> Array:
        if self.architecture.head_norm:
            if self.architecture.head_act:
                x = layers.norm_act(x, train=train, name="head_norm")
            else:
                x = layers.norm(name="head_norm")(x, train=train)
        v = mean_pool(x)
        layers = self.architecture.layers(
            param_dtype(self.dtype), self.spec.bn_group_size
        )  # the rest costs nothing in float32
        if self.architecture.classifier_norm:
            v = layers.norm(name="classifier_norm")(v, train=train)
        v = nn.Dropout(self.spec.dropout, deterministic=not train, name="dropout")(v)
        return layers.dense(self.spec.num_classes, name="classifier")(v)
