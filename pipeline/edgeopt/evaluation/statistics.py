"""Confidence of an accuracy drop: paired comparison of two models on the same samples.

Binary scores (0 or 1) are compared with the score interval for the difference of paired proportions (Tango,
Statistics in Medicine 17, 1998) and McNemar's exact test; other scores with a bootstrap of the differences
(Efron 1987, bias-corrected and accelerated).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEAN_RESAMPLES = 1000
RESAMPLES = 2000
POWER = 0.8
"""Probability of detecting the smallest detectable drop (power of the test)."""
MAX_SAMPLES = 10_000_000
Z = {0.8: 0.8416212335729143, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722, 0.99: 2.3263478740408408}
"""Common quantiles of the normal distribution: they save importing scipy, which takes a second."""


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval (Efron 1979) of a mean over samples; None below two samples."""
    if len(values) < 2:
        return None
    generator = np.random.default_rng(0)
    means = [
        values[generator.integers(0, len(values), (50, len(values)))].mean(axis=1)
        for _ in range(MEAN_RESAMPLES // 50)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
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


class Paired(NamedTuple):
    """One value per sample, before and after; higher is better."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def drops(self) -> NDArray[np.float64]:
        """Drop of each sample."""
        return self.before - self.after

    @property
    def is_binary(self) -> bool:
        """Whether every value is 1 (correct) or 0 (wrong)."""
        return bool(np.isin(self.before, (0.0, 1.0)).all() and np.isin(self.after, (0.0, 1.0)).all())

    @property
    def worse(self) -> int:
        """Number of samples with a lower value than before."""
        return int((self.drops > 0).sum())

    @property
    def better(self) -> int:
        """Number of samples with a higher value than before."""
        return int((self.drops < 0).sum())


class Bounds(NamedTuple):
    """One-sided bounds: the drop exceeds ``low`` and is below ``high``, each with the given confidence."""

    low: float
    high: float


def bounds(pair: Paired, confidence: float = 0.95) -> Bounds:
    """One-sided bounds of the mean drop."""
    if pair.is_binary:
        return score_bounds(pair.worse, pair.better, len(pair.before), confidence)
    return _bootstrap_bounds(pair.drops, confidence)


def score_bounds(worse: float, better: float, samples: float, confidence: float) -> Bounds:
    """Bounds of the drop in accuracy, by inverting Tango's score test.

    ``worse`` and ``better`` are the changed pairs of ``samples``; they may be fractional, to extrapolate to
    other sample sizes.
    """
    z = quantile(confidence)
    drop = (worse - better) / samples

    def statistic(limit: float) -> float:
        return _score(worse, better, samples, limit)

    low = -1.0 if statistic(-1.0) <= z else _root(lambda limit: statistic(limit) - z, -1.0, drop)
    high = 1.0 if statistic(1.0) >= -z else _root(lambda limit: statistic(limit) + z, drop, 1.0)
    return Bounds(low, high)


def _score(worse: float, better: float, samples: float, limit: float) -> float:
    """Tango's statistic for the hypothesis that the drop is ``limit``; at 0 it equals McNemar's."""
    spread = limit * (1 - limit)
    a, c = 2 * samples, -better * spread
    b = -worse - better + (2 * samples - worse + better) * limit
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = samples * (2 * share + spread)
    distance = worse - better - samples * limit
    if variance <= 1e-12:
        return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Root of a decreasing function by bisection, which needs no smoothness at the ends."""
    for _ in range(60):
        middle = (low + high) / 2
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _bootstrap_bounds(drops: NDArray[np.float64], confidence: float) -> Bounds:
    mean = float(drops.mean())
    if len(drops) < 2:
        return Bounds(-math.inf, math.inf)
    if np.ptp(drops) == 0:
        return Bounds(mean, mean)
    from scipy import stats

    ends = {}
    for side in ("greater", "less"):
        interval = stats.bootstrap(
            (drops,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            alternative=side,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
        ends[side] = float(interval.low if side == "greater" else interval.high)
    return Bounds(ends["greater"], ends["less"])


def mcnemar(worse: int, better: int) -> float:
    """Exact one-sided p-value of ``worse`` changes, if both directions are equally likely.

    McNemar 1947: the number of changes for the worse is binomial with probability 1/2.
    """
    from scipy.special import bdtrc

    changes = worse + better
    return 1.0 if worse == 0 else float(bdtrc(worse - 1, changes, 0.5))


def quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    if probability in Z:
        return Z[probability]
    from scipy.special import ndtri

    return float(ndtri(probability))


class Decision(NamedTuple):
    """Verdict of the samples on a limit, and the number of samples needed if they are inconclusive."""

    verdict: Literal["pass", "fail", "undecided"]
    bounds: Bounds
    p_value: float | None
    samples_needed: int | None


def decide(pair: Paired, limit: float, confidence: float = 0.95) -> Decision:
    """Decide whether the drop exceeds ``limit``; undecided if its confidence bounds include the limit.

    A drop in accuracy fails only if McNemar's exact test is significant too: the score interval is an
    approximation that is too narrow when few predictions change.
    """
    interval = bounds(pair, confidence)
    p_value = mcnemar(pair.worse, pair.better) if pair.is_binary else None
    significant = p_value is None or limit < 0 or p_value <= 1 - confidence
    if interval.low > limit and significant:
        return Decision("fail", interval, p_value, None)
    if interval.high <= limit:
        return Decision("pass", interval, p_value, None)
    return Decision("undecided", interval, p_value, samples_needed(pair, limit, confidence))


def samples_needed(pair: Paired, limit: float, confidence: float = 0.95) -> int | None:
    """Number of samples that would decide, extrapolated from these; None if no number would."""
    count = len(pair.before)
    if pair.is_binary:
        worse, better = pair.worse / count, pair.better / count

        def decided(samples: int) -> bool:
            interval = score_bounds(worse * samples, better * samples, samples, confidence)
            return interval.low > limit or interval.high <= limit

        if not decided(MAX_SAMPLES):
            return None
        low, high = count, MAX_SAMPLES
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decided(middle) else (middle, high)
        return high
    distance = abs(float(pair.drops.mean()) - limit)
    spread = float(pair.drops.std(ddof=1)) if count > 1 else math.inf
    if distance == 0 or not math.isfinite(spread):
        return None
    needed = math.ceil((quantile(confidence) * spread / distance) ** 2)
    return max(needed, count + 1) if needed <= MAX_SAMPLES else None


def detectable_drop(pair: Paired, confidence: float = 0.95) -> float:
    """The smallest drop that this many samples detect with a probability of 80 %.

    For accuracy, random changes in both directions are assumed to be as frequent as here, in addition to
    the drop.
    """
    count = len(pair.before)
    reach = (quantile(confidence) + quantile(POWER)) ** 2
    if not pair.is_binary:
        spread = float(pair.drops.std(ddof=1)) if count > 1 else math.inf
        return math.sqrt(reach / count) * spread
    # drop^2 * n = reach * (noise + drop - drop^2): the variance of one difference is the fraction of changed
    # samples minus the square of the mean.
    noise = 2 * min(pair.worse, pair.better) / count
    a, b, c = count + reach, -reach, -reach * noise
    return min(1.0, (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a))
