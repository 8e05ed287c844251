"""The residual networks for CIFAR-10 of He et al., "Deep Residual Learning for Image Recognition"
(arXiv:1512.03385), section 4.2: 6n + 2 layers, identity shortcuts without parameters (option A)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Shortcut(nn.Module):
    """Option A: where a block narrows the image, take every second pixel and add channels of zeros."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        self.before = added_channels // 2
        self.after = added_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut = Shortcut(channels - channels_in) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images in ``[n, 3, 32, 32]`` to logits; three stages of 16, 32 and 64 channels."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(blocks, 16, 16)
        self.layer2 = self._stage(blocks, 16, 32)
        self.layer3 = self._stage(blocks, 32, 64)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels: int) -> nn.Sequential:
        first = Block(channels_in, channels, stride=1 if channels == channels_in else 2)
        return nn.Sequential(first, *(Block(channels, channels, stride=1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


def resnet20(classes: int = 10) -> ResNet:
    """20 layers, 269,722 parameters."""
    return ResNet(3, classes)


def resnet32(classes: int = 10) -> ResNet:
    """32 layers, 464,154 parameters."""
    return ResNet(5, classes)


def resnet44(classes: int = 10) -> ResNet:
    """44 layers, 658,586 parameters."""
    return ResNet(7, classes)


def resnet56(classes: int = 10) -> ResNet:
    """56 layers, 853,018 parameters."""
    return ResNet(9, classes)
