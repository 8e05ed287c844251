"""Canvases of 64x64 pixels with handwritten digits in several sizes, for detection and segmentation.

Each canvas shows one to four digits of scikit-learn's data on a background of weak noise. The digits of a
part are pasted on the canvases of that part only, so no handwriting of the evaluation is seen in training.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.model import Array
from edgeopt.plugin import Sample

SIDE = 64
"""Height and width of a canvas."""
SIZES = (12, 24)
"""Smallest and largest side of a pasted digit, of 8x8 pixels before."""
MOST = 4
"""Most digits on a canvas."""
NOISE = 32
"""Largest value of the background."""
INK = 64
"""Smallest value of a digit's pixels that count as ink."""
CLASSES = 10

COUNTS = {"train": 2400, "calibration": 200, "evaluation": 400}
"""Canvases of each part."""
SEEDS = {"train": 1, "calibration": 2, "evaluation": 3}


class Canvas(NamedTuple):
    """One image and both kinds of labels."""

    image: NDArray[np.uint8]
    """``[64, 64, 1]``"""
    boxes: NDArray[np.float32]
    """``[k, 6]``: x1, y1, x2, y2 of the ink, class, 0."""
    mask: NDArray[np.int64]
    """``[64, 64]``: class + 1 on ink, otherwise 0."""


def detection(part: str, count: int | None = None) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Images, and the boxes of their digits."""
    for canvas in canvases(part, count):
        yield canvas.image, canvas.boxes


def segmentation(
    part: str, count: int | None = None
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Images, and the class of each pixel: 0 is the background, digit + 1 is ink."""
    for canvas in canvases(part, count):
        yield canvas.image, canvas.mask


def canvases(part: str, count: int | None = None, seed: int = 0) -> Iterator[Canvas]:
    """The canvases of ``train``, ``calibration`` or ``evaluation``; another ``seed`` gives other ones."""
    digits = list(Digits.model_validate({"part": part}).samples())
    for index in range(COUNTS[part] if count is None else count):
        # A generator of its own for each canvas: the first ones do not depend on the count.
        yield _canvas(digits, np.random.default_rng([SEEDS[part], seed, index]))


def _canvas(digits: Sequence[Sample], random: np.random.Generator) -> Canvas:
    image = random.integers(0, NOISE + 1, (SIDE, SIDE)).astype(np.float64)
    mask = np.zeros((SIDE, SIDE), np.int64)
    used = np.zeros((SIDE, SIDE), np.bool_)
    boxes: list[tuple[int, ...]] = []
    wanted = int(random.integers(1, MOST + 1))
    for _ in range(10 * wanted):  # a digit without a free place is tried elsewhere, then left out
        if len(boxes) == wanted:
            break
        sample = digits[int(random.integers(len(digits)))]
        size = int(random.integers(SIZES[0], SIZES[1] + 1))
        row, column = random.integers(0, SIDE - size + 1, 2)
        place = np.s_[row : row + size, column : column + size]
        if used[place].any():
            continue
        used[place] = True
        digit = enlarged(sample.inputs[0][:, :, 0], size)
        image[place] = np.maximum(image[place], digit)
        assert isinstance(sample.label, int)
        rows, columns = np.nonzero(digit >= INK)
        mask[place][rows, columns] = sample.label + 1
        x1, y1 = column + columns.min(), row + rows.min()
        x2, y2 = column + columns.max() + 1, row + rows.max() + 1
        boxes.append((x1, y1, x2, y2, sample.label, 0))
    return Canvas(
        np.rint(image).astype(np.uint8)[:, :, np.newaxis], np.array(boxes, np.float32).reshape(-1, 6), mask
    )


def enlarged(digit: Array, size: int) -> NDArray[np.float64]:
    """An 8x8 digit with values 0..16 as ``[size, size]`` with values 0..255, interpolated bilinearly."""
    weights = _interpolation(len(digit), size)
    large: NDArray[np.float64] = weights @ (digit.astype(np.float64) * (255 / 16)) @ weights.T
    return large


def _interpolation(before: int, after: int) -> NDArray[np.float64]:
    """Weights ``[after, before]`` of linear interpolation between the centres of pixels."""
    centres = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    weights: NDArray[np.float64] = np.maximum(0, 1 - np.abs(centres[:, np.newaxis] - np.arange(before)))
    return weights
