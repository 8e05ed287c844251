"""A small network that reads a line of digits: convolutions, a GRU, and scores for CTC at each step."""

import torch
from torch import Tensor, nn


class Block(nn.Sequential):
    """Convolution, batch norm, ReLU, and max pooling by ``pool``."""

    def __init__(self, inputs: int, outputs: int, pool: tuple[int, int]) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(pool),
        )


class DigitsOCR(nn.Module):
    """Strips ``[n, 1, 32, 128]``, values 0..1, to logits ``[n, 32, 11]``: the CTC blank, and 10 digits."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.block1 = Block(1, 12, (2, 2))
        self.block2 = Block(12, 24, (2, 2))
        self.block3 = Block(24, 32, (2, 1))
        self.block4 = Block(32, 32, (4, 1))
        self.gru = nn.GRU(32, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(x))))
        steps, _ = self.gru(x.squeeze(2).transpose(1, 2))
        return self.linear(steps)


def digits_ocr(hidden: int = 48) -> DigitsOCR:
    """The network of the recipe ``digits-ocr``, untrained."""
    return DigitsOCR(hidden)


def greedy(logits: Tensor) -> list[list[int]]:
    """The best path of each sample: repetitions collapsed, blanks dropped."""
    paths = (torch.unique_consecutive(path) for path in logits.argmax(2))
    return [path[path != 0].tolist() for path in paths]
