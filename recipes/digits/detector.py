"""A small detector of digits without anchors, 50,060 parameters (in the form of FCOS, Tian et al. 2019)."""

import torch
from torch import Tensor, nn

STRIDES = (4, 8)
"""Pixels per cell of the two grids."""
CLASSES = 10


def block(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class DigitsDetector(nn.Module):
    """Canvases in ``[n, 1, 64, 64]``, values 0..1, to one raw tensor ``[n, 4 + 10, cells]``.

    The 320 cells are those of the grid of stride 4, row by row, then those of stride 8. The first four values
    of a cell are the distances from its centre to the left, top, right and bottom side of the box, in cells;
    the others are the logits of the classes.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(1, 16, stride=2), block(16, channels, stride=2))
        self.fine = nn.Sequential(block(channels, channels), block(channels, channels))
        self.coarse = nn.Sequential(block(channels, channels, stride=2), block(channels, channels))
        self.distances = nn.ModuleList(nn.Conv2d(channels, 4, 3, padding=1) for _ in STRIDES)
        self.logits = nn.ModuleList(nn.Conv2d(channels, CLASSES, 3, padding=1) for _ in STRIDES)
        self.relu = nn.ReLU()
        for distances, logits in zip(self.distances, self.logits, strict=True):
            nn.init.constant_(distances.bias, 2.0)  # boxes of four cells: a ReLU at 0 would not learn
            nn.init.constant_(logits.bias, -4.6)  # scores of 0.01, as for the focal loss

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        grids = [
            torch.cat([self.relu(distances(features)), logits(features)], 1).flatten(2)
            for features, distances, logits in zip((fine, coarse), self.distances, self.logits, strict=True)
        ]
        return torch.cat(grids, 2)


def digits_detector(channels: int = 32) -> DigitsDetector:
    """The network of the recipe ``digits-detection``, untrained."""
    return DigitsDetector(channels)
