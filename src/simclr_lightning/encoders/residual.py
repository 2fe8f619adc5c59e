"""ResNet 10 to 152 from torchvision's blocks, for ImageNet-sized and CIFAR-sized images.

torchvision's bottleneck is ResNet v1.5: the stride sits on the 3x3 convolution, as in the authors' code.
Legend: N images, C channels, H and W the sides, F = feature_dim.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr_lightning.encoders.normalise import Normalise

Block = type[BasicBlock] | type[Bottleneck]

# depth -> (block, blocks in each of the four stages)
_STAGES: Final[dict[int, tuple[Block, tuple[int, int, int, int]]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A residual network without its classifier; made by ``resnet``, which documents the arguments.

    The state dict has the keys of torchvision's ResNet without ``fc``.

    Attributes:
        feature_dim: F, the width of h.
        spec: the plain keyword arguments that make it again.
        size: side in pixels of the evaluation crop it was trained for, when loaded from an export.
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
            raise ValueError(f"model.encoder.width is {width}; 64 times it must be a whole number from 1 to 4096")
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
        self.normalise = Normalise()
        self.set_normalisation(mean, std)
        # small images keep their resolution (paper appendix B.9)
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
        _initialise(self, zero_init_last=zero_init_last)

    @property
    def body(self) -> nn.Module:
        """The module whose state dict has torchvision's keys: itself."""
        return self

    def set_normalisation(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the input normalisation, None for none."""
        self.normalise.set(mean, std, like=next(self.parameters(), None))
        self.spec["mean"] = None if mean is None else [float(value) for value in mean]
        self.spec["std"] = None if std is None else [float(value) for value in std]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return h (N, F) of x (N, 3, H, W), floats in [0, 1]."""
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
    """Return a ResNet v1.5 with random weights, x (N, 3, H, W) in [0, 1] -> h (N, feature_dim).

    Args:
        depth: 18, 34, 50, 101 or 152, or 10 (one basic block a stage, for small machines).
        width: factor on the channels of every layer; the paper has 1, 2 and 4 (figure 7); fractions such as
            0.25 are allowed where channels stay whole.
        stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1, no max-pool; paper appendix B.9),
            for images of up to about 32 pixels.
        zero_init_last: start the last BatchNorm of every block at gamma 0, so that each block starts as its
            shortcut.
        mean, std: normalisation of the input, per channel on the scale of [0, 1]; None, as in the paper, for
            none.

    Raises:
        ValueError: an argument is out of its range.
    """
    return ResNet(depth, width, stem, zero_init_last=zero_init_last, mean=mean, std=std)


def _stage(block: Block, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    """Return one stage, whose first block changes resolution and channels (its shortcut projected)."""
    out_channels = channels * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    first = block(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, channels) for _ in range(blocks - 1)))


def _initialise(network: nn.Module, *, zero_init_last: bool) -> None:
    """Set He's normal weights, BatchNorm at gamma 1 and beta 0, and the blocks' last gamma."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if zero_init_last and isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(last.weight)
