"""A residual encoder and decoders like FusionBench's dilated ResNet and DeepLab heads, but tiny."""

from torch import Tensor, nn

from fusion_tinting.mini.scenes.render import CLASSES

WIDTHS = (16, 32, 48, 48)
"""Channels of the stem and of each block."""
CHANNELS = {"segmentation": CLASSES, "depth": 1, "normal": 3}
"""Of the outputs."""


class Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut; dilated where it does not stride.

    Args:
        inputs: Channels.
        outputs: Channels.
        stride: Of the first convolution.
        dilation: Of both.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        spread = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, **spread)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, **spread)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(B, outputs, H / stride, W / stride)`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + shortcut).relu()


class TinyDilatedResNet(nn.Module):
    """An encoder: images (B, 3, H, W) -> features (B, 48, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        stem, one, two, three = WIDTHS
        self.conv1 = nn.Conv2d(3, stem, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = Block(stem, one, stride=2)
        self.layer2 = Block(one, two, dilation=2)
        self.layer3 = Block(two, three, dilation=4)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(B, 48, H / 4, W / 4)`."""
        return self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))


def decoder(task: str) -> nn.Sequential:
    """Return a decoder: features -> outputs of a task, on the features' grid.

    Args:
        task: One of `CHANNELS`.
    """
    width = WIDTHS[-1]
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, CHANNELS[task], 1),
    )
