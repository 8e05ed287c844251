"""How many samples would decide, and how small a drop these samples can show."""

import math
from collections.abc import Callable

import numpy as np

from edgeopt.evaluation.confidence.drop_tests import (
    binomial,
    binomial_tail,
    likely_counts,
    mean_p,
    quantile,
    smallest_counts,
    tango,
)
from edgeopt.evaluation.confidence.paired import Paired, smallest_set

POWER = 0.8
"""Probability of detecting the smallest detectable drop (power of the test)."""
MAX_SAMPLES = 10_000_000
PLANNED = 0.9
"""Probability with which a stated number of samples decides, as far as these samples tell."""
DRAWS = 500
"""Random evaluation sets by which the number of samples that would decide is estimated."""


def samples_needed(pair: Paired, limit: float, confidence: float = 0.95) -> int | None:
    """Number of samples that decide with a probability of 90 %, given these; None if no number does.

    The probability is that of a new evaluation set (Spiegelhalter, Abrams and Myles 2004, 6.5): it includes
    that the rates of changes are known only as well as these samples show them. With the measured rates taken
    for the true ones, the number would be enough in half of all cases. It is 90 % and not 80 % because true
    drops lie near the limit more often than these samples alone suggest.
    """
    count, mean = len(pair.before), float(pair.drops.mean())
    if math.isclose(mean, limit, abs_tol=1e-12):
        return None
    if pair.is_binary:
        decides, least = _binary_chance(pair, limit, confidence), count
    else:
        decides = _mean_chance(pair, mean - limit, confidence)
        least = count if pair.is_bounded else max(count, smallest_set(confidence) - 1)
    low = high = least
    while decides(high) < PLANNED:
        low, high = high, 2 * high
        if high > MAX_SAMPLES:
            return None
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) >= PLANNED else (middle, high)
    return _rounded_up(max(high, least + 1))


def _rounded_up(number: int) -> int:
    """Two digits of a number: an estimate has no more."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _binary_chance(pair: Paired, limit: float, confidence: float) -> Callable[[int], float]:
    """Probability that a number of samples decides, by random sets.

    The rates have the Dirichlet distribution that follows from these samples (Jeffreys's prior).
    """
    random = np.random.default_rng(0)
    counts = np.array([pair.worse, pair.better, len(pair.before) - pair.worse - pair.better])
    rates = random.dirichlet(counts + 0.5, DRAWS)
    alpha = 1 - confidence
    # The exact test needs a slightly larger statistic than the quantile of the normal distribution.
    z = quantile(1 - 0.8 * alpha)

    def chance(samples: int) -> float:
        worse, better, _ = np.random.default_rng(1).multinomial(samples, rates).T
        statistic = tango(worse, better, samples, limit)
        drop_found = (limit < 0) | (binomial_tail(worse, worse + better, 0.5) <= alpha)
        return float(((statistic <= -z) | ((statistic >= z) & drop_found)).mean())

    return chance


def _mean_chance(pair: Paired, distance: float, confidence: float) -> Callable[[int], float]:
    """Probability that a number of samples decides, if the mean is normally distributed.

    The variance includes one more sample with the largest possible change, as the test does.
    """
    from scipy.special import ndtr

    count, largest = len(pair.before), pair.range
    spread = math.sqrt(float(pair.drops.var()) + largest * largest / (count + 1))

    def chance(samples: int) -> float:
        margin = quantile(confidence) * spread / math.sqrt(samples) + 3 * largest / samples
        scale = spread * math.sqrt(1 / count + 1 / samples)
        if scale == 0:
            return 0.0
        return float(ndtr((distance - margin) / scale) + ndtr((-distance - margin) / scale))

    return chance


def detectable_drop(pair: Paired, confidence: float = 0.95) -> float:
    """The smallest drop for which a gate that allows none fails with a probability of at least 80 %.

    For accuracy, random changes in both directions are assumed to be as frequent as here, in addition to the
    drop; other scores are assumed to vary as here. Infinite if there is no valid test.
    """
    count = len(pair.before)
    if pair.is_binary:
        return _detectable_fraction(pair, confidence)
    largest = pair.largest_change(confidence)
    if largest is None:
        return math.inf
    centred = pair.drops - pair.drops.mean()
    error = float(centred.std()) / math.sqrt(count)
    low, high = 0.0, 2 * quantile(confidence) * error + 4 * largest / count
    while high < largest and mean_p(centred + high, 0.0, -largest)[0] > 1 - confidence:
        low, high = high, 2 * high
    for _ in range(10):
        middle = (low + high) / 2
        found = mean_p(centred + middle, 0.0, -largest)[0] <= 1 - confidence
        low, high = (low, middle) if found else (middle, high)
    return min(high + quantile(POWER) * error, largest)


def _detectable_fraction(pair: Paired, confidence: float) -> float:
    """The detectable drop in accuracy, from the exact power of McNemar's test."""
    count, fewer = len(pair.before), min(pair.worse, pair.better)
    # The smaller of two equal Poisson counts is below their mean m by 0.56 sqrt(m) on average. The rest makes
    # up for the imprecision of the estimate: too few changes cost more power than too many win.
    noise = fewer + 0.8 * math.sqrt(fewer + 1) + 1
    share = min(noise / count, 0.5)
    found = power(share, count, confidence)
    low, high = 0.0, 1 - share
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= POWER else (middle, high)
    return high


def power(share: float, samples: int, confidence: float) -> Callable[[float], float]:
    """The probability that McNemar's test finds a drop, as a function of the drop.

    ``share`` of the samples become better by chance.
    """
    wins = likely_counts(samples, share)
    chances, rest = binomial(wins, samples, share), samples - wins
    least = smallest_counts(lambda lost: binomial_tail(lost, lost + wins, 0.5) <= 1 - confidence, rest)

    def found(drop: float) -> float:
        return float((chances * binomial_tail(least, rest, (share + drop) / (1 - share))).sum())

    return found
