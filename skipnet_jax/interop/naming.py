"""How others name the arrays of our networks.

Our tree has the same modules as theirs, so a path becomes a name component by component. Each file `*_names.py` holds
the tables of one origin.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from skipnet_jax.models.network import Architecture

Path = tuple[str, ...]  # of an array in our variables, the collection first

# Ours -> torch's: what every torch module calls its arrays.
LEAVES = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)

# Buffers that hold no weights.
IGNORED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask|^n_averaged)$")

NOTHING = r"(?!)"  # matches no name


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names of one origin in one family of networks.

    Args:
      block: a block's name, with the numbers `{index}` (in the network), `{stage}` and `{block}` (within the stage)
        counted from 0, or `{stage1}` and `{block1}` counted from 1; `{odd}` numbers the stages 1, 3, 5, ...; `{pair}`
        counts two of our blocks as one.
      renames: ours -> theirs, (pattern, replacement) applied in order to a path whose block has its name already.
      convolutions: pattern of the names of linear maps that are 1x1 convolutions there, [out, in, 1, 1].
      columns: pattern of the names of vectors that are [c, 1, 1] there.
      junctions: whether the origin has junctions. If not, these names cover all other arrays.
    """

    block: str
    renames: tuple[tuple[str, str], ...]
    convolutions: str = NOTHING
    columns: str = NOTHING
    junctions: bool = False

    def names(self, architecture: Architecture, paths: Iterable[Path]) -> dict[str, Path]:
        """Maps their name for each array to our path, without the junctions where the origin has none."""
        blocks = self.block_names(architecture)
        shared = [path for path in paths if self.junctions or "junction" not in path]
        return {rename([blocks.get(part, part) for part in path[1:]], self.renames): path for path in shared}

    def block_names(self, architecture: Architecture) -> dict[str, str]:
        """Our name for each block -> theirs."""
        names = {}
        stage = block = 0
        for i, each in enumerate(architecture.blocks):
            if i and each.stride != 1:
                stage, block = stage + 1, 0
            numbers = {
                "index": i,
                "stage": stage,
                "stage1": stage + 1,
                "odd": 2 * stage + 1,
                "block": block,
                "block1": block + 1,
                "pair": block // 2,
            }
            names[f"blocks_{i}"] = self.block.format_map(numbers)
            block += 1
        return names

    @property
    def classifier(self) -> str:
        """Their name for the classifier's weight."""
        return rename(("classifier", "kernel"), self.renames)

    @property
    def first_convolution(self) -> str:
        """Their name for the weight that sees the image."""
        deep = rename(("stem", "conv1", "kernel"), self.renames)
        return deep if deep != "stem.conv1.weight" else rename(("stem", "conv", "kernel"), self.renames)


def rename(path: Sequence[str], renames: Sequence[tuple[str, str]]) -> str:
    """Joins a path with dots and applies (pattern, replacement) pairs in order."""
    name = ".".join(path)
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
