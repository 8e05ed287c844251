"""Intervals of a metric, by resampling samples or from order statistics."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MEAN_RESAMPLES = 1000
SET_RESAMPLES = 200
"""Fewer, because a metric of the whole set takes milliseconds."""


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval (Efron 1979) of a mean over samples; None below two samples."""
    if len(values) < 2:
        return None
    generator = np.random.default_rng(0)
    means = [
        values[generator.integers(0, len(values), (50, len(values)))].mean(axis=1)
        for _ in range(MEAN_RESAMPLES // 50)
    ]
    return interval(np.concatenate(means))


def resampled(value: Callable[[NDArray[np.float64]], float], samples: int) -> NDArray[np.float64]:
    """The values of a metric of the whole set for resampled sets; ``value`` takes the weights of the samples.

    The sets are the same for every metric, so the differences of two models are paired (Efron and Tibshirani
    1993, 10.3).
    """
    generator = np.random.default_rng(0)
    shares = np.full(samples, 1 / samples)
    return np.array(
        [value(generator.multinomial(samples, shares).astype(float)) for _ in range(SET_RESAMPLES)]
    )


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def quantile_interval(values: NDArray[np.float64], q: float) -> tuple[float, float] | None:
    """95 % interval of a quantile from order statistics; None below two values.

    The number of values below a quantile is binomial, which gives the ranks of the interval without
    resampling; the bootstrap of a quantile converges to it (David and Nagaraja 2003, 7.1).
    """
    count = len(values)
    if count < 2:
        return None
    spread = 1.96 * math.sqrt(count * q * (1 - q))
    low, high = math.floor(count * q - spread), math.ceil(count * q + spread)
    ordered = np.sort(values)
    return float(ordered[max(low, 0)]), float(ordered[min(high, count - 1)])
