#!/usr/bin/env python
"""Turns PyTorch weights into a workdir, and back.

Weights of the original: a checkpoint of PyTorch Lightning, a bare state dict (.ckpt, .pt, .pth), or .safetensors
  python scripts/convert_torch.py skip_resnet50.ckpt runs/skip_resnet50 --model=skip_resnet50

ImageNet weights of timm, for a plain network, or for all but the junctions of another
  python scripts/convert_torch.py model.safetensors runs/start --model=skip_resnet50 --timm

A workdir, of a run or converted, as a file for the original
  python scripts/convert_torch.py weights.safetensors runs/skip_resnet50 --to-torch
"""

import argparse
import sys
from collections.abc import Sequence

from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, recognition, torch_weights
from skipnet_jax.runs import weights

FLAGS = {"model.name": "--model", "checkpoint": "--checkpoint"}  # how the user spells a field here


def main(argv: Sequence[str]) -> int:
    """Converts weights; returns the exit status.

    Args:
      argv: the command line without the program's name.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help=f"ends with {', '.join(checkpoint_files.ENDINGS)}")
    parser.add_argument("workdir", help="folder with the weights in JAX")
    parser.add_argument("--model", help="name of the network; not needed if the file's config tells it")
    parser.add_argument("--timm", action="store_true", help="the file has timm's names, not the original's")
    parser.add_argument("--seed", type=int, default=0, help="for the initial values of what timm does not have")
    parser.add_argument("--to-torch", action="store_true", help="convert the workdir into the file")
    parser.add_argument("--checkpoint", default="best", help="with --to-torch: best, latest or a step")
    arguments = parser.parse_args(argv)
    try:
        if arguments.to_torch:
            _to_torch(arguments)
        else:
            _from_torch(arguments)
    except UserError as error:
        print(f"error: {error.message(lambda field: FLAGS.get(field, field))}", file=sys.stderr)
        return 2
    return 0


def _from_torch(arguments: argparse.Namespace) -> None:
    read = checkpoint_files.read(arguments.file)
    _require_same(arguments, read.model, arguments.file)
    name = arguments.model or recognition.find_network(read.state_dict, read.model)
    variables, num_classes, _, fresh = torch_weights.fill(name, read.state_dict, seed=arguments.seed)
    origin = weights.Origin(name, num_classes, source=arguments.file, fresh=fresh)
    weights.save(arguments.workdir, origin, variables)
    print(f"{name} with {num_classes} classes: {arguments.file} -> {arguments.workdir}")
    if fresh:
        modules = dict.fromkeys("/".join(path.split("/")[1:3]) for path in fresh)
        kept = f"keep their initial values (seed {arguments.seed})"
        print(f"{len(fresh)} arrays are not in the file and {kept}: {', '.join(modules)}")


def _require_same(arguments: argparse.Namespace, recorded: str | None, where: str) -> None:
    if None not in (arguments.model, recorded) and arguments.model != recorded:
        raise UserError(
            "model.name", repr(arguments.model), f"{recorded!r}, the network in {where}", "Leave out `model.name`."
        )


def _to_torch(arguments: argparse.Namespace) -> None:
    read = weights.load(arguments.workdir, arguments.checkpoint, averaged=False)
    model = read.spec.model
    if model.gate_reduction or model.dtype == "float64":
        raise UserError(
            "workdir",
            f"model.gate_reduction={model.gate_reduction} and model.dtype={model.dtype} in {arguments.workdir}",
            "the network's own gate_reduction (0) and parameters in float32, since torch's networks have no others",
        )
    _require_same(arguments, model.name, arguments.workdir)
    checkpoint_files.write(arguments.file, torch_weights.to_state_dict(model.name, read.variables), model.name)
    print(f"{model.name}: {arguments.workdir} ({arguments.checkpoint}) -> {arguments.file}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
