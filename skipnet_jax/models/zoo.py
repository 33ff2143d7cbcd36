"""The table of networks: a plain network's name -> its architecture. A junction's prefix makes six more of each.

The rows with their numbers stand in the family's file; here they meet the junctions.
"""

import difflib
import fnmatch

from skipnet_jax.models.families import convnext, pyramidnet, regnet, resnet, swin, wide_resnet
from skipnet_jax.models.junctions import JUNCTIONS, Junction
from skipnet_jax.models.network import Architecture

NETWORKS: dict[str, Architecture] = {
    **resnet.NETWORKS,
    **wide_resnet.NETWORKS,
    **pyramidnet.NETWORKS,
    **regnet.NETWORKS,
    **convnext.NETWORKS,
    **swin.NETWORKS,
}


def list_models(pattern: str = "*") -> list[str]:
    """All names, or those that match a shell pattern, such as `skip_*`."""
    prefixes = ["" if junction == "add" else f"{junction}_" for junction in JUNCTIONS]
    return fnmatch.filter((prefix + network for network in NETWORKS for prefix in prefixes), pattern)


def find(name: str) -> tuple[Architecture, Junction]:
    """The architecture and the junction behind a name.

    Raises:
      ValueError: the name is unknown; the message lists the nearest ones.
    """
    if name in NETWORKS:
        return NETWORKS[name], JUNCTIONS["add"]
    prefix, _, network = name.partition("_")
    if network in NETWORKS and prefix in JUNCTIONS and prefix != "add":
        return NETWORKS[network], JUNCTIONS[prefix]
    nearest = difflib.get_close_matches(name, list_models(), n=5, cutoff=0.0)
    raise ValueError(
        f"model.name: got {name!r}, expected a name of skipnet_jax.models.list_models(). "
        f"Nearest: {', '.join(nearest)}. Change --config.model.name."
    )
