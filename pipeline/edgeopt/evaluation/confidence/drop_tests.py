"""p-values of a drop: valid for every sample size, not only in the limit of many samples.

Both tests are one-sided, of the hypothesis that the mean drop is at most ``limit``. The opposite hypothesis
is tested by exchanging the roles of the two models.
"""

import importlib
import math
import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

NUISANCE_RISK = 1e-4
"""Probability that the fraction of changed samples is outside the range in which the p-value is maximized."""
NUISANCE_POINTS = 40
NEGLIGIBLE = 8.0
"""Standard deviations beyond which a binomial count is ignored: less than 1e-14."""

Z = {0.8: 0.8416212335729143, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722, 0.99: 2.3263478740408408}
"""Common quantiles of the normal distribution: they save importing scipy, which takes a second."""

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int_]


def import_early() -> None:
    """Import what the tests need in the background: it takes 0.2 s, in which a run waits for processes."""
    threading.Thread(target=importlib.import_module, args=("scipy.special",)).start()


def tango(worse: Floats | Counts, better: Floats | Counts, samples: float, limit: float) -> Floats:
    """Tango's score statistic for the hypothesis that the drop is ``limit``; at 0 it equals McNemar's.

    Tango, Statistics in Medicine 17 (1998). ``worse`` and ``better`` are the changed pairs of ``samples``,
    arrays that broadcast; they may be fractional, to extrapolate to other sample sizes.
    """
    spread = limit * (1 - limit)
    a, c = 2 * samples, -better * spread
    b = -worse - better + (2 * samples - worse + better) * limit
    share = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = samples * (2 * share + spread)
    distance = worse - better - samples * limit
    statistic = distance / np.sqrt(np.maximum(variance, 1e-300))
    no_variance = np.where(np.abs(distance) < 1e-12, 0.0, np.copysign(np.inf, distance))
    found: Floats = np.where(variance <= 1e-12, no_variance, statistic)
    return found


def proportions_p(worse: int, better: int, samples: int, limit: float) -> float:
    """p-value of a drop in accuracy of at most ``limit``, from ``worse`` and ``better`` of ``samples`` pairs.

    The exact unconditional test that orders outcomes by Tango's statistic (Hsueh, Liu and Chen, Biometrics
    57, 2001): the probability of an outcome at least as extreme, maximized over the unknown fraction of
    changed samples. The maximum is taken over a confidence interval of that fraction (Berger and Boos, JASA
    89, 1994), and the risk of the interval is added.
    """
    from scipy import special

    if limit >= 1:
        return 1.0
    if limit <= -1:
        return 0.0
    observed = float(tango(np.array(worse), np.array(better), samples, limit))
    if observed <= 0:
        return 1.0
    changes, risk = worse + better, NUISANCE_RISK / 2
    low = special.betaincinv(changes, samples - changes + 1, risk) if changes else 0.0
    high = special.betaincinv(changes + 1, samples - changes, 1 - risk) if changes < samples else 1.0
    # The fraction that got better is half of the changed fraction without the drop.
    lowest, highest = max(0.0, -limit), (1 - limit) / 2
    ends = np.sqrt(np.clip([(low - limit) / 2, (high - limit) / 2], lowest, highest))
    share = np.linspace(float(ends[0]), float(ends[1]), NUISANCE_POINTS)[:, np.newaxis] ** 2
    wins = likely_counts(samples, float(share[-1, 0]))
    rest = samples - wins
    least = smallest_counts(
        lambda losses: tango(losses, wins, samples, limit) >= observed - 1e-9,
        rest,
    )
    lost = (share + limit) / np.maximum(1 - share, 1e-300)
    chance = (binomial(wins, samples, share) * binomial_tail(least, rest, lost)).sum(axis=1)
    return min(1.0, float(chance.max()) + NUISANCE_RISK)


def likely_counts(samples: int, share: float) -> Counts:
    """0, 1, 2 ... up to the largest binomial count that is not negligible."""
    mean = samples * share
    return np.arange(min(samples, int(mean + NEGLIGIBLE * math.sqrt(mean) + 20)) + 1)


def smallest_counts(holds: Callable[[Counts], NDArray[np.bool_]], most: Counts) -> Counts:
    """The smallest count from 0 to ``most`` for which a monotone condition holds, else ``most`` + 1.

    ``holds`` is evaluated for all positions at once.
    """
    low, high = np.zeros_like(most), most + 1
    while (low < high).any():
        middle = (low + high) // 2
        met = holds(middle) | (middle > most)
        low, high = np.where(met, low, np.minimum(middle + 1, high)), np.where(met, middle, high)
    return high


def binomial(count: Counts, samples: int, share: Floats | float) -> Floats:
    """Probability of ``count`` of ``samples``."""
    from scipy.special import gammaln, xlog1py, xlogy

    rest = samples - count
    ways = gammaln(samples + 1) - gammaln(count + 1) - gammaln(rest + 1)
    found: Floats = np.exp(ways + xlogy(count, share) + xlog1py(rest, -share))
    return found


def binomial_tail(least: Counts, samples: Counts, share: Floats | float) -> Floats:
    """Probability of at least ``least`` of ``samples``."""
    from scipy.special import betainc

    tail = betainc(np.maximum(least, 1), np.maximum(samples - least + 1, 1), np.clip(share, 0.0, 1.0))
    found: Floats = np.where(least <= 0, 1.0, np.where(least > samples, 0.0, tail))
    return found


def mean_p(drops: Floats, limit: float, lowest: float | Floats) -> Floats:
    """p-values of a mean drop of at most ``limit``, if no drop is below ``lowest``; one per row ``[r, n]``.

    Gaffke's test (Gaffke 2005; Learned-Miller and Thomas, arXiv:1905.06208): the probability that a randomly
    weighted mean of the drops, and of one more that is the lowest possible, is at most the limit. The weights
    are uniform on the simplex, as in the Bayesian bootstrap (Rubin 1981). For drops of two values it is the
    exact binomial test; for others it is conjectured to be valid at every sample size, and no counterexample
    is known. The probability is that of a sum of exponential variables, by a saddlepoint approximation
    (Lugannani and Rice 1980); its relative error is a few percent at most.
    """
    rows = np.atleast_2d(drops)
    distances = limit - np.column_stack([rows, np.broadcast_to(lowest, len(rows))])
    return _positive_sum(distances)


def _positive_sum(weights: Floats) -> Floats:
    """P(sum of weights times independent exponential variables > 0), for each row of ``[r, n]``."""
    from scipy import special

    smallest, largest = weights.min(axis=1), weights.max(axis=1)
    result: Floats = np.where(largest <= 0, 0.0, 1.0)
    mixed = (smallest < 0) & (largest > 0)
    if not mixed.any():
        return result
    scale = np.abs(weights[mixed]).max(axis=1, keepdims=True)
    scaled = weights[mixed] / scale
    low, high = scale[:, 0] / smallest[mixed], scale[:, 0] / largest[mixed]
    point = np.zeros(len(scaled))
    # Newton's method for the zero of an increasing function between two poles, with bisection as fallback.
    for _ in range(60):
        ratio = scaled / (1 - point[:, np.newaxis] * scaled)
        slope, curvature = ratio.sum(axis=1), np.square(ratio).sum(axis=1)
        low, high = np.where(slope < 0, point, low), np.where(slope < 0, high, point)
        step = slope / curvature
        if (np.abs(step) * np.sqrt(curvature) < 1e-6).all():
            break
        point = np.where((point - step > low) & (point - step < high), point - step, (low + high) / 2)
    factors = 1 - point[:, np.newaxis] * scaled
    cumulant = -np.log(factors).sum(axis=1)
    second, third = np.square(scaled / factors).sum(axis=1), 2 * ((scaled / factors) ** 3).sum(axis=1)
    root = np.copysign(np.sqrt(np.maximum(-2 * cumulant, 0.0)), point)
    near = np.abs(root) < 1e-3
    safe, steep = np.where(near, 1.0, root), np.where(near, 1.0, point * np.sqrt(second))
    density = np.exp(-safe * safe / 2) / math.sqrt(2 * math.pi)
    tail = special.ndtr(-safe) + density * (1 / steep - 1 / safe)
    at_mean = 0.5 - third / (6 * math.sqrt(2 * math.pi) * second**1.5)
    result[mixed] = np.clip(np.where(near, at_mean, tail), 0.0, 1.0)
    return result


def quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    if probability in Z:
        return Z[probability]
    from scipy.special import ndtri

    return float(ndtri(probability))
