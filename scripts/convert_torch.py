#!/usr/bin/env python
"""Weights of PyTorch into a workdir, and back.

The original's weights: a checkpoint of PyTorch Lightning or a bare state dict (.ckpt, .pt, .pth), or .safetensors
  python scripts/convert_torch.py skip_resnet50.ckpt runs/skip_resnet50 --model=skip_resnet50

timm's ImageNet weights into a plain network, or into all but the junctions of another
  python scripts/convert_torch.py model.safetensors runs/start --model=skip_resnet50 --timm

A workdir, of a run or converted, into the original's form
  python scripts/convert_torch.py weights.safetensors runs/skip_resnet50 --to-torch
"""

import argparse
import sys
from collections.abc import Sequence

from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, timm_weights, torch_weights
from skipnet_jax.runs import weights


def main(argv: Sequence[str]) -> int:
    """Converts as the command line says.

    Args:
      argv: the command line without the program's name.

    Returns:
      Exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help=f"{', '.join(checkpoint_files.ENDINGS)}")
    parser.add_argument("workdir", help="folder with the weights in JAX")
    parser.add_argument("--model", help="name of the network; needless where the file's config tells it")
    parser.add_argument("--timm", action="store_true", help="the file has timm's names, not the original's")
    parser.add_argument("--seed", type=int, default=0, help="of what timm's weights do not cover")
    parser.add_argument("--to-torch", action="store_true", help="from the workdir into the file")
    parser.add_argument("--checkpoint", default="best", help="with --to-torch: best, latest or a step")
    arguments = parser.parse_args(argv)
    try:
        if arguments.to_torch:
            _to_torch(arguments)
        else:
            _from_torch(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _from_torch(arguments: argparse.Namespace) -> None:
    read = checkpoint_files.read(arguments.file)
    name = _network(arguments, read.model)
    fresh: list[str] = []
    if arguments.timm:
        variables, fresh = timm_weights.from_timm(name, read.state_dict, seed=arguments.seed)
    else:
        num_classes = torch_weights.num_classes_of(read.state_dict)
        variables = torch_weights.from_state_dict(name, read.state_dict, num_classes=num_classes)
    num_classes = len(variables["params"]["classifier"]["bias"])
    origin = weights.Origin(name, num_classes, source=arguments.file, fresh=tuple(fresh))
    weights.save(arguments.workdir, origin, variables)
    print(f"{name} with {num_classes} classes: {arguments.file} -> {arguments.workdir}")
    if fresh:
        modules = dict.fromkeys("/".join(path.split("/")[1:3]) for path in fresh)
        print(f"{len(fresh)} arrays are not in the file and stay fresh (seed {arguments.seed}): {', '.join(modules)}")


def _network(arguments: argparse.Namespace, recorded: str | None) -> str:
    if arguments.model is None and recorded is None:
        raise ValueError(
            f"--model: got nothing, and {arguments.file} does not tell; expected the network. Give --model=..."
        )
    if arguments.model is not None and recorded not in (None, arguments.model):
        raise ValueError(
            f"--model: got {arguments.model!r}, expected {recorded!r}, which the config in {arguments.file} names. "
            f"Leave out --model."
        )
    return arguments.model or recorded


def _to_torch(arguments: argparse.Namespace) -> None:
    read = weights.load(arguments.workdir, arguments.checkpoint, averaged=False)
    model = read.spec.model
    name = model.name
    if model.gate_reduction or model.dtype == "float64":
        raise UserError(
            "workdir",
            f"model.gate_reduction={model.gate_reduction} and model.dtype={model.dtype} in {arguments.workdir}",
            "the network's own gate_reduction (0) and parameters in float32, since torch's networks have no others",
        )
    if arguments.model not in (None, name):
        raise ValueError(f"--model: got {arguments.model!r}, expected {name!r}, which is in {arguments.workdir}.")
    checkpoint_files.write(arguments.file, torch_weights.to_state_dict(name, read.variables), name)
    print(f"{name}: {arguments.workdir} ({arguments.checkpoint}) -> {arguments.file}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
