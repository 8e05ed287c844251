"""A small convolutional network for 8x8 digits, about 13,000 parameters."""

import torch
from torch import Tensor, nn


class SeparableBlock(nn.Module):
    """Depthwise and pointwise convolution around a residual connection (MobileNetV2 in spirit)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.depthwise(x)))
        y = self.bn2(self.pointwise(y))
        return self.relu2(x + y)


class DigitsCNN(nn.Module):
    """Digits in ``[n, 1, 8, 8]``, values 0..1, to 10 logits."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.block1 = SeparableBlock(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.block2 = SeparableBlock(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.relu1(self.bn1(self.conv1(x))))
        x = self.block2(self.relu2(self.bn2(self.conv2(x))))
        return self.linear(torch.flatten(self.pool(x), 1))


def digits_cnn(channels: int = 32) -> DigitsCNN:
    """The network of the recipe ``digits-torch``, untrained."""
    return DigitsCNN(channels)
