"""Confidence of an accuracy drop: paired comparison of two models on the same samples.

Binary scores (0 or 1) are compared with an exact test for the difference of paired proportions and McNemar's
exact test, other scores with Gaffke's test for the mean of bounded values (``drop_tests``). The rate of wrong
verdicts is at most 1 - confidence at every sample size; ``benchmarks/gates.py`` prints it. A mean of values
without bounds has no such test (Bahadur and Savage 1956): see ``Paired.largest_change``.

A metric of the whole set, such as mAP, is compared by the contributions of the samples, whose mean it is to
first order. They are bounded by the weight of the heaviest sample.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.drop_tests import (
    binomial,
    binomial_tail,
    likely_counts,
    mean_p,
    proportions_p,
    smallest_counts,
    tango,
)

MEAN_RESAMPLES = 1000
SET_RESAMPLES = 200
"""Fewer, because a metric of the whole set takes milliseconds."""
POWER = 0.8
"""Probability of detecting the smallest detectable drop (power of the test)."""
MAX_SAMPLES = 10_000_000
RAREST = 0.01
"""Fraction of samples with a large change that must not be missed if the metric has no known range."""
PLANNED = 0.9
"""Probability with which a stated number of samples decides, as far as these samples tell."""
DRAWS = 500
"""Random evaluation sets by which the number of samples that would decide is estimated."""
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


class Paired(NamedTuple):
    """One value per sample, before and after; higher is better."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    is_fraction: bool = False
    """Whether the metric has no value outside 0..1 (or -1..0, negated)."""
    reach: float | None = None
    """If these are contributions to a metric of the whole set: by how much one may change, 0 if unknown."""

    @property
    def drops(self) -> NDArray[np.float64]:
        """Drop of each sample."""
        return self.before - self.after

    @property
    def of_set(self) -> bool:
        """Whether the values are contributions to a metric of the whole set."""
        return self.reach is not None

    @property
    def is_bounded(self) -> bool:
        """Whether the largest possible change of a value is known."""
        return self.is_fraction if self.reach is None else self.reach > 0

    @property
    def is_binary(self) -> bool:
        """Whether every value is 1 (correct) or 0 (wrong)."""
        if self.of_set:
            return False
        # Zeros alone may just as well be losses.
        known = self.is_fraction or bool((self.before == 1).any() or (self.after == 1).any())
        return known and bool(
            np.isin(self.before, (0.0, 1.0)).all() and np.isin(self.after, (0.0, 1.0)).all()
        )

    @property
    def worse(self) -> int:
        """Number of samples with a lower value than before."""
        return int((self.drops > 0).sum())

    @property
    def better(self) -> int:
        """Number of samples with a higher value than before."""
        return int((self.drops < 0).sum())

    @property
    def unchanged(self) -> bool:
        """Whether every sample has the value that it had before."""
        return np.array_equal(self.before, self.after)

    @property
    def range(self) -> float:
        """The largest minus the smallest value that is known to be possible; 1 for fractions."""
        values = np.concatenate([self.before, self.after])
        if not self.of_set and self.is_fraction and np.abs(values).max(initial=0) <= 1:
            return 1.0
        return max(float(values.max(initial=0) - values.min(initial=0)), self.reach or 0.0)

    def largest_change(self, confidence: float) -> float | None:
        """The largest possible change of one sample; None if the samples say nothing about it.

        It is 1 for fractions, and at least the reach of contributions. Otherwise it is the range of all
        values and 0, provided that there are enough samples to see, at this confidence, a change that affects
        one of a hundred.
        """
        enough = self.is_bounded or len(self.before) >= smallest_set(confidence)
        return self.range if enough and 0 < self.range < math.inf else None


def common_reach(one: float, other: float) -> float:
    """The reach of pairs of contributions of two models; 0 if that of one is unknown."""
    return max(one, other) if one and other else 0.0


def smallest_set(confidence: float) -> int:
    """Number of samples that show a change of one in a hundred with this probability ("rule of three")."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - RAREST))


class Bounds(NamedTuple):
    """One-sided bounds: the drop exceeds ``low`` and is below ``high``, each with the given confidence."""

    low: float
    high: float


UNBOUNDED = Bounds(-math.inf, math.inf)


class _Test(NamedTuple):
    """The tests of a drop on one set of pairs, as p-values of a limit."""

    exceeds: Callable[[float], float]
    """p-value of the hypothesis that the drop is at most the limit."""
    below: Callable[[float], float]
    """p-value of the hypothesis that the drop is at least the limit."""
    start: Callable[[], Bounds]
    """Approximate bounds."""
    largest: float
    """No drop is larger, and none less than its negative."""


def _test(pair: Paired, confidence: float) -> _Test | None:
    count, worse, better, drops = len(pair.before), pair.worse, pair.better, pair.drops
    if pair.is_binary:
        return _Test(
            lambda limit: proportions_p(worse, better, count, limit),
            lambda limit: proportions_p(better, worse, count, -limit),
            lambda: score_bounds(worse, better, count, confidence),
            1.0,
        )
    largest = pair.largest_change(confidence)
    if largest is None:
        return None
    mean = float(drops.mean())
    reach = quantile(confidence) * float(drops.std()) / math.sqrt(count) + 3 * largest / count
    return _Test(
        lambda limit: float(mean_p(drops, limit, -largest)[0]),
        lambda limit: float(mean_p(-drops, -limit, -largest)[0]),
        lambda: Bounds(max(mean - reach, -largest), min(mean + reach, largest)),
        largest,
    )


def bounds(pair: Paired, confidence: float = 0.95) -> Bounds:
    """One-sided bounds of the mean drop, by inverting the tests; infinite if there is no valid test."""
    test = _test(pair, confidence)
    return UNBOUNDED if test is None else _invert(test, float(pair.drops.mean()), confidence)


def _invert(test: _Test, mean: float, confidence: float) -> Bounds:
    alpha, start = 1 - confidence, test.start()
    low = _boundary(lambda limit: test.exceeds(limit) <= alpha, mean, start.low, -test.largest)
    high = _boundary(lambda limit: test.below(limit) <= alpha, mean, start.high, test.largest)
    return Bounds(low, high)


def _boundary(rejected: Callable[[float], bool], mean: float, start: float, end: float) -> float:
    """The limit closest to ``mean`` that is rejected, to 1 % of its distance; ``end`` if none is.

    The search brackets it around the approximation ``start``, because each test takes milliseconds.
    """
    step = (start - mean) / 16 or (end - mean) / 64
    inner = outer = start
    while inner != mean and rejected(inner):
        outer, inner = inner, mean if abs(inner - mean) <= abs(step) else inner - step
    while outer == inner or not rejected(outer):
        inner, outer = outer, outer + step
        step *= 2
        if abs(outer - mean) >= abs(end - mean):
            outer = end
            break
    for _ in range(5):
        middle = (inner + outer) / 2
        inner, outer = (inner, middle) if rejected(middle) else (middle, outer)
    return outer


def score_bounds(worse: float, better: float, samples: float, confidence: float) -> Bounds:
    """Approximate bounds of the drop in accuracy, by inverting Tango's score test.

    With 100 samples they are wrong twice as often as they should be; exact ones start from them.
    """
    z = quantile(confidence)
    drop = (worse - better) / samples

    def statistic(limit: float) -> float:
        return float(tango(np.array(worse), np.array(better), samples, limit))

    low = -1.0 if statistic(-1.0) <= z else _root(lambda limit: statistic(limit) - z, -1.0, drop)
    high = 1.0 if statistic(1.0) >= -z else _root(lambda limit: statistic(limit) + z, drop, 1.0)
    return Bounds(low, high)


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Root of a decreasing function by bisection, which needs no smoothness at the ends."""
    for _ in range(60):
        middle = (low + high) / 2
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mcnemar(worse: int, better: int) -> float:
    """Exact one-sided p-value of ``worse`` changes, if both directions are equally likely.

    McNemar 1947: the number of changes for the worse is binomial with probability 1/2.
    """
    return float(binomial_tail(np.array(worse), np.array(worse + better), 0.5))


def quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    if probability in Z:
        return Z[probability]
    from scipy.special import ndtri

    return float(ndtri(probability))


Answer = Literal["pass", "fail", "undecided"]


class Decision(NamedTuple):
    """Verdict of the samples on a limit, and the number of samples needed if they are inconclusive."""

    verdict: Answer
    bounds: Bounds
    p_value: float | None
    samples_needed: int | None


def verdict(pair: Paired, limit: float, confidence: float = 0.95) -> Answer:
    """Whether the drop exceeds ``limit``, at this confidence.

    A drop in accuracy fails only if McNemar's exact test finds a drop as well.
    """
    return _verdict(pair, _test(pair, confidence), limit, 1 - confidence)


def _verdict(pair: Paired, test: _Test | None, limit: float, alpha: float) -> Answer:
    if test is None:
        return "undecided"
    mean = float(pair.drops.mean())
    if mean > limit and test.exceeds(limit) <= alpha:
        found = not pair.is_binary or limit < 0 or mcnemar(pair.worse, pair.better) <= alpha
        return "fail" if found else "undecided"
    return "pass" if mean <= limit and test.below(limit) <= alpha else "undecided"


def decide(pair: Paired, limit: float, confidence: float = 0.95) -> Decision:
    """Decide whether the drop exceeds ``limit``, with the bounds of the drop; see ``verdict``."""
    test = _test(pair, confidence)
    answer = _verdict(pair, test, limit, 1 - confidence)
    p_value = mcnemar(pair.worse, pair.better) if pair.is_binary else None
    if test is None:
        return Decision(answer, UNBOUNDED, p_value, samples_needed(pair, limit, confidence))
    low, high = _invert(test, float(pair.drops.mean()), confidence)
    # The bounds are rounded, but must agree with the verdict.
    low = max(low, limit) if answer == "fail" else min(low, limit)
    high = min(high, limit) if answer == "pass" else max(high, limit)
    needed = samples_needed(pair, limit, confidence) if answer == "undecided" else None
    return Decision(answer, Bounds(low, high), p_value, needed)


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
