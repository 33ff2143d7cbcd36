#!/usr/bin/env python
"""Turns PyTorch weights into a workdir, and back. `--mode=convert` does the first too.

From the original, its author's networks for timm, timm or torchvision: a file or a folder of weights
  python scripts/convert_torch.py skip_resnet50.ckpt runs/skip_resnet50

From a plain network, as the weights of all but the junctions of a gated one
  python scripts/convert_torch.py model.safetensors runs/start --model=skip_resnet50

From a workdir, trained or converted, to a file for the original or for another library
  python scripts/convert_torch.py weights.safetensors runs/skip_resnet50 --to-torch
  python scripts/convert_torch.py weights.pth runs/resnet50 --to-torch --naming=timm
"""

import argparse
import sys
from collections.abc import Sequence

from skipnet_jax.convert import WHICH, convert_checkpoint
from skipnet_jax.errors import UserError
from skipnet_jax.exports import torch_files
from skipnet_jax.interop import checkpoint_files, recognition

FLAGS = {"model.name": "--model"}  # how the user spells a field here, where it is not the field's own name
OWN = ("model", "checkpoint", "num_classes", "weights", "classes", "naming", "workdir", "timm", "seed")


def main(argv: Sequence[str]) -> int:
    """Converts weights; returns the exit status.

    Args:
      argv: the command line without the program's name.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help=f"ends with {', '.join(checkpoint_files.ENDINGS)}; or a folder with config.json")
    parser.add_argument("workdir", help="folder with the weights in JAX")
    parser.add_argument("--model", help="name of the network; only needed where the weights fit several")
    parser.add_argument("--timm", action="store_true", help="not needed: the naming is recognised")
    parser.add_argument("--num_classes", type=int, help="make a new classifier for this many classes")
    parser.add_argument("--weights", choices=WHICH, help="the averaged weights (default), or the raw ones beside them")
    parser.add_argument("--classes", help="file with the names of the classes, one per line")
    parser.add_argument("--seed", type=int, help="for the initial values of new arrays; default: 0")
    parser.add_argument("--to-torch", action="store_true", help="convert the workdir into the file")
    parser.add_argument("--naming", choices=recognition.TITLES, help="with --to-torch: whose names; default: original")
    parser.add_argument("--checkpoint", help="with --to-torch: best (the default), latest or a step")
    arguments = parser.parse_args(argv)
    try:
        _require_one_direction(arguments)
        if arguments.to_torch:
            torch_files.write(
                arguments.workdir,
                arguments.file,
                naming=arguments.naming or "original",
                checkpoint=arguments.checkpoint or "best",
                which=arguments.weights,
                model=arguments.model,
            )
        else:
            convert_checkpoint(
                arguments.workdir,
                source=arguments.file,
                model=arguments.model,
                num_classes=arguments.num_classes,
                weights=arguments.weights,
                classes=arguments.classes,
                seed=arguments.seed or 0,
            )
    except UserError as error:
        print(f"error: {error.message(_spell)}", file=sys.stderr)
        return 2
    return 0


def _require_one_direction(arguments: argparse.Namespace) -> None:
    """Refuses flags that this direction would ignore."""
    back = arguments.to_torch
    for name in ("timm", "num_classes", "classes", "seed") if back else ("naming", "checkpoint"):
        if getattr(arguments, name) not in (None, False):
            got = f"a value {'with' if back else 'without'} --to-torch"
            expected = f"none, since the flag is for {'weights from torch' if back else '--to-torch'}"
            mend = "Give --naming=timm." if name == "timm" else "Leave it out."
            raise UserError(name, got, expected, mend)


def _spell(field: str) -> str:
    return FLAGS.get(field, f"--{field}" if field in OWN else field)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
