"""Weights under torch's names: published weights come in, ours go out.

A state dict is a dict of arrays, so none of this needs torch. The keys themselves show whose names they are: the
original's, the author's for timm, timm's, torchvision's, or those of the papers of ConvNeXt and Swin.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from skipnet_jax.errors import UserError
from skipnet_jax.interop import layouts, recognition
from skipnet_jax.interop.naming import Path
from skipnet_jax.models import create_model, init_variables, model_info
from skipnet_jax.models.zoo import find

_log = logging.getLogger(__name__)

NEW_HEAD = "Give `num_classes`, and the classifier is made anew."


class Filled(NamedTuple):
    """A network's variables, filled from a state dict.

    Args:
      variables: {"params": ..., "batch_stats": ...} for `model.apply`.
      num_classes: width of the classifier.
      naming: whose names the keys are, a key of `recognition.TITLES`.
      fresh: paths, joined with slashes, of the arrays that are not in the state dict and have initial values.
    """

    variables: dict[str, Any]
    num_classes: int
    naming: str
    fresh: tuple[str, ...]


def from_state_dict(name: str, state_dict: Mapping[str, Any], *, num_classes: int | None = None) -> dict[str, Any]:
    """Turns weights from elsewhere into our variables, and logs whose names it recognised. Every key must fit.

    Args:
      state_dict: names -> arrays (anything that `numpy.asarray` takes); convolutions are [out, in / groups, h, w],
        linear layers [out, in].
      num_classes: the number of classes that the weights tell apart; None = as many as the classifier has.

    Returns:
      {"params": ..., "batch_stats": ...} for `model.apply`, in float32; float64 arrays stay float64 if JAX has x64
      enabled. A network without statistics has no "batch_stats".

    Raises:
      UserError: the keys are of several namings or of none, or some are missing, left over or of another shape; the
        message lists them all.
    """
    shapes = layouts.variable_shapes(name, num_classes or model_info(name).num_classes)
    naming = recognition.recognize(name, layouts.weights_in(state_dict), shapes)
    if num_classes is None:
        num_classes = _classes_in(name, state_dict, naming)
        shapes = layouts.variable_shapes(name, num_classes)
    _require_three_channels(name, state_dict, naming)
    variables, mismatches = layouts.translate(state_dict, _names(name, naming, shapes), shapes)
    named = set(_names(name, naming, shapes).values())
    mismatches += [f"missing: {'/'.join(path)}, which {naming} does not have" for path in shapes if path not in named]
    layouts.require_match(
        mismatches,
        f"state dict for {name} with {num_classes} classes, named as in {recognition.title(naming, name)}",
        model_info(name).published_name,
    )
    _log.info("%s: named as in %s", name, recognition.title(naming, name))
    return flax.traverse_util.unflatten_dict(variables)


def fill(name: str, state_dict: Mapping[str, Any], *, num_classes: int | None = None, seed: int = 0) -> Filled:
    """Fills a network with weights from elsewhere; only junctions and the classifier may keep initial values.

    All junctions are new if the weights are a plain network's. The classifier is new if `num_classes` differs from the
    weights' number of classes, or if the weights have no classifier.

    Args:
      name: of the network, with any junction.
      num_classes: of the classifier; None = as many as the weights have.

    Raises:
      UserError: as for `from_state_dict`, or the weights have no classifier and `num_classes` is None.
    """
    given = layouts.weights_in(state_dict)
    shapes = layouts.variable_shapes(name, num_classes or model_info(name).num_classes)
    naming = recognition.recognize(name, given, shapes)
    head = {key for key, path in _names(name, naming, shapes).items() if "classifier" in path}
    if num_classes is None:
        num_classes = _classes_in(name, given, naming)
        shapes = layouts.variable_shapes(name, num_classes)
        new_head = False
    else:
        new_head = not head & given.keys() or _classes_in(name, given, naming) != num_classes
    _require_three_channels(name, given, naming)
    names = _names(name, naming, shapes)
    if new_head:
        given = {key: value for key, value in given.items() if key not in head}
        names = {key: path for key, path in names.items() if key not in head}
    if not any("junction" in names[key] for key in names.keys() & given.keys()):
        names = {key: path for key, path in names.items() if "junction" not in path}
    variables, mismatches = layouts.translate(given, names, shapes)
    layouts.require_match(
        mismatches,
        f"state dict for {name} with {num_classes} classes, named as in {recognition.title(naming, name)}",
        model_info(name).published_name,
    )
    fresh = [path for path in shapes if path not in variables]
    if fresh:
        model = create_model(name, num_classes=num_classes)
        drawn = init_variables(model, jax.random.key(seed), model_info(name).image_size)
        initial = flax.traverse_util.flatten_dict(drawn)
        variables |= {path: initial[path] for path in fresh}
    unflat = flax.traverse_util.unflatten_dict(variables)
    return Filled(unflat, num_classes, naming, tuple("/".join(path) for path in fresh))


def to_state_dict(name: str, variables: Mapping[str, Any], naming: str = "original") -> dict[str, np.ndarray]:
    """The inverse of `from_state_dict`, bit for bit.

    Buffers without weights (`num_batches_tracked`, Swin's `relative_position_index`) are left out.

    Args:
      variables: {"params": ..., "batch_stats": ...}, with any number of classes.
      naming: whose names the keys get, a key of `recognition.TITLES`.

    Raises:
      UserError: the variables belong to another network, and the message lists every mismatch; or the naming does
        not have this network.
    """
    namings = recognition.namings_of(name)
    junction, _ = recognition.split(name)
    having = [key for key, each in namings.items() if junction == "add" or each.junctions]
    if naming not in having:
        raise UserError("naming", f"{naming!r} for {name}", f"one that has this network: {', '.join(having)}")
    ours = {path: np.asarray(array) for path, array in flax.traverse_util.flatten_dict(variables).items()}
    bias = ours.get(("params", "classifier", "bias"))
    shapes = layouts.variable_shapes(name, model_info(name).num_classes if bias is None else len(bias))
    mismatches = layouts.missing_and_extra(map("/".join, ours), map("/".join, shapes))
    mismatches += [
        f"shape: {'/'.join(path)} is {array.shape}, expected {shapes[path].shape}"
        for path, array in ours.items()
        if path in shapes and array.shape != shapes[path].shape
    ]
    layouts.require_match(mismatches, f"variables for {name}", f"{name} with its own gate_reduction")
    names = namings[naming].names(find(name)[0], shapes)
    return {key: layouts.to_torch_layout(ours[path], key, path[-1], namings[naming]) for key, path in names.items()}


def _names(name: str, naming: str, shapes: layouts.Shapes) -> dict[str, Path]:
    return recognition.namings_of(name)[naming].names(find(name)[0], shapes)


def _classes_in(name: str, state_dict: Mapping[str, Any], naming: str) -> int:
    """Reads the number of classes off the weight of the classifier.

    Raises:
      UserError: there is none.
    """
    key = recognition.namings_of(name)[naming].classifier
    if key not in state_dict:
        got = f"{len(state_dict)} keys without a classifier ({key!r}), as of a network that only makes features"
        raise UserError(f"state dict for {name}", got, "a whole network's", NEW_HEAD)
    array = layouts.real_array(state_dict[key])
    if array is None or array.ndim < 2 or not array.size:
        raise UserError(f"state dict for {name}", f"a {key!r} that is no matrix", "a classifier's weight", NEW_HEAD)
    return len(array)


def _require_three_channels(name: str, state_dict: Mapping[str, Any], naming: str) -> None:
    """Refuses weights for images with other than three channels.

    Raises:
      UserError: the message says how to go on.
    """
    key = recognition.namings_of(name)[naming].first_convolution
    array = layouts.real_array(state_dict.get(key))
    if array is None or array.ndim != 4 or array.shape[1] == 3:
        return
    channels = array.shape[1]
    way = "weight.repeat(1, 3, 1, 1) / 3" if channels == 1 else "weight[:, :3], if these are red, green and blue"
    raise UserError(
        f"state dict for {name}",
        f"weights for images of {channels} channel{'s' * (channels != 1)} ({key} is {list(array.shape)})",
        "3, since images have red, green and blue here",
        f"Make {key} fit in torch, for example by {way}, save the state dict, and convert that.",
    )
