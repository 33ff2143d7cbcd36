"""The same networks in PyTorch, for comparison.

    pip install -e ".[peer]"

Plain networks are timm's, except the CIFAR ResNets, which are written here. Gated networks replace each addition by a
gate. Gates and CIFAR ResNets are written as a PyTorch user would write them, without tricks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

import scripts.benchmarks.torchvision_operators  # noqa: F401

# isort: split
import timm
from timm.models import convnext, regnet, resnet

from skipnet_jax.errors import UserError
from skipnet_jax.interop import timm_names
from skipnet_jax.models import model_info

VERSIONS = (f"PyTorch {torch.__version__}", f"timm {timm.__version__}")

CIFAR = {"resnet20": 3, "resnet110": 18}  # blocks per stage
CIFAR_WIDTHS = (16, 32, 64)
CIFAR_REDUCTION, IMAGENET_REDUCTION = 2, 8  # of the gates
UNGATED = (timm_names.SWIN,)  # families without a gated form here

Parts = tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]  # branch, shortcut, activation


def create(name: str, image_size: int) -> nn.Module:
    """Builds the network of this name, with as many parameters as ours.

    Args:
      image_size: side of the square images, in pixels.

    Raises:
      UserError: there is no such network, or its number of parameters differs.
    """
    require(name, image_size)
    return _build(name, image_size)


def require(name: str, image_size: int) -> None:
    """Raises as `create` would, without making any array."""
    with torch.device("meta"):
        params = count_params(_build(name, image_size))
    ours = model_info(name).params
    if params != ours:
        raise UserError("--peer", f"{params:,} parameters in PyTorch's {name} at {image_size} px", f"{ours:,}, as here")


def names() -> list[str]:
    """All networks that exist here in PyTorch."""
    plain = [*CIFAR, *timm_names.NETWORKS]
    gated = [f"skip_{name}" for name in plain if name in CIFAR or timm_names.NETWORKS[name][1] not in UNGATED]
    return [*plain, *gated]


def count_params(network: nn.Module) -> int:
    """The number of parameters, without running statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


def _build(name: str, image_size: int) -> nn.Module:
    if name not in names():
        raise UserError(
            "--peer",
            f"{name}",
            f"a network that exists in PyTorch: {', '.join(CIFAR)}, all ResNets for ImageNet, RegNets and ConvNeXts, "
            f"plain and skip_; Swins, plain only",
        )
    plain = name.removeprefix("skip_")
    if plain in CIFAR:
        return CifarResNet(CIFAR[plain], model_info(name).num_classes, gated=plain != name)
    timm_name, naming = timm_names.NETWORKS[plain]
    num_classes = model_info(name).num_classes
    if naming is timm_names.SWIN:
        return timm.create_model(timm_name, num_classes=num_classes, img_size=image_size)
    if naming in (timm_names.RESNET, timm_names.RESNET_D):  # as here: no zeros in the last norm
        network = timm.create_model(timm_name, num_classes=num_classes, zero_init_last=False)
    else:
        network = timm.create_model(timm_name, num_classes=num_classes)
    return network if plain == name else _with_gates(network)


class Gate(nn.Module):
    """Attention over the branch and the states: concatenate, pool, two linear layers, weighted sum.

    Source: Takeda, MIRU2020.
    """

    def __init__(self, channels: int, states: int, reduction: int, norm: Callable[[int], nn.Module], act: nn.Module):
        super().__init__()
        width, hidden = (1 + states) * channels, -(-max(channels // reduction, 1) // 8) * 8
        self.reduce = nn.Linear(width, hidden, bias=False)
        self.norm = norm(hidden)
        self.act = act
        self.expand = nn.Linear(hidden, width)

    def forward(self, y: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        v = torch.cat([y, *states], dim=1).mean((2, 3))
        a = self.expand(self.act(self.norm(self.reduce(v))))
        a = a.unflatten(1, (1 + len(states), -1))[..., None, None]
        weights = a[:, 1:].softmax(dim=1)
        return a[:, 0].sigmoid() * y + sum(weights[:, k] * state for k, state in enumerate(states))


class GatedStage(nn.Module):
    """The blocks of one section, which see each other's states.

    Args:
      downsample: applied before the first block.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        channels: int,
        reduction: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
        act: Callable[[], nn.Module] = nn.ReLU,
        downsample: nn.Module | None = None,
    ):
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        counts = (len(distances(i)) for i in range(len(blocks)))
        self.gates = nn.ModuleList(Gate(channels, count, reduction, norm, act()) for count in counts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        states: list[torch.Tensor] = []
        for i, (block, gate) in enumerate(zip(self.blocks, self.gates, strict=True)):
            y, z, act = PARTS[type(block)](block, x)
            states.append(z)
            x = act(gate(y, [states[i - distance] for distance in distances(i)]))
        return x


def distances(reach: int) -> list[int]:
    """Distances to the states that a block sees, with `reach` blocks of its section before it."""
    return [2**k - 1 for k in range(10) if 2**k - 1 <= reach]


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.act2 = nn.ReLU(inplace=True)
        self.se = self.downsample = None
        if stride != 1 or inputs != features:
            conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, z, act = _basic(self, x)
        return act(y + z)


class CifarResNet(nn.Module):
    """The CIFAR ResNet, with 1x1 convolutions as shortcuts between stages.

    Source: He et al., CVPR 2016, section 4.2.
    """

    def __init__(self, depth: int, num_classes: int, *, gated: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, CIFAR_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CIFAR_WIDTHS[0])
        self.act1 = nn.ReLU(inplace=True)
        stages, inputs = [], CIFAR_WIDTHS[0]
        for features in CIFAR_WIDTHS:
            blocks = [CifarBlock(inputs, features, 1 if features == inputs else 2)]
            blocks += [CifarBlock(features, features, 1) for _ in range(depth - 1)]
            stages.append(GatedStage(blocks, features, CIFAR_REDUCTION) if gated else nn.Sequential(*blocks))
            inputs = features
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _with_gates(network: nn.Module) -> nn.Module:
    """Replaces each addition in timm's network by a gate."""
    widths = [stage["num_chs"] for stage in network.feature_info[-4:]]
    if isinstance(network, convnext.ConvNeXt):
        for i, (stage, width) in enumerate(zip(network.stages, widths, strict=True)):
            network.stages[i] = GatedStage(
                stage.blocks, width, IMAGENET_REDUCTION, _layer_norm, nn.GELU, stage.downsample
            )
        return network
    prefix = "s" if isinstance(network, regnet.RegNet) else "layer"
    for i, width in enumerate(widths, start=1):
        blocks = list(getattr(network, f"{prefix}{i}").children())
        setattr(network, f"{prefix}{i}", GatedStage(blocks, width, IMAGENET_REDUCTION))
    return network


def _layer_norm(features: int) -> nn.Module:
    return nn.LayerNorm(features, eps=1e-6)


def _basic(block: nn.Module, x: torch.Tensor) -> Parts:
    y = block.act1(block.bn1(block.conv1(x)))
    y = block.bn2(block.conv2(y))
    return _excited(block, y), _shortcut(block, x), block.act2


def _bottleneck(block: nn.Module, x: torch.Tensor) -> Parts:
    y = block.act1(block.bn1(block.conv1(x)))
    y = block.act2(block.bn2(block.conv2(y)))
    y = block.bn3(block.conv3(y))
    return _excited(block, y), _shortcut(block, x), block.act3


def _regnet(block: nn.Module, x: torch.Tensor) -> Parts:
    return block.conv3(block.se(block.conv2(block.conv1(x)))), _shortcut(block, x), block.act3


def _convnext(block: nn.Module, x: torch.Tensor) -> Parts:
    y = block.mlp(block.norm(block.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return y * block.gamma.reshape(1, -1, 1, 1), x, nn.Identity()


def _excited(block: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return y if block.se is None else block.se(y)


def _shortcut(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x if block.downsample is None else block.downsample(x)


PARTS: dict[type[nn.Module], Callable[[nn.Module, torch.Tensor], Parts]] = {
    CifarBlock: _basic,
    resnet.BasicBlock: _basic,
    resnet.Bottleneck: _bottleneck,
    regnet.Bottleneck: _regnet,
    convnext.ConvNeXtBlock: _convnext,
}
