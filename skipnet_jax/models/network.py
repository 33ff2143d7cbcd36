"""The network: stem -> blocks over the states of their section -> head -> pool -> classifier."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from skipnet_jax.models.block import Block, BlockArchitecture
from skipnet_jax.models.junctions import Junction
from skipnet_jax.models.layers import FeatureMap, Layers, batch_norm_relu, feature_map, mean_pool, param_dtype
from skipnet_jax.models.noise import BranchNoise, Scalar
from skipnet_jax.specs import ModelSpec


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network as its family describes it, before a junction is chosen.

    Args:
      published_name: as in the papers, without the junction's prefix.
      image_size: side of the training images in pixels.
      num_classes: of the data set in the published tables.
      stem: module factory that takes `layers=` and `name=`.
      layers: (dtype, bn_group_size) -> the family's norm and activation.
      head_norm: normalise between the last block and the pool.
      head_act: follow that norm with the activation.
      classifier_norm: normalise between the pool and the classifier.
      gate_reduction: see `junctions.Gate`.
      shortcut_first: see `block.Block`.
      post_activation: junctions end with the activation.
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

    @property
    def has_batch_norm(self) -> bool:
        """Whether `bn_group_size` matters: ConvNeXt and Swin have layer norm only, in their gates as well."""
        return self.layers is batch_norm_relu


class Network(nn.Module):
    """A residual network of any family with any junction: `zoo.build_network` makes one from its spec."""

    architecture: Architecture
    junction: Junction
    spec: ModelSpec

    @property
    def dtype(self) -> DTypeLike:
        """The type that the network computes in."""
        return jnp.dtype(self.spec.dtype)

    @property
    def gate_reduction(self) -> int:
        """The spec's, or the architecture's own if the spec says 0."""
        return self.spec.gate_reduction or self.architecture.gate_reduction

    def __call__(self, images: Float[Array, "b h w 3"], *, train: bool, progress: Scalar = 1.0) -> Float[Array, "b n"]:
        """Classifies images.

        Args:
          images: normalised.
          train: use batch statistics and noise. Needs `mutable=["batch_stats"]` and, with dropout or noise on the
            branches, the random stream `dropout`.
          progress: share of the training that is done, 0..1; DropBlock grows with it.

        Returns:
          Logits, in at least float32.
        """
        return self._run(images, train=train, progress=progress, classify=True)[-1]

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool, progress: Scalar = 1.0
    ) -> list[Float[Array, "b _h _w _c"]]:
        """The last output of each section, in order: a feature pyramid for detection and segmentation.

        Call it as `model.apply(variables, images, train=False, method="features")`. It needs no parameters of the head
        or the classifier.
        """
        return self._run(images, train=train, progress=progress, classify=False)

    @nn.compact
    def _run(self, images: Array, *, train: bool, progress: Scalar, classify: bool) -> list[Array]:
        """The last output of each section, followed by the logits if `classify`."""
        layers = self.architecture.layers(self.dtype, self.spec.bn_group_size)
        if not self.junction.gated:
            layers = dataclasses.replace(layers, deferred_norm=None)
        x = feature_map(self.architecture.stem(layers=layers, name="stem")(images, train=train))
        call_block = nn.remat(_call_block, static_argnums=(3,)) if self.spec.remat else _call_block
        outputs = []
        states: list[FeatureMap] = []  # of the section, oldest first
        for i, architecture in enumerate(self.architecture.blocks):
            if architecture.stride != 1 and i:
                outputs.append(x.value)
                states = []
            seen = [states[-distance] for distance in self.junction.distances(len(states)) if distance]
            x, state = call_block(self._block(i, layers), x, seen, train, progress)
            states.append(state)
        outputs.append(x.value)
        return [*outputs, self._classify(x, layers, train=train)] if classify else outputs

    def _block(self, i: int, layers: Layers) -> Block:
        return Block(
            self.architecture.blocks[i],
            layers,
            functools.partial(self.junction.make, layers, self.gate_reduction, self.architecture.post_activation),
            self._noise(i),
            self.architecture.shortcut_first,
            name=f"blocks_{i}",
        )

    def _noise(self, i: int) -> BranchNoise:
        """The noise on block i. Stochastic depth and ShakeDrop grow linearly with the depth.

        DropBlock acts in the last two sections that begin with stride 2: in a ResNet, the paper's groups 3 and 4.
        """
        blocks = self.architecture.blocks
        strided = [j for j, block in enumerate(blocks) if block.stride != 1]
        return BranchNoise(
            drop_path=self.spec.drop_path * (i + 1) / len(blocks),
            shake_drop=self.spec.shake_drop * (i + 1) / len(blocks),
            drop_block=self.spec.drop_block if i >= min(strided[-2:], default=0) else 0.0,
            drop_block_size=self.spec.drop_block_size,
            signal_augment=self.spec.signal_augment,
        )

    def _classify(self, x: FeatureMap, layers: Layers, *, train: bool) -> Array:
        v = x.pooled
        if self.architecture.head_norm and self.architecture.head_act:
            v = mean_pool(layers.norm_act(x.value, train=train, name="head_norm"))
        elif self.architecture.head_norm:
            v = mean_pool(layers.norm(name="head_norm")(x.value, train=train))
        # From here on float32 costs nothing.
        layers = self.architecture.layers(param_dtype(self.dtype), self.spec.bn_group_size)
        if self.architecture.classifier_norm:
            v = layers.norm(name="classifier_norm")(v, train=train)
        v = nn.Dropout(self.spec.dropout, deterministic=not train, name="dropout")(v)
        return layers.dense(self.spec.num_classes, name="classifier")(v)


def _call_block(
    block: Block, x: FeatureMap, seen: list[FeatureMap], train: bool, progress: Scalar
) -> tuple[FeatureMap, FeatureMap]:  # positional arguments only, for `nn.remat`
    return block(x, seen, train=train, progress=progress)
