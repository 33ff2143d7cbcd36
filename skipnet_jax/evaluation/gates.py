"""What the gates of a network let through: weights over channels, images and classes.

A block's junction multiplies each state that it sees with a weight, per sample and channel. The weights of a gate's n
states add up to 1, so their mean over the channels is the share that an earlier state has of what comes in: 1/n is what
the mean of the states would give it, and a plain residual network gives all to the state right before the block. The
block's own branch is not one of the n: its factor lies between 0 and 1 by itself.

A weight says how far a state is let through, not how large that state is; and where a state has fewer channels than the
block (PyramidNet), its weights on the missing ones count for nothing, though they are in the mean.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64, Int64, PyTree, Shaped, UInt8

from skipnet_jax.models.network import Network
from skipnet_jax.specs import Statistics
from skipnet_jax.training import mixing, sharding

Batch = dict[str, Shaped[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Section:
    """Blocks of one resolution, which may see each other's states.

    Args:
      first: number of its first block in the network; block i's parameters are called blocks_i.
      seen: for each block the states that it sees, its own first, each named by the number of the block whose
        shortcut it went through. State j is what block j - 1 has put out; state 0 is the stem's output.
    """

    first: int
    seen: tuple[tuple[int, ...], ...]

    @property
    def blocks(self) -> range:
        """Their numbers in the network."""
        return range(self.first, self.first + len(self.seen))

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Each (block, state that it sees), in the order of the weights."""
        return tuple((block, state) for block, states in zip(self.blocks, self.seen, strict=True) for state in states)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Means over channels, and over images where there are several.

    Args:
      states: of each link of each section, in order.
      branch: of each block's own branch; None where the junction adds it as it is.
    """

    states: Float64[np.ndarray, "links"]
    branch: Float64[np.ndarray, "blocks"] | None


@dataclasses.dataclass(frozen=True)
class Gates:
    """The weights of a network over a set of images.

    Args:
      counts: images of each class.
      by_class: in the order of the classes; None where a class has no image.
      overall: the mean over all images.
      spread: of each link, how far a single channel's weight varies from image to image: standard deviation, mean over
        the channels. Where it is large, gates choose though their means over the channels hardly show it.
    """

    sections: tuple[Section, ...]
    counts: Int64[np.ndarray, "k"]
    by_class: tuple[Weights | None, ...]
    overall: Weights
    spread: Float64[np.ndarray, "links"]


def find_sections(model: Network) -> tuple[Section, ...]:
    """The sections of a network, and who sees whom in them.

    Raises:
      ValueError: it is a plain residual network.
    """
    strides = [block.stride for block in model.architecture.blocks]
    starts = [i for i, stride in enumerate(strides) if stride != 1 or not i]
    sections = []
    for first, end in zip(starts, [*starts[1:], len(strides)], strict=True):
        seen = [tuple(i - d for d in model.junction.distances(i - first)) for i in range(first, end)]
        sections.append(Section(first, tuple(seen)))
    if all(len(states) == 1 for section in sections for states in section.seen):
        raise ValueError(
            f"model.name: got {model.architecture.published_name} with additions, expected a network with gates: in a plain "
            f"one each block adds its branch to a single state, with no weights to look at. Train a Skip- version: put "
            f"skip_ or dense_ before the name in --config.model.name."
        )
    return tuple(sections)


def sown_weights(
    model: Network, variables: dict[str, PyTree], images: Float[Array, "b h w 3"]
) -> list[dict[str, Float[Array, "_b ..."]]]:
    """Runs the network, and collects what its junctions sow.

    Args:
      images: normalised.

    Returns:
      For each block "weights" [b, n, c], and where the junctions weigh the branch "branch" [b, c]; of those that do not
      look at the sample [1, n, c].
    """
    sown: Any
    _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
    junctions = [sown["intermediates"][f"blocks_{i}"]["junction"] for i in range(len(model.architecture.blocks))]
    return [{name: jnp.asarray(values[0]) for name, values in junction.items()} for junction in junctions]


def weigh_images(
    model: Network, variables: dict[str, PyTree], images: Float[Array, "b h w 3"]
) -> dict[str, Float[Array, "b _n"]]:
    """Means over the channels of what the junctions sow.

    Args:
      images: normalised.

    Returns:
      "states" [b, links], and where the junctions weigh the branch "branch" [b, blocks].
    """
    return _channel_means(sown_weights(model, variables, images), len(images))


def make_step(
    model: Network, *, num_classes: int, statistics: Statistics, mesh: Mesh
) -> Callable[[dict[str, PyTree], Batch], dict[str, PyTree]]:
    """Compiles the weights of a batch, summed by class, over a mesh.

    Args:
      statistics: what the images are normalised with.

    Returns:
      (variables, batch as `steps.eval_step` takes it) -> those of `weigh_images` with an axis of classes in the place
      of the images', "counts" [k], and for each block "moments" [2, n, c], sums of weights and of their squares.
    """

    def step(variables: dict[str, PyTree], batch: Batch) -> dict[str, PyTree]:
        images = mixing.normalize_images(batch["image"], statistics, jnp.result_type(float))
        labels = jnp.where(batch["mask"], batch["label"], -1)  # which is no class
        members = jax.nn.one_hot(labels, num_classes, axis=0)
        junctions = sown_weights(model, variables, images)
        sums: dict[str, PyTree] = {
            name: jnp.matmul(members.astype(rows.dtype), rows, precision="highest")
            for name, rows in _channel_means(junctions, len(images)).items()
        }
        counted = jnp.sum(members, axis=0)[:, None, None]
        moments = [
            jnp.stack([jnp.sum(junction["weights"] ** power * counted, axis=0) for power in (1, 2)])
            for junction in junctions
        ]
        return sums | {"counts": jnp.sum(members, axis=1), "moments": moments}

    everywhere = sharding.replicated(mesh)
    return jax.jit(step, in_shardings=(everywhere, sharding.batch_sharding(mesh)), out_shardings=everywhere)


def measure(
    model: Network,
    variables: dict[str, PyTree],
    batches: Iterable[dict[str, np.ndarray]],
    *,
    num_classes: int,
    statistics: Statistics,
    mesh: Mesh,
) -> Gates:
    """Weighs a set of images, each once.

    Args:
      variables: "params" and "batch_stats", replicated over the mesh.
      batches: of `scoring.batches`, with one label for each image.
      statistics: what the images are normalised with.

    Raises:
      ValueError: it is a plain residual network, or there is no image.
    """
    sections = find_sections(model)
    step = make_step(model, num_classes=num_classes, statistics=statistics, mesh=mesh)
    sums: dict[str, Any] = {}
    for batch in batches:
        fetched = jax.device_get(step(variables, sharding.to_global(batch, mesh)))
        fetched = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), fetched)
        sums = jax.tree.map(np.add, sums, fetched) if sums else fetched
    if not sums or not sums["counts"].any():
        raise ValueError("data.name: got no image with a label, expected some. Change --config.data.name.")
    counts, moments = sums.pop("counts"), sums.pop("moments")
    means = [of / counts.sum() for of in moments]
    return Gates(
        sections,
        counts=counts.astype(np.int64),
        by_class=tuple(
            _weights({name: rows[k] / count for name, rows in sums.items()}) if count else None
            for k, count in enumerate(counts)
        ),
        overall=_weights({name: rows.sum(axis=0) / counts.sum() for name, rows in sums.items()}),
        spread=np.concatenate([np.sqrt(np.maximum(square - mean**2, 0)).mean(axis=-1) for mean, square in means]),
    )


def measure_image(
    model: Network,
    variables: dict[str, PyTree],
    image: UInt8[np.ndarray, "h w 3"],
    *,
    statistics: Statistics,
) -> Weights:
    """Weighs one image.

    Args:
      image: 0..255, at the size that the network sees.
      statistics: what the images are normalised with.
    """
    find_sections(model)
    normalized = mixing.normalize_images(jnp.asarray(image)[None], statistics, jnp.result_type(float))
    fetched = jax.device_get(jax.jit(weigh_images, static_argnums=0)(model, variables, normalized))
    return _weights({name: np.asarray(rows[0], np.float64) for name, rows in fetched.items()})


def _channel_means(junctions: list[dict[str, Array]], b: int) -> dict[str, Array]:
    weights = [jnp.mean(junction["weights"], axis=-1) for junction in junctions]
    result = {"states": jnp.concatenate([jnp.broadcast_to(rows, (b, rows.shape[1])) for rows in weights], axis=1)}
    if "branch" in junctions[0]:
        result["branch"] = jnp.stack([jnp.mean(junction["branch"], axis=-1) for junction in junctions], axis=1)
    return result


def _weights(means: dict[str, np.ndarray]) -> Weights:
    return Weights(means["states"], means.get("branch"))
