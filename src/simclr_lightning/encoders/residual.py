"""Make ResNets 10 to 152 from torchvision's blocks, for images as large as ImageNet's or as small as CIFAR's.

torchvision's bottleneck is that of ResNet v1.5, with the stride in the 3x3 convolution, as in the authors' code.
Legend: N images, C channels, H height, W width, F = feature_dim.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr_lightning.encoders.normalize import Normalize

Block = type[BasicBlock] | type[Bottleneck]

# depth -> (type of block, number of blocks in each of the four stages)
_STAGES: Final[dict[int, tuple[Block, tuple[int, int, int, int]]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A residual network without its classifier. Use ``resnet`` to make one; its docstring has the arguments.

    The state dict has the keys of torchvision's ResNet without ``fc``.

    Attributes:
        feature_dim: F, the width of h.
        spec: plain keyword arguments from which ``build`` makes the same network.
        size: side in pixels of the evaluation crop, if the network comes from an export; else None.
    """

    def __init__(
        self,
        depth: int,
        width: float,
        stem: Literal["imagenet", "cifar"],
        *,
        zero_init_last: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"model.encoder.depth is {depth!r}; choose one of {', '.join(map(str, _STAGES))}")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"model.encoder.stem is {stem!r}; choose imagenet or cifar")
        base = 64 * width
        if not 1 <= base <= 64 * 64 or base != int(base):
            raise ValueError(f"model.encoder.width is {width}; 64 * width must be a whole number from 1 to 4096")
        block, blocks = _STAGES[depth]
        C = int(base)
        expansion: int = block.expansion
        self.size: int | None = None
        self.feature_dim = 8 * C * expansion
        self.spec: dict[str, Any] = {
            "factory": "resnet",
            "depth": depth,
            "width": width,
            "stem": stem,
            "zero_init_last": zero_init_last,
        }
        self.normalise = Normalize()
        self.set_normalisation(mean, std)
        # The CIFAR stem keeps the resolution of small images (paper appendix B.9).
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, C, 3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, C, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(C)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, C, C, blocks[0], stride=1)
        self.layer2 = _stage(block, C * expansion, 2 * C, blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * C * expansion, 4 * C, blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * C * expansion, 8 * C, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        _initialize(self, zero_init_last=zero_init_last)

    @property
    def body(self) -> nn.Module:
        """The module whose state dict has torchvision's keys: the network itself."""
        return self

    def set_normalisation(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the input normalization by mean and std, three numbers each, or remove it with None."""
        self.normalise.set(mean, std, like=next(self.parameters(), None))
        self.spec["mean"] = None if mean is None else [float(value) for value in mean]
        self.spec["std"] = None if std is None else [float(value) for value in std]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the features h (N, F) of images x (N, 3, H, W), floats in [0, 1]."""
        x_NCHW = self.normalise(x_NCHW)
        x_NCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_NCHW))))
        x_NCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_NCHW))))
        h_NF: Tensor = self.avgpool(x_NCHW).flatten(1)
        return h_NF


def resnet(
    depth: int = 50,
    width: float = 1,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    *,
    zero_init_last: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ResNet:
    """Return a ResNet v1.5 with random weights, which maps x (N, 3, H, W) in [0, 1] to h (N, feature_dim).

    Args:
        depth: 18, 34, 50, 101 or 152, or 10 (one basic block per stage, for small machines).
        width: factor on the channels of every layer. The paper uses 1, 2 and 4 (figure 7). Fractions are allowed if
            64 * width is a whole number.
        stem: "imagenet" (7x7 convolution of stride 2, max-pool), or "cifar" for images up to about 32 pixels (3x3
            convolution of stride 1, no max-pool; paper appendix B.9).
        zero_init_last: initialize the last BatchNorm of every block with gamma 0, so each block starts as its shortcut.
        mean, std: normalization of the input per channel, on the scale of [0, 1]; None for none, as in the paper.

    Raises:
        ValueError: an argument is out of its range; the message names its key.

    >>> import torch
    >>> encoder = resnet(18, stem="cifar")
    >>> encoder(torch.rand(2, 3, 32, 32)).shape, encoder.feature_dim
    (torch.Size([2, 512]), 512)
    """
    return ResNet(depth, width, stem, zero_init_last=zero_init_last, mean=mean, std=std)


def _stage(block: Block, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    """Return one stage; its first block changes resolution and channels, with a projection as its shortcut."""
    out_channels = channels * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    first = block(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, channels) for _ in range(blocks - 1)))


def _initialize(network: nn.Module, *, zero_init_last: bool) -> None:
    """Initialize convolutions with He's normal weights and, if wanted, the last gamma of every block with 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if zero_init_last and isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(last.weight)
