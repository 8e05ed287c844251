"""Samples from the statistics that a network recorded in training: calibration data for users without data.

ZeroQ (Cai et al. 2020, arXiv:2001.00281): inputs are changed by gradient descent until those of every batch
norm have the mean and the deviation that the norm recorded. The networks of each framework do that.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgeopt.errors import StageError
from edgeopt.model import Array, Layout
from edgeopt.plugin.synthesis import Start

STEPS = 200
RATE = 0.1
"""Learning rate, relative to the scale of the inputs."""
BATCH = 64
"""Samples that match the statistics together: fewer match them less well, more take more memory."""
SCALES = tuple(2.0**power for power in range(-6, 11))
"""Scales that are tried for inputs of unknown range."""


class NoNormsError(StageError):
    """The model has no batch norm that runs with its inputs."""

    def __init__(self) -> None:
        super().__init__(
            "the model has no batch norm, whose statistics could stand for data",
            fix="calibrate with samples instead: a few hundred without labels are enough",
        )


def chunks(starts: Sequence[Start]) -> Iterator[list[Start]]:
    """The samples in batches."""
    for first in range(0, len(starts[0].noise), BATCH):
        yield [each._replace(noise=each.noise[first : first + BATCH]) for each in starts]


def best_scale(starts: Sequence[Start], loss: Callable[[list[Array]], float]) -> float:
    """The scale of the inputs of unknown range with which they match best."""
    if all(each.low is not None for each in starts if each.changes):
        return 1.0
    return min(SCALES, key=lambda scale: loss([each.at(scale) for each in starts]))


def rate_at(step: int, steps: int) -> float:
    """The relative learning rate, which falls to zero with a cosine."""
    return RATE * (1 + math.cos(math.pi * step / steps)) / 2


def smooth(noise: Array, layout: Layout | None) -> Array:
    """Noise whose power falls with the square of the frequency, as that of photographs does; unit deviation.

    Field 1987, doi:10.1364/JOSAA.4.002379. Arrays that are no images stay as they are.
    """
    if layout is None or noise.ndim != 4 or noise.dtype.kind != "f":
        return noise
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    up, across = (np.fft.fftfreq(noise.shape[axis]) for axis in axes)
    frequency = np.hypot(up[:, None], across[None, :])
    frequency[0, 0] = 1 / max(noise.shape[axis] for axis in axes)
    shape = [noise.shape[axis] if axis in axes else 1 for axis in range(4)]
    spectrum = np.fft.fft2(noise, axes=axes) / frequency.reshape(shape)
    values = np.fft.ifft2(spectrum, axes=axes).real
    shaped: Array = (values / values.std()).astype(noise.dtype)
    return shaped
