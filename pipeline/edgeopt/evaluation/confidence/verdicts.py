"""Verdicts on a drop and its bounds, from the tests."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from edgeopt.evaluation.confidence.drop_tests import (
    binomial_tail,
    mean_p,
    proportions_p,
    quantile,
    tango,
)
from edgeopt.evaluation.confidence.paired import Paired
from edgeopt.evaluation.confidence.sample_sizes import samples_needed


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
