"""Starting from another network's weights: fine-tuning at another resolution, for other classes, or under new gates.

The weights come from a workdir, of a run or converted from PyTorch's (scripts/convert_torch.py). All arrays go by name
and have to fit, but for the two parts that may be made anew: the classifier, and the junctions, which a plain network
does not have.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from skipnet_jax.runs import array_mismatch, weights, workdir
from skipnet_jax.training import sharding
from skipnet_jax.training.steps import TrainState

_Arrays = dict[tuple[str, ...], Any]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What was taken over.

    Args:
      source: the checkpoint's folder.
      averaged: the moving average of that run was taken, and not its last parameters.
      taken, fresh, unused: names of arrays: with the checkpoint's numbers; with new random ones; of the checkpoint
        only.
    """

    source: str
    averaged: bool
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """In words."""
        average = " (its moving average)" if self.averaged else ""
        fresh, unused = (", ".join(_modules(names)) or "nothing" for names in (self.fresh, self.unused))
        return f"from {self.source}{average}: {len(self.taken)} arrays; made anew: {fresh}; not used: {unused}"


def start_from(
    state: TrainState, init_from: str, class_names: tuple[str, ...], mesh: Mesh
) -> tuple[TrainState, Transfer]:
    """Puts the weights of a workdir into a state that has not been trained.

    The best checkpoint is taken, and where that run kept a moving average, the average. The classifier is made anew if
    it is of other classes: another number of them, or with other names. (Converted weights know no names.)

    Args:
      state: of `steps.init_state`.
      init_from: the workdir.
      class_names: of the new run, in the order of the labels.
      mesh: of the new run.

    Returns:
      The state, and what was taken over.

    Raises:
      ValueError: there is no such workdir or checkpoint, or its network is another one.
    """
    source = workdir.locate(init_from)
    if not (source / workdir.CHECKPOINTS).exists():
        raise ValueError(
            f"init_from: got {init_from}, which has no {workdir.CHECKPOINTS}, expected the workdir of a run or of "
            f"converted weights. Give --config.init_from=WORKDIR; scripts/convert_torch.py makes one of PyTorch's."
        )
    read = weights.load(source, "best", sharding=sharding.replicated(mesh))
    arrays, own = _flatten(read.variables), _flatten(state.variables)
    other_classes = workdir.read_class_names(source) not in (None, class_names)
    fresh = _require_fit(str(source), arrays, own, other_classes)
    merged = {
        path: leaf if path in fresh or path not in arrays else arrays[path].astype(leaf.dtype)
        for path, leaf in own.items()
    }
    variables = {"params": {}, "batch_stats": {}} | flax.traverse_util.unflatten_dict(merged)
    average = jax.tree.map(jnp.copy, variables) if state.average else {}  # a copy: the step gives up its arguments
    transfer = Transfer(
        source=str(source / workdir.CHECKPOINTS / str(read.step)),
        averaged=read.averaged,
        taken=_names(own.keys() - fresh),
        fresh=_names(fresh),
        unused=_names(arrays.keys() - own.keys() | (arrays.keys() & fresh)),
    )
    return dataclasses.replace(state, average=average, **variables), transfer


def _require_fit(source: str, stored: _Arrays, own: _Arrays, other_classes: bool) -> set[tuple[str, ...]]:
    """The arrays to make anew.

    Raises:
      ValueError: others than those of the classifier and of junctions do not fit.
    """
    new = {path for path in own if path not in stored or (other_classes and _is_classifier(path))}
    differ = {path for path in own.keys() & stored.keys() if own[path].shape != stored[path].shape}
    fresh = new | {path for path in differ if _is_classifier(path)}
    problems = {
        "missing there": _names(path for path in new if not _may_be_new(path)),
        "unknown here": _names(path for path in stored.keys() - own.keys() if not _may_be_new(path)),
        "different": tuple(
            f"{_name(path)} (got {list(stored[path].shape)}, expected {list(own[path].shape)})"
            for path in sorted(differ - fresh)
        ),
    }
    lines = array_mismatch.lines(problems)
    if lines:
        raise ValueError(
            "\n".join([f"init_from: got {source}, whose network is another one, expected this run's.", *lines])
            + "\n  Only the classifier and the junctions may differ. Change --config.init_from or --config.model.name."
        )
    return fresh


def _is_classifier(path: tuple[str, ...]) -> bool:
    return "classifier" in path


def _may_be_new(path: tuple[str, ...]) -> bool:
    return _is_classifier(path) or "junction" in path


def _flatten(tree: Any) -> _Arrays:
    return flax.traverse_util.flatten_dict(tree)


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path)


def _names(paths: Any) -> tuple[str, ...]:
    return tuple(_name(path) for path in sorted(paths))


def _modules(names: tuple[str, ...]) -> list[str]:
    """The few modules that many arrays belong to: params/blocks_3/junction/... is a junction."""
    return sorted({"junctions" if "/junction/" in name else name.split("/")[1] for name in names})
