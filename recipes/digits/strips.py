"""Strips of handwritten digits, for the recipe digits-ocr: real digits pasted side by side.

A stand-in for the text lines of a scanner. All strips have the same size; the numbers have different lengths.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.plugin import Sample

HEIGHT, WIDTH = 32, 128
LENGTHS = (1, 7)
"""Fewest and most digits of a strip."""
SIZE = 16
"""Height and width of a pasted digit: twice that of the original."""
COUNTS = {"train": 2000, "calibration": 100, "evaluation": 300}
SEEDS = {"train": 1, "calibration": 2, "evaluation": 3}

Part = Literal["train", "calibration", "evaluation"]


def strips(part: Part) -> Iterator[Sample]:
    """Strips uint8 ``[32, 128, 1]``, ink up to 240, and their digits, int64 ``[k]`` of 1 to 7 digits 1..10.

    Label ``digit + 1`` leaves 0 to the CTC blank. The digits of a part are those of the same part of
    ``Digits``, so that no handwriting is shared among parts. The same strips on every call.
    """
    samples = list(Digits(part=part).samples())
    random = np.random.default_rng(SEEDS[part])
    for _ in range(COUNTS[part]):
        chosen = random.integers(0, len(samples), random.integers(LENGTHS[0], LENGTHS[1] + 1))
        images = [samples[index].inputs[0][:, :, 0] for index in chosen]
        labels = [int(samples[index].label) + 1 for index in chosen]
        yield Sample((strip(images, random)[:, :, np.newaxis],), np.array(labels, np.int64))


def strip(images: list[NDArray[np.uint8]], random: np.random.Generator) -> NDArray[np.uint8]:
    """Paste digits ``[8, 8]`` from left to right, with gaps, at different heights, on a faint background."""
    canvas = random.integers(0, 24, (HEIGHT, WIDTH)).astype(np.uint8)
    free = WIDTH - SIZE * len(images)
    # Gaps between digits are at most 8 pixels; what is left over is at both ends.
    gaps = random.integers(0, 1 + min(8, free // len(images)), len(images))
    left = int(random.integers(0, 1 + free - gaps.sum()))
    for image, gap in zip(images, gaps, strict=True):
        left += int(gap)
        top = int(random.integers(0, HEIGHT - SIZE + 1))
        ink = np.kron(image * np.uint8(15), np.ones((2, 2), np.uint8))
        spot = canvas[top : top + SIZE, left : left + SIZE]
        np.maximum(spot, ink, out=spot)
        left += SIZE
    return canvas
