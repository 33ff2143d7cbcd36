"""Opens test images whose labels mean what the network has learnt."""

import dataclasses

import jax

from skipnet_jax.data import sources, splits
from skipnet_jax.errors import UserError
from skipnet_jax.specs import DataSpec


def load_in_order(
    data: DataSpec, learnt: tuple[str, ...] | None, num_classes: int
) -> tuple[splits.DataSplit, DataSpec]:
    """Opens the test images with their classes in the order of the network's logits.

    A folder's classes are sorted by name. If the network has the same names in another order, its order wins. If the
    network has no names, folders that are named by numbers are sorted numerically.

    Raises:
      UserError: the network has learnt other classes.
    """
    split = sources.load(data, "test")
    names, order = split.class_names, None
    if data.name == "folder" and len(names) == num_classes and not data.classes:
        numbered = all(name.isdecimal() for name in names)
        if learnt is None:
            how = "in numeric order" if numbered else "in the order of their names"
            order = sorted(range(len(names)), key=lambda k: int(names[k])) if numbered else list(range(len(names)))
            shown = ", ".join(names[k] for k in order[:3]) + ", ..." * (len(names) > 3)
            if jax.process_index() == 0:
                print(f"the weights name no classes, so the folders stand for 0, 1, ... {how}: {shown}", flush=True)
        elif set(learnt) == set(names):
            order = [names.index(name) for name in learnt]
    if order is not None and order != list(range(len(names))):
        data = dataclasses.replace(data, classes=tuple(order))
        split = sources.load(data, "test")
    _require_classes(split, learnt, num_classes)
    return split, data


def _require_classes(split: splits.DataSplit, learnt: tuple[str, ...] | None, num_classes: int) -> None:
    """Checks that labels mean what the network has learnt; without names (None), compares only their number."""
    if split.num_classes != num_classes:
        got, expected = f"{split.num_classes} classes", f"the {num_classes} classes"
    elif learnt is not None and learnt != split.class_names:
        number = next(i for i, (one, other) in enumerate(zip(split.class_names, learnt, strict=True)) if one != other)
        got, expected = f"class {number} {split.class_names[number]!r}", f"{learnt[number]!r}, the class"
    else:
        return
    raise UserError(
        "data.name",
        f"{split.name} with {got}",
        f"{expected} that the network has learnt",
        "Change `data.name` or `data.dir`.",
    )
