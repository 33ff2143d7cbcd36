"""Converts weights from elsewhere into a workdir (`--mode=convert`): published ones, a file, or a folder of the hub.

The workdir also records how images are prepared, and the names of the classes. Missing names are never guessed.
"""

import pathlib
from collections.abc import Sequence

from skipnet_jax.data import class_names
from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, pretrained, recognition, torch_weights
from skipnet_jax.runs import weights as run_weights

IMAGENET_21K = (21843, 21841)  # class counts of heads for ImageNet-21k
WHICH = ("ema", "raw")


def convert_checkpoint(
    workdir: str,
    *,
    source: str | None = None,
    pretrained_name: str | None = None,
    model: str | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    classes: str | None = None,
    seed: int = 0,
) -> None:
    """Writes the weights to a workdir for evaluate, predict, explain, export and `init_from`, and prints what it found.

    Args:
      workdir: a new or empty folder.
      source: a weight file, or a folder of the Hugging Face hub. Either this or `pretrained_name`.
      pretrained_name: a network whose author published weights; they are downloaded.
      model: name of the network; None = recognised by the names and shapes of the arrays. A gated network may take the
        weights of its plain counterpart; its junctions are then new.
      num_classes: size of a new classifier, if the weights have none or one of another size; None = keep theirs.
      weights: "ema", "raw" or None, as for `checkpoint_files.read`.
      classes: a file with the names of the classes, one per line.
      seed: for the initial values of new arrays.

    Raises:
      UserError: something does not fit. Then nothing is written.
    """
    if (source is None) == (pretrained_name is None):
        got = "both --from and --pretrained" if source else "neither --from nor --pretrained"
        raise UserError("convert", got, "one of them", "Give --from=FILE, or --pretrained=skip_resnet50.")
    if weights not in (None, *WHICH):
        raise UserError("weights", repr(weights), f"one of {', '.join(WHICH)}", "Change `weights`.")
    if num_classes is not None and num_classes < 2:
        raise UserError("num_classes", f"{num_classes}", "2 or more", "Change `num_classes`.")
    run_weights.require_new(workdir)
    path = pathlib.Path(source).expanduser() if source is not None else pretrained.fetch(str(pretrained_name))
    read = checkpoint_files.read(path, weights)
    published = pretrained_name or pretrained.identify(path)
    companion = pretrained.companion(published) if published else read.companion
    try:
        name = model or published or recognition.find_network(read.state_dict, read.model)
        _require_recorded(name, published or read.model, path)
        filled = torch_weights.fill(name, read.state_dict, num_classes=num_classes, seed=seed)
    except UserError as error:
        field = "model" if error.field == "model.name" else error.field
        raise UserError(field, error.got, error.expected, error.mend.replace("`model.name`", "`model`")) from error
    new_head = any(array.startswith("params/classifier/") for array in filled.fresh)
    names = () if new_head else companion.class_names
    if classes is not None:
        names = class_names.read("classes", classes, filled.num_classes)
    elif names:
        class_names.require_names("classes", str(path), names, filled.num_classes)
    origin = run_weights.Origin(name, filled.num_classes, str(path), filled.fresh, companion.preparation, names)
    run_weights.save(workdir, origin, filled.variables)
    for line in _describe(name, filled, names, read.told, origin, seed):
        print(line, flush=True)
    print(f"{name} with {filled.num_classes} classes: {path} -> {workdir}", flush=True)


def _require_recorded(name: str, recorded: str | None, path: pathlib.Path) -> None:
    """Refuses a network that the file does not name, except the gated version of a plain network.

    Raises:
      UserError: says which network the file names.
    """
    if recorded in (None, name) or recorded == recognition.split(name)[1]:
        return
    raise UserError("model.name", repr(name), f"{recorded!r}, the network that {path} names", "Leave out `model.name`.")


def _describe(
    name: str,
    filled: torch_weights.Filled,
    names: Sequence[str],
    told: Sequence[str],
    origin: run_weights.Origin,
    seed: int,
) -> list[str]:
    """What was found, one line each."""
    lines = [line.replace("`weights`", "--weights") for line in told]
    lines.append(f"named as in {recognition.title(filled.naming, name)}")
    if filled.num_classes in IMAGENET_21K:
        lines.append(f"{filled.num_classes:,} classes, as many as ImageNet-21k has; --num_classes makes a new head")
    known = origin.preparation
    parts = [f"{known.image_size} px"] if known.image_size else []
    parts += [f"mean {known.mean}, std {known.std}"] if known.mean else []
    parts += [f"crop {known.crop}"] if known.crop else []
    parts += [known.interpolation] if known.interpolation else []
    lines.append(f"images: {', '.join(parts) or 'the file says nothing, so as published for the network'}")
    if names:
        lines.append(f"classes: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    else:
        lines.append("classes: the weights name none; --classes=FILE does")
    if filled.fresh:
        modules = ", ".join(dict.fromkeys("/".join(path.split("/")[1:-1][:2]) for path in filled.fresh))
        lines.append(f"{len(filled.fresh)} arrays are not in the file and have initial values (seed {seed}): {modules}")
    return lines
