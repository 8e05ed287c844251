"""How sure a drop is: two models judged on the same samples, compared sample by sample.

Scores of 0 and 1 (right or wrong) are compared by the score interval for the difference of paired
proportions (Tango, Statistics in Medicine 17, 1998) and by McNemar's exact test; any other score by a
bootstrap of the differences (Efron 1987, bias-corrected and accelerated).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEAN_RESAMPLES = 1000
RESAMPLES = 2000
POWER = 0.8
"""Probability with which the smallest detectable drop is shown where it is real."""
MOST_SAMPLES = 10_000_000
Z = {0.8: 0.8416212335729143, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722, 0.99: 2.3263478740408408}
"""Quantiles of the normal distribution that are asked for again and again: spares an import of a second."""


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

    The number of values under a quantile is binomial, which gives the ranks of the interval without
    resampling; it is what the bootstrap of a quantile converges to (David and Nagaraja 2003, 7.1).
    """
    count = len(values)
    if count < 2:
        return None
    spread = 1.96 * math.sqrt(count * q * (1 - q))
    low, high = math.floor(count * q - spread), math.ceil(count * q + spread)
    ordered = np.sort(values)
    return float(ordered[max(low, 0)]), float(ordered[min(high, count - 1)])


class Paired(NamedTuple):
    """One value per sample of the model before and after, where higher is better."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def drops(self) -> NDArray[np.float64]:
        """What each sample lost."""
        return self.before - self.after

    @property
    def is_binary(self) -> bool:
        """Whether every value is right (1) or wrong (0)."""
        return bool(np.isin(self.before, (0.0, 1.0)).all() and np.isin(self.after, (0.0, 1.0)).all())

    @property
    def worse(self) -> int:
        """Samples that were right and are wrong now."""
        return int((self.drops > 0).sum())

    @property
    def better(self) -> int:
        """Samples that were wrong and are right now."""
        return int((self.drops < 0).sum())


class Bounds(NamedTuple):
    """The drop lies above ``low``, and below ``high``, each with the confidence asked for."""

    low: float
    high: float


def bounds(pair: Paired, confidence: float = 0.95) -> Bounds:
    """One-sided bounds of the mean drop."""
    if pair.is_binary:
        return score_bounds(pair.worse, pair.better, len(pair.before), confidence)
    return _bootstrap_bounds(pair.drops, confidence)


def score_bounds(worse: float, better: float, samples: float, confidence: float) -> Bounds:
    """Bounds of the drop in the share of right answers, by inverting Tango's score test.

    ``worse`` and ``better`` of ``samples`` pairs changed; they need not be whole, so that other sample
    sizes can be asked about.
    """
    z = quantile(confidence)
    drop = (worse - better) / samples

    def statistic(limit: float) -> float:
        return _score(worse, better, samples, limit)

    low = -1.0 if statistic(-1.0) <= z else _where(lambda limit: statistic(limit) - z, -1.0, drop)
    high = 1.0 if statistic(1.0) >= -z else _where(lambda limit: statistic(limit) + z, drop, 1.0)
    return Bounds(low, high)


def _score(worse: float, better: float, samples: float, limit: float) -> float:
    """Tango's statistic for the hypothesis that the drop is ``limit``; at 0 it is McNemar's."""
    spread = limit * (1 - limit)
    a, c = 2 * samples, -better * spread
    b = -worse - better + (2 * samples - worse + better) * limit
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = samples * (2 * share + spread)
    distance = worse - better - samples * limit
    if variance <= 1e-12:
        return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _where(falls: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, by bisection: it need not be smooth at the ends."""
    for _ in range(60):
        middle = (low + high) / 2
        if falls(middle) > 0:
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
        found = stats.bootstrap(
            (drops,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            alternative=side,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
        ends[side] = float(found.low if side == "greater" else found.high)
    return Bounds(ends["greater"], ends["less"])


def mcnemar(worse: int, better: int) -> float:
    """Exact one-sided p-value of so many changes for the worse if both kinds were equally likely.

    McNemar 1947: the number of worse among all changes is binomial with probability one half.
    """
    from scipy.special import bdtrc

    changes = worse + better
    return 1.0 if worse == 0 else float(bdtrc(worse - 1, changes, 0.5))


def quantile(probability: float) -> float:
    """Of the normal distribution."""
    if probability in Z:
        return Z[probability]
    from scipy.special import ndtri

    return float(ndtri(probability))


class Decision(NamedTuple):
    """What the samples say of a limit, and how many it would take where they say nothing."""

    verdict: Literal["pass", "fail", "undecided"]
    bounds: Bounds
    p_value: float | None
    samples_needed: int | None


def decide(pair: Paired, limit: float, confidence: float = 0.95) -> Decision:
    """Whether the drop exceeds ``limit``: only where its bounds leave no doubt.

    A drop of right answers fails only if McNemar's exact test finds a drop at all as well: the score
    interval is an approximation, and too sure of itself when few answers change.
    """
    found = bounds(pair, confidence)
    p_value = mcnemar(pair.worse, pair.better) if pair.is_binary else None
    sure = p_value is None or limit < 0 or p_value <= 1 - confidence
    if found.low > limit and sure:
        return Decision("fail", found, p_value, None)
    if found.high <= limit:
        return Decision("pass", found, p_value, None)
    return Decision("undecided", found, p_value, samples_needed(pair, limit, confidence))


def samples_needed(pair: Paired, limit: float, confidence: float = 0.95) -> int | None:
    """How many samples would decide, if they go on as these; None where no number would."""
    count = len(pair.before)
    if pair.is_binary:
        worse, better = pair.worse / count, pair.better / count

        def decided(samples: int) -> bool:
            found = score_bounds(worse * samples, better * samples, samples, confidence)
            return found.low > limit or found.high <= limit

        if not decided(MOST_SAMPLES):
            return None
        low, high = count, MOST_SAMPLES
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decided(middle) else (middle, high)
        return high
    distance = abs(float(pair.drops.mean()) - limit)
    spread = float(pair.drops.std(ddof=1)) if count > 1 else math.inf
    if distance == 0 or not math.isfinite(spread):
        return None
    needed = math.ceil((quantile(confidence) * spread / distance) ** 2)
    return max(needed, count + 1) if needed <= MOST_SAMPLES else None


def detectable_drop(pair: Paired, confidence: float = 0.95) -> float:
    """The smallest real drop that these samples would show, with a probability of 80 %.

    For right answers: as many samples change for no reason as did here, and the drop comes on top.
    """
    count = len(pair.before)
    reach = (quantile(confidence) + quantile(POWER)) ** 2
    if not pair.is_binary:
        spread = float(pair.drops.std(ddof=1)) if count > 1 else math.inf
        return math.sqrt(reach / count) * spread
    # drop^2 * n = reach * (noise + drop - drop^2): the variance of one difference is what changes,
    # less the square of its mean.
    noise = 2 * min(pair.worse, pair.better) / count
    a, b, c = count + reach, -reach, -reach * noise
    return min(1.0, (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a))
