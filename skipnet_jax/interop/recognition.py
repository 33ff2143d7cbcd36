"""Recognises whose names a state dict's keys are, and which network has them."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax

from skipnet_jax.errors import UserError
from skipnet_jax.interop import author_names, layouts, paper_names, timm_names, torchvision_names
from skipnet_jax.interop.naming import Naming, Path
from skipnet_jax.interop.original_names import ORIGINAL
from skipnet_jax.models import abstract_variables, list_models, model_info
from skipnet_jax.models.junctions import JUNCTIONS
from skipnet_jax.models.network import Network
from skipnet_jax.models.zoo import NETWORKS, find
from skipnet_jax.specs import ModelSpec

ALIKE = 0.5  # share of the names that must agree for keys to count as a naming's
_SOME = 5  # keys that a message shows
TITLES = {
    "original": "the original",
    "author": "the author's networks for timm",
    "timm": "timm",
    "torchvision": "torchvision",
    "paper": "the paper's own code",
}


def split(name: str) -> tuple[str, str]:
    """A network's junction and its plain network.

    Raises:
      UserError: the name is unknown.
    """
    find(name)
    prefix, _, plain = name.partition("_")
    return (prefix, plain) if name not in NETWORKS else ("add", name)


def namings_of(name: str) -> dict[str, Naming]:
    """The namings that a network has elsewhere, by their keys in `TITLES`."""
    _, plain = split(name)
    namings = {"original": ORIGINAL}
    if name in author_names.NETWORKS:
        namings["author"] = author_names.NETWORKS[name][1]
    if plain in timm_names.NETWORKS:
        namings["timm"] = timm_names.NETWORKS[plain][1]
    if plain in torchvision_names.NETWORKS:
        namings["torchvision"] = torchvision_names.NETWORKS[plain][1]
    family = plain.partition("_")[0]
    if family in paper_names.NAMINGS:
        namings["paper"] = paper_names.NAMINGS[family]
    return namings


def title(naming: str, name: str) -> str:
    """Where a naming of a network is from, for messages that say "named as in ..."."""
    same = naming == "timm" and split(name)[1] in torchvision_names.SAME_AS_TIMM
    return "timm and torchvision" if same else TITLES[naming]


def recognize(name: str, keys: Iterable[str], paths: Iterable[Path]) -> str:
    """Tells whose names the keys are.

    Args:
      paths: of all our arrays of this network.

    Returns:
      A key of `TITLES`.

    Raises:
      UserError: the keys mix several namings, or fit none; the message names the nearest.
    """
    given = {str(key) for key in keys}
    architecture, paths = find(name)[0], list(paths)
    names = {key: set(naming.names(architecture, paths)) for key, naming in namings_of(name).items()}
    shared = {key: len(given & theirs) for key, theirs in names.items()}
    likeness = {key: 2 * shared[key] / (len(given) + len(theirs)) for key, theirs in names.items()}
    best = max(likeness, key=likeness.__getitem__)
    where = f"state dict for {name}"
    for other in names.keys() - {best}:
        foreign = (given & names[other]) - names[best]
        own = (given & names[best]) - names[other]
        if foreign and own:
            raise UserError(
                where,
                f"keys of several namings, {len(own)} only in {TITLES[best]} ({_some(own)}) and {len(foreign)} only in "
                f"{TITLES[other]} ({_some(foreign)})",
                "keys of one",
                "Leave out those of the other.",
            )
    if likeness[best] < ALIKE:
        raise UserError(
            where,
            f"{len(given)} keys ({_some(given)}) of none of the namings known for it",
            ", or ".join(f"names as in {TITLES[key]} ({_some(theirs)})" for key, theirs in names.items()),
            f"The nearest is {TITLES[best]}, with {shared[best]} of its {len(names[best])} names. Give the network "
            "whose weights these are, or rename the keys.",
        )
    return best


def find_network(state_dict: Mapping[str, Any], recorded: str | None = None) -> str:
    """Finds the network whose arrays have the names and shapes of a state dict; the classifier may have any width.

    Args:
      state_dict: names -> arrays.
      recorded: the network that the file names, if it does; decides between networks with the same arrays.

    Raises:
      UserError: none fits, or several do.
    """
    given = layouts.weights_in(state_dict)
    prefixes = _prefixes(given)
    ranked = []
    for plain in NETWORKS:
        for key, naming in (namings_of(f"skip_{plain}") | namings_of(plain)).items():
            blocks = set(naming.block_names(NETWORKS[plain]).values())
            if blocks & prefixes:
                ranked.append((len(blocks & prefixes) / len(blocks | _like(naming, prefixes)), plain, key, naming))
    most_alike = max((likeness for likeness, *_ in ranked), default=0.0)
    nearest = [
        (_fitting_start(plain, naming, given), plain, key)
        for likeness, plain, key, naming in ranked
        if likeness == most_alike >= ALIKE
    ]
    whole = dict.fromkeys(plain for fitting, plain, _ in nearest if most_alike == fitting == 1)
    fits = [name for plain in whole for name in _fits(plain, given)]
    if recorded in fits:
        return recorded
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UserError(
            "model.name",
            f"nothing, and weights that fit {len(fits)} networks",
            f"one of {', '.join(fits)}",
            "Name the network that was trained; these differ in what they compute, not in their arrays.",
        )
    if recorded is not None:
        return recorded  # its own check says what does not fit
    if nearest:
        _, plain, key = max(nearest, key=lambda entry: entry[0])
        return f"skip_{plain}" if key == "author" else plain
    raise UserError(
        "model.name",
        f"nothing, and {len(given)} keys of no known network ({_some(given)})",
        f"weights of a network here, named as in {', '.join(TITLES.values())}",
        f"The networks are {', '.join(NETWORKS)}, with any junction.",
    )


def from_recorded(text: object) -> str | None:
    """Our name for the network that a file names: by our, the published, the author's, timm's or torchvision's name.

    Args:
      text: such as "Skip-ResNet-50", "skipresnet50" or "resnet18.a1_in1k".
    """
    text = str(text)
    known = {model_info(name).published_name: name for name in list_models()}
    for networks in (torchvision_names.NETWORKS, timm_names.NETWORKS, author_names.NETWORKS):
        known |= {theirs: name for name, (theirs, _) in networks.items()}
    known |= {name: name for name in list_models()}
    return known.get(text) or known.get(text.partition(".")[0])


def _fits(plain: str, given: Mapping[str, Any]) -> list[str]:
    """The networks made from this plain one, by any junction, that have exactly the state dict's arrays."""
    found = []
    for junction in JUNCTIONS:
        name = plain if junction == "add" else f"{junction}_{plain}"
        for naming in namings_of(name).values():
            if junction != "add" and not naming.junctions:
                continue  # the origin has plain networks only
            shapes = layouts.variable_shapes(name, model_info(name).num_classes)
            if _agree(naming.names(find(name)[0], shapes), shapes, given):
                found.append(name)
                break
    return found


def _agree(names: Mapping[str, Path], shapes: layouts.Shapes, given: Mapping[str, Any]) -> bool:
    """Whether all arrays but the classifier's are there with their shapes, and no others."""
    own = {key: path for key, path in names.items() if "classifier" not in path}
    head = names.keys() - own.keys()
    return given.keys() - head == own.keys() and all(_same_shape(given[key], path, shapes) for key, path in own.items())


def _same_shape(value: Any, path: Path, shapes: layouts.Shapes) -> bool:
    array, shape = layouts.real_array(value), shapes[path].shape
    return array is not None and layouts.to_our_layout(array, path[-1], len(shape)).shape == shape


def _fitting_start(plain: str, naming: Naming, given: Mapping[str, Any]) -> float:
    """Of the arrays of the stem and the first two blocks, without junctions, the share that fit in name and shape.

    This takes a tenth of the time of the whole network.
    """
    architecture, junction = find(plain)
    start = dataclasses.replace(architecture, blocks=architecture.blocks[:2])
    network = Network(start, junction, ModelSpec(plain, num_classes=2))
    variables = abstract_variables(network, 64)
    shapes = {
        path: leaf
        for path, leaf in flax.traverse_util.flatten_dict(variables).items()
        if path[1] not in ("classifier", "classifier_norm", "head_norm")
    }
    names = naming.names(architecture, shapes)
    fitting = [name in given and _same_shape(given[name], path, shapes) for name, path in names.items()]
    return sum(fitting) / len(fitting)


def _prefixes(keys: Iterable[str]) -> set[str]:
    """All beginnings of the keys that end before a dot."""
    found: set[str] = set()
    for key in keys:
        parts = str(key).split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts))}
    return found


def _like(naming: Naming, prefixes: set[str]) -> set[str]:
    """The prefixes that look like a block's name in this naming."""
    pattern = re.compile(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(naming.block)))
    return {prefix for prefix in prefixes if pattern.fullmatch(prefix)}


def _some(keys: Iterable[str]) -> str:
    keys = sorted(map(str, keys))
    return ", ".join(keys[:_SOME]) + (", ..." if len(keys) > _SOME else "")
