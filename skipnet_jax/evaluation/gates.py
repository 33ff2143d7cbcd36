"""What the gates of a network let through: their weights, averaged over channels and images, overall and by class.

A block's junction multiplies each state that the block sees by a weight, per sample and channel. A gate's weights for
its n states add up to 1. Averaged over the channels, a weight is therefore one state's share of the block's input: the
mean of the states would give 1/n to each, and a plain residual network gives 1 to the latest. The block's own branch is
not one of the n states. Its factor lies between 0 and 1 on its own.

A weight says how much of a state gets through, not how large the state is. Where a state has fewer channels than the
block (PyramidNet), the weights of the missing channels have no effect, but count in the average.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64, Int64, PyTree, UInt8

from skipnet_jax.errors import UserError
from skipnet_jax.models.network import Network
from skipnet_jax.specs import Statistics
from skipnet_jax.training import mixing, sharding, steps


@dataclasses.dataclass(frozen=True)
class Section:
    """The blocks of one resolution, which may see each other's states.

    Args:
      first: number of the section's first block in the network; the parameters of block i are called blocks_i.
      seen: for each block the states that it sees, its own first. State j is the output of block j - 1, or of the stem
        for j = 0, after the shortcut of block j.
    """

    first: int
    seen: tuple[tuple[int, ...], ...]

    @property
    def blocks(self) -> range:
        """The blocks' numbers in the network."""
        return range(self.first, self.first + len(self.seen))

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Each pair of a block and a state that it sees, in the order of the weights."""
        return tuple((block, state) for block, states in zip(self.blocks, self.seen, strict=True) for state in states)


@dataclasses.dataclass(frozen=True)
class GateWeights:
    """Weights averaged over the channels, and over the images where there are several.

    Args:
      states: one weight per link, section by section.
      branch: the factor of each block's own branch; None where the junction adds the branch as it is.
    """

    states: Float64[np.ndarray, "links"]
    branch: Float64[np.ndarray, "blocks"] | None


@dataclasses.dataclass(frozen=True)
class Gates:
    """The gate weights of a network over a set of images.

    Args:
      counts: images of each class.
      by_class: the mean over each class's images; None for a class without images.
      overall: the mean over all images.
      spread: for each link, the standard deviation of one channel's weight over the images, averaged over the channels.
        A large spread means that gates react to the image, even where the means over the channels hardly show it.
    """

    sections: tuple[Section, ...]
    counts: Int64[np.ndarray, "k"]
    by_class: tuple[GateWeights | None, ...]
    overall: GateWeights
    spread: Float64[np.ndarray, "links"]


def find_sections(model: Network) -> tuple[Section, ...]:
    """Finds the sections of a network, and which states each block sees.

    Raises:
      UserError: a plain residual network, which has no gates.
    """
    strides = [block.stride for block in model.architecture.blocks]
    starts = [i for i, stride in enumerate(strides) if stride != 1 or not i]
    sections = []
    for first, end in zip(starts, [*starts[1:], len(strides)], strict=True):
        seen = [tuple(i - d for d in model.junction.distances(i - first)) for i in range(first, end)]
        sections.append(Section(first, tuple(seen)))
    if all(len(states) == 1 for section in sections for states in section.seen):
        raise UserError(
            "model.name",
            f"{model.architecture.published_name} with plain additions, which have no weights to look at",
            "a network with gates",
            "Train a Skip- version: put skip_ or dense_ in front of `model.name`.",
        )
    return tuple(sections)


def sown_weights(
    model: Network, variables: dict[str, PyTree], images: Float[Array, "b h w 3"]
) -> list[dict[str, Float[Array, "_b ..."]]]:
    """Runs the network and collects the weights that its junctions sow.

    Args:
      images: normalised.

    Returns:
      For each block "weights" [b, n, c], or [1, n, c] where they do not depend on the sample; and "branch" [b, c] where
      the junction weighs the branch.
    """
    sown: Any
    _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
    junctions = [sown["intermediates"][f"blocks_{i}"]["junction"] for i in range(len(model.architecture.blocks))]
    return [{name: jnp.asarray(values[0]) for name, values in junction.items()} for junction in junctions]


def make_step(
    model: Network, *, num_classes: int, statistics: Statistics, mesh: Mesh
) -> Callable[[dict[str, PyTree], steps.Batch], dict[str, PyTree]]:
    """Compiles a step that sums the weights of a batch by class, over a mesh.

    Returns:
      A function of the variables and a batch as for `steps.make_eval_step`. It returns "counts" [k], the images of each
      class; "states" [k, links] and, where the junctions weigh the branch, "branch" [k, blocks]: means over the
      channels, summed over each class's images; and for each block "moments" [2, n, c], the sums of its weights and of
      their squares over all images.
    """

    def step(variables: dict[str, PyTree], batch: steps.Batch) -> dict[str, PyTree]:
        images = mixing.normalize_images(batch["image"], statistics, jnp.result_type(float))
        labels = jnp.where(batch["mask"], batch["label"], -1)  # one_hot gives zeros for -1
        members = jax.nn.one_hot(labels, num_classes, axis=0)
        junctions = sown_weights(model, variables, images)
        sums: dict[str, PyTree] = {
            name: jnp.matmul(members.astype(rows.dtype), rows, precision="highest")
            for name, rows in _channel_means(junctions, len(images)).items()
        }
        counts = jnp.sum(members, axis=0)[:, None, None]  # 0 for padding
        moments = [
            jnp.stack([jnp.sum(junction["weights"] ** power * counts, axis=0) for power in (1, 2)])
            for junction in junctions
        ]
        return sums | {"counts": jnp.sum(members, axis=1), "moments": moments}

    return steps.compile_evaluation(step, mesh)


def measure(
    model: Network,
    variables: dict[str, PyTree],
    batches: Iterable[dict[str, np.ndarray]],
    *,
    num_classes: int,
    statistics: Statistics,
    mesh: Mesh,
) -> Gates:
    """Measures the gates over a set of images.

    Args:
      variables: "params" and "batch_stats", replicated over the mesh.
      batches: of `scoring.batches`, with one label per image.

    Raises:
      UserError: a plain residual network, or no image.
    """
    sections = find_sections(model)
    step = make_step(model, num_classes=num_classes, statistics=statistics, mesh=mesh)
    sums: dict[str, Any] = {}
    for batch in batches:
        fetched = jax.device_get(step(variables, sharding.to_global(batch, mesh)))
        fetched = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), fetched)
        sums = jax.tree.map(np.add, sums, fetched) if sums else fetched
    if not sums or not sums["counts"].any():
        raise UserError("data.name", "no image with a label", "at least one", "Change `data.name`.")
    counts, moments = sums.pop("counts"), sums.pop("moments")
    means = [of / counts.sum() for of in moments]
    return Gates(
        sections,
        counts=counts.astype(np.int64),
        by_class=tuple(
            _as_weights({name: rows[k] / count for name, rows in sums.items()}) if count else None
            for k, count in enumerate(counts)
        ),
        overall=_as_weights({name: rows.sum(axis=0) / counts.sum() for name, rows in sums.items()}),
        spread=np.concatenate([np.sqrt(np.maximum(square - mean**2, 0)).mean(axis=-1) for mean, square in means]),
    )


def measure_image(
    model: Network,
    variables: dict[str, PyTree],
    image: UInt8[np.ndarray, "h w 3"],
    *,
    statistics: Statistics,
) -> GateWeights:
    """Measures the gates on one image.

    Args:
      image: 0..255, at the network's image size.

    Raises:
      UserError: a plain residual network.
    """
    find_sections(model)
    fetched = jax.device_get(_weigh(model, variables, image[None], statistics))
    return _as_weights({name: np.asarray(rows[0], np.float64) for name, rows in fetched.items()})


@functools.partial(jax.jit, static_argnames=("model", "statistics"))
def _weigh(
    model: Network, variables: dict[str, PyTree], images: UInt8[Array, "b h w 3"], statistics: Statistics
) -> dict[str, Array]:
    normalized = mixing.normalize_images(images, statistics, jnp.result_type(float))
    return _channel_means(sown_weights(model, variables, normalized), len(images))


def _channel_means(junctions: list[dict[str, Array]], b: int) -> dict[str, Array]:
    """Averages sown weights over the channels: "states" [b, links], and "branch" [b, blocks] where there is one."""
    weights = [jnp.mean(junction["weights"], axis=-1) for junction in junctions]
    result = {"states": jnp.concatenate([jnp.broadcast_to(rows, (b, rows.shape[1])) for rows in weights], axis=1)}
    if "branch" in junctions[0]:
        result["branch"] = jnp.stack([jnp.mean(junction["branch"], axis=-1) for junction in junctions], axis=1)
    return result


def _as_weights(means: dict[str, np.ndarray]) -> GateWeights:
    return GateWeights(means["states"], means.get("branch"))
