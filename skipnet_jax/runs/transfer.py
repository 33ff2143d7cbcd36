"""Starts a run from another network's weights: for fine-tuning at another size or on other classes, or to add gates.

The weights lie in the workdir of a run, or were converted from elsewhere (`--mode=convert`). Arrays are matched
by name and must have the same shapes, with two exceptions that may start from random numbers: the classifier, and the
junctions, which a plain network does not have.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from skipnet_jax.errors import UserError
from skipnet_jax.runs import array_mismatch, weights
from skipnet_jax.runs import workdir as workdirs
from skipnet_jax.training import sharding
from skipnet_jax.training.steps import TrainState

_Arrays = dict[str, Any]  # by path, with slashes


def init_from_workdir(
    state: TrainState, path: str, class_names: tuple[str, ...], mesh: Mesh, *, head: str = "auto"
) -> tuple[TrainState, str]:
    """Puts the weights of a workdir into a fresh state.

    They come from the best checkpoint, and are the moving average if that run kept one. The classifier stays random if
    the classes have other names or another order, or if the weights name none, unless `head` says otherwise.

    Args:
      state: of `steps.init_state`.
      path: the workdir, `init_from` of the config.
      class_names: of the new run, in the order of the labels.
      head: "auto", or "keep" to take the classifier as it is.

    Returns:
      The state, and a line for the user that says where the weights come from and which modules stay random.

    Raises:
      UserError: there is no such workdir or checkpoint, or its network is another one.
    """
    workdir = workdirs.locate(path)
    if not (workdir / workdirs.CHECKPOINTS).exists():
        raise UserError(
            "init_from",
            f"{path}, which has no {workdirs.CHECKPOINTS}",
            "the workdir of a run or of converted weights",
            "Change `init_from`; --mode=convert turns weights from elsewhere into a workdir.",
        )
    found = weights.load(workdir, "best", sharding=sharding.replicated(mesh))
    stored, own = _flatten(found.variables), _flatten(state.variables)
    learnt = workdirs.read_class_names(workdir)
    fresh = _require_fit(str(workdir), stored, own, head == "auto" and learnt != class_names)
    if head == "keep" and any(_is_classifier(name) for name in fresh):
        raise UserError(
            "init_head",
            f"'keep', and weights of {found.spec.model.num_classes} classes",
            f"the {len(class_names)} classes of the data",
            "Leave out `init_head`, and the classifier is made anew.",
        )
    merged = {name: leaf if name in fresh else stored[name].astype(leaf.dtype) for name, leaf in own.items()}
    variables = {"params": {}, "batch_stats": {}} | flax.traverse_util.unflatten_dict(merged, sep="/")
    average = jax.tree.map(jnp.copy, variables) if state.average else {}  # a copy, since steps donate their arguments
    taken = own.keys() - fresh
    line = (
        f"from {workdir / workdirs.CHECKPOINTS / str(found.step)}{' (its moving average)' if found.averaged else ''}: "
        f"{len(taken)} arrays; made anew: {_modules(fresh)}; not used: {_modules(stored.keys() - taken)}"
    )
    if learnt is None and head == "auto":
        line += "; the weights name no classes, so the classifier is new (`init_head`=keep takes theirs)"
    return dataclasses.replace(state, average=average, **variables), line


def _require_fit(source: str, stored: _Arrays, own: _Arrays, other_classes: bool) -> set[str]:
    """Returns the arrays that stay random.

    Raises:
      UserError: arrays outside the classifier and the junctions do not fit.
    """
    missing = own.keys() - stored.keys()
    differ = {name for name in own.keys() & stored.keys() if own[name].shape != stored[name].shape}
    fresh = missing | {name for name in own if _is_classifier(name) and (other_classes or name in differ)}
    problems = array_mismatch.describe(
        {
            "missing there": _strict(missing),
            "unknown here": _strict(stored.keys() - own.keys()),
            "different": [
                f"{name} (got {list(stored[name].shape)}, expected {list(own[name].shape)})"
                for name in sorted(differ - fresh)
            ],
        }
    )
    if problems:
        raise UserError(
            "init_from",
            f"{source}, whose network is another one ({problems})",
            "this run's; only the classifier and the junctions may differ",
            "Change `init_from` or `model.name`.",
        )
    return fresh


def _strict(names: Iterable[str]) -> list[str]:
    """The arrays that both networks must have."""
    return sorted(name for name in names if not (_is_classifier(name) or "/junction/" in name))


def _is_classifier(name: str) -> bool:
    return "/classifier/" in name


def _flatten(tree: Any) -> _Arrays:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def _modules(names: Iterable[str]) -> str:
    """Names the modules that arrays belong to; those of params/blocks_3/junction/... belong to "junctions"."""
    modules = {"junctions" if "/junction/" in name else name.split("/")[1] for name in names}
    return ", ".join(sorted(modules)) or "nothing"
