"""The weights that the author published: five networks for ImageNet.

Source: release v20220420 of github.com/takedarts/skipresnet-pretrained (MIT). By torch hub's convention a file's name
ends with the beginning of its SHA-256.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

from skipnet_jax.data import class_names
from skipnet_jax.data.statistics import IMAGENET
from skipnet_jax.errors import UserError
from skipnet_jax.interop import checkpoint_files, downloads, torch_weights
from skipnet_jax.interop.hub_config import Companion, Preparation
from skipnet_jax.models import create_model
from skipnet_jax.models.network import Network

ADDRESS = "https://github.com/takedarts/skipresnet-pretrained/releases/download/v20220420"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file.

    Args:
      check: absolute value of the sum of the network's 1000 logits for one image [256, 256, 3] of ones, within 1e-3.
    """

    file: str
    check: float

    @property
    def sha256(self) -> str:
        """The beginning of the file's SHA-256."""
        return self.file.rpartition("-")[2].removesuffix(".pth")


PUBLISHED = {
    "skip_resnet34": Published("skipresnet34-b489f850.pth", 1.0498065948486328),
    "skip_resnet50": Published("skipresnet50-c24b1e79.pth", 2.5082178115844727),
    "skip_resnet101": Published("skipresnet101-c36370cc.pth", 2.6629934310913086),
    "skip_resnext50_32x4d": Published("skipresnext50_32x4d-ee04428b.pth", 2.590874195098877),
    "skip_resnext101_32x4d": Published("skipresnext101_32x4d-5389c356.pth", 3.639589309692383),
}
PREPARATION = Preparation(224, IMAGENET.mean, IMAGENET.std, 0.875, "bilinear")


def load_pretrained(name: str) -> tuple[Network, dict[str, Any]]:
    """Makes a network with the weights that its author published; the first call downloads them to the user's cache.

    Args:
      name: such as "skip_resnet50".

    Returns:
      The network for ImageNet's 1000 classes, and {"params": ..., "batch_stats": ...} for `model.apply`. The network
      expects images normalised by ImageNet's mean and standard deviation.

    Raises:
      UserError: no weights of this network are published, or the file cannot be downloaded.
    """
    weights = checkpoint_files.read(fetch(name))
    return create_model(name), torch_weights.from_state_dict(name, weights.state_dict, num_classes=1000)


def fetch(name: str) -> pathlib.Path:
    """Returns the place of a published file in the user's cache, and downloads it first if it is not there.

    Raises:
      UserError: no weights of this network are published, or the file cannot be downloaded.
    """
    if name not in PUBLISHED:
        raise UserError("pretrained", repr(name), f"a network with published weights: {', '.join(PUBLISHED)}")
    return downloads.fetch(f"{ADDRESS}/{PUBLISHED[name].file}", PUBLISHED[name].sha256)


def identify(path: pathlib.Path) -> str | None:
    """Tells which published file this is, by its content; None if it is none of them."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return next((name for name, each in PUBLISHED.items() if digest.startswith(each.sha256)), None)


def companion(name: str) -> Companion:
    """What is known about a published file: ImageNet's class names, and how images were prepared."""
    return Companion(name, PREPARATION, class_names.imagenet())
