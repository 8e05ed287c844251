"""Structural similarity of images."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._numbers import paired
from edgeopt.plugin import Metric, PerSample, Reading, Score
from edgeopt.results import Kind

RADIUS, SIGMA = 5, 1.5
K1, K2 = 0.01, 0.03

Floats = NDArray[np.float64]


class Ssim(Metric):
    """Mean structural similarity, -1..1, of images ``[n, H, W]`` or ``[n, H, W, C]``; 1 for identical ones.

    As in Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": an
    11 x 11 Gaussian window with a standard deviation of 1.5 at each place where it fits into the image,
    ``K1 = 0.01``, ``K2 = 0.03``. Channels are averaged. An image that is not finite counts as -1.
    """

    kind: ClassVar[Kind] = "number"
    title: ClassVar[str] = "SSIM"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    reads: ClassVar[Reading] = "values"

    data_range: float = Field(gt=0, description="largest minus smallest possible value: 1, or 255")
    channel_axis: int = Field(
        -1, ge=-3, le=3, description="axis of the channels of images [n, ...] of 4 axes: -1 or 1"
    )

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        images, expected = (self._by_channel(array) for array in paired(outputs, target))
        values = np.full(len(images), -1.0)
        for index in np.flatnonzero(np.isfinite(images).reshape(len(images), -1).all(axis=1)):
            values[index] = _similarity(images[index], expected[index], self.data_range)
        return Score(float(values.mean()), values)

    def _by_channel(self, images: Floats) -> Floats:
        """Images as ``[n, C, H, W]``."""
        if images.ndim not in (3, 4) or self.channel_axis == 0:
            raise UsageError(
                f"outputs of shape {list(images.shape)} are not images with channels on axis "
                f"{self.channel_axis}",
                fix="ssim compares [n, H, W], [n, H, W, C], or [n, C, H, W] with channel_axis: 1",
            )
        result = np.moveaxis(images, self.channel_axis, 1) if images.ndim == 4 else images[:, None]
        if min(result.shape[2:]) < 2 * RADIUS + 1:
            raise UsageError(
                f"images of shape {list(images.shape)} are smaller than the window of 11 x 11 pixels",
                fix="set channel_axis if the channels are not on the last axis, or use psnr",
            )
        return result


def _similarity(one: Floats, other: Floats, data_range: float) -> float:
    """The mean over places and channels of the index of two images ``[C, H, W]`` (equation 13)."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean, mean_other = _blurred(one), _blurred(other)
    variances = _blurred(one * one) - mean**2 + _blurred(other * other) - mean_other**2
    covariance = _blurred(one * other) - mean * mean_other
    luminance = (2 * mean * mean_other + c1) / (mean**2 + mean_other**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (variances + c2)))


def _blurred(images: Floats) -> Floats:
    """Weighted means ``[C, H - 10, W - 10]`` in the window."""
    from scipy.ndimage import correlate1d

    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        images = correlate1d(images, weights, axis)
    return images[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
