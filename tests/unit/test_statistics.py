"""Confidence of a drop, compared with published values, an independent solution, and simulation."""

import math

import numpy as np
import pytest
from scipy.special import gammaln, xlogy

from edgeopt.evaluation.confidence.drop_tests import mean_p, tango
from edgeopt.evaluation.confidence.paired import Paired, common_reach
from edgeopt.evaluation.confidence.sample_sizes import detectable_drop, samples_needed
from edgeopt.evaluation.confidence.verdicts import UNBOUNDED, bounds, decide, mcnemar, score_bounds, verdict
from edgeopt.evaluation.metrics.miou import Miou


def pair(worse: int, better: int, samples: int) -> Paired:
    before, after = np.ones(samples), np.ones(samples)
    after[:worse] = 0
    before[worse : worse + better] = 0
    return Paired(before, after)


def test_mcnemar_is_the_binomial_test() -> None:
    # Approval of a prime minister, two surveys (Agresti 2002, table 10.1): 150 changed one way, 86 the other.
    assert mcnemar(150, 86) == pytest.approx(1.9e-5, rel=0.1)
    assert mcnemar(3, 0) == 0.125
    assert mcnemar(10, 2) == pytest.approx(sum(math.comb(12, k) for k in (10, 11, 12)) / 2**12)
    assert mcnemar(0, 5) == 1.0


def test_the_interval_is_the_published_one() -> None:
    # The same data: 0.040 with a 95 % interval from 0.021 to 0.059.
    low, high = score_bounds(150, 86, 1600, 0.975)
    assert (round(low, 3), round(high, 3)) == (0.021, 0.059)


@pytest.mark.parametrize(("worse", "better", "samples"), [(12, 2, 50), (1, 0, 44), (0, 0, 40), (7, 7, 100)])
@pytest.mark.parametrize("side", [0, 1])
def test_the_bounds_solve_the_score_equation(worse: int, better: int, samples: int, side: int) -> None:
    limit = score_bounds(worse, better, samples, 0.95)[side]
    # Maximum-likelihood fraction of better answers if the drop equals the limit, on a fine grid.
    shares = np.linspace(max(0.0, -limit), (1 - limit) / 2, 2_000_003)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (
            np.nan_to_num(worse * np.log(shares + limit), nan=-np.inf)
            + np.nan_to_num(better * np.log(shares), nan=-np.inf)
            + (samples - worse - better) * np.log(1 - 2 * shares - limit)
        )
    share = shares[likelihood.argmax()]
    z = (worse - better - samples * limit) / math.sqrt(samples * (2 * share + limit * (1 - limit)))
    assert abs(z) == pytest.approx(1.645, abs=0.01)


def test_forty_samples_without_a_change_decide_nothing_about_one_point() -> None:
    decision = decide(pair(0, 0, 40), 0.01)
    assert decision.verdict == "undecided"
    # "Rule of three": 0.99^299 is just below 5 %. The score test is content with 268, and wrong in 6.8 %.
    assert verdict(pair(0, 0, 299), 0.01) == "pass"
    assert verdict(pair(0, 0, 298), 0.01) == "undecided"
    # 40 samples without a change do not show that changes are rare: 299 would rarely be enough.
    assert 299 < (decision.samples_needed or 0) < 10_000


def test_a_real_drop_fails_and_a_small_one_passes() -> None:
    assert decide(pair(20, 4, 400), 0.01).verdict == "fail"
    assert decide(pair(1, 1, 400), 0.01).verdict == "pass"
    assert decide(pair(8, 4, 400), 0.01).verdict == "undecided"


def test_three_changes_are_no_proof() -> None:
    # The score test alone would be significant (z = 1.73); the exact test is not (p = 0.125).
    assert score_bounds(3, 0, 100_000, 0.95).low > 0
    assert decide(pair(3, 0, 100_000), 0.0).verdict == "undecided"


def test_no_number_of_samples_decides_a_drop_that_is_the_limit() -> None:
    assert samples_needed(pair(4, 0, 400), 0.01) is None


@pytest.mark.slow
@pytest.mark.parametrize("changing", [0.02, 0.1])
def test_without_a_drop_at_most_one_in_twenty_fails(changing: float) -> None:
    random = np.random.default_rng(0)
    draws = random.multinomial(400, [changing / 2, changing / 2, 1 - changing], 1000)
    fails = [verdict(pair(worse, better, 400), 0.0) == "fail" for worse, better, _ in draws]
    assert 0.01 < np.mean(fails) < 0.06


def test_a_drop_of_the_detectable_size_is_usually_found() -> None:
    random = np.random.default_rng(1)
    drop = detectable_drop(pair(10, 10, 400))
    assert 0.03 < drop < 0.045

    def found(size: float) -> float:
        draws = random.multinomial(400, [0.025 + size, 0.025, 0.95 - size], 300)
        return float(np.mean([verdict(pair(w, b, 400), 0.0) == "fail" for w, b, _ in draws]))

    assert 0.78 < found(drop) < 0.9
    assert found(2 * drop) >= 0.95


def test_other_scores_have_the_bounds_of_a_mean() -> None:
    random = np.random.default_rng(2)
    before = random.normal(1.0, 0.1, 500)
    shifted = Paired(before, before - random.normal(0.05, 0.1, 500))
    assert not shifted.is_binary
    low, high = bounds(shifted)
    expected = 1.645 * 0.1 / math.sqrt(500)
    mean = float(shifted.drops.mean())
    # Wider than for a normal distribution: one sample more might have lost as much as any value permits.
    assert (low, high) == pytest.approx((mean - expected, mean + expected), abs=0.005)
    assert low < mean - expected < mean + expected < high
    assert decide(shifted, 0.01).verdict == "fail"
    assert decide(shifted, 0.1).verdict == "pass"
    near = decide(shifted, mean + 0.002)
    assert near.verdict == "undecided"
    assert (near.samples_needed or 0) > (1.645 * 0.1 / 0.002) ** 2
    assert 1 < detectable_drop(shifted) / (2.487 * 0.1 / math.sqrt(500)) < 1.5


def test_one_sample_or_equal_ones_are_no_error() -> None:
    assert decide(Paired(np.array([0.5]), np.array([0.4])), 0.0).verdict == "undecided"
    assert decide(pair(1, 0, 1), 0.0).verdict == "undecided"
    equal = Paired(np.full(60, 0.5), np.full(60, 0.25), is_fraction=True)
    assert decide(equal, 0.0).verdict == "fail"


def test_a_mean_without_known_range_needs_samples_that_show_rare_losses() -> None:
    # Without a loss among the first samples, the next one may cost any amount.
    few = decide(Paired(np.full(20, 7.0), np.full(20, 7.0)), 0.5)
    assert (few.verdict, few.bounds) == ("undecided", UNBOUNDED)
    assert (few.samples_needed or 0) >= 299
    assert detectable_drop(Paired(np.full(20, 7.0), np.full(20, 7.0))) == math.inf
    # Zeros alone have no scale at any number; ones are correct answers.
    assert verdict(Paired(np.zeros(9000), np.zeros(9000)), 0.5) == "undecided"
    assert verdict(Paired(np.zeros(9000), np.zeros(9000), is_fraction=True), 0.5) == "pass"
    # A fraction loses at most 1: the rule of three holds.
    equal = np.full(61, 0.9)
    assert verdict(Paired(equal, equal, is_fraction=True), 0.05) == "pass"
    assert verdict(Paired(equal[:50], equal[:50], is_fraction=True), 0.05) == "undecided"
    assert verdict(Paired(2 * equal, 2 * equal, is_fraction=True), 0.05) == "undecided"


def test_the_mean_of_two_values_has_the_exact_binomial_p_value() -> None:
    from scipy.special import bdtr

    for count, lost, limit in ((20, 0, 0.1), (100, 3, 0.1), (400, 10, 0.05)):
        drops = np.r_[np.ones(lost), np.zeros(count - lost)]
        p = float(mean_p(-drops, -limit, -1.0)[0])
        assert p == pytest.approx(bdtr(lost, count, limit), rel=0.02)


@pytest.mark.parametrize(("limit", "samples"), [(0.01, 40), (0.01, 100), (0.05, 60), (0.0, 100)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_at_the_limit_a_verdict_is_wrong_in_at_most_one_of_twenty(
    limit: float, samples: int, noise: float
) -> None:
    """Exact: the sum of the probabilities of all outcomes that fail, and of all that pass."""
    better = min(noise / 2, (1 - limit) / 2)
    rates = np.array([better + limit, better, 1 - 2 * better - limit])
    found = dict.fromkeys(("pass", "fail", "undecided"), 0.0)
    spread = np.sqrt(samples * rates) * 4 + 5
    low, high = (np.clip(samples * rates + sign * spread, 0, samples).astype(int) for sign in (-1, 1))
    for worse in range(low[0], high[0] + 1):
        for better_count in range(low[1], min(high[1], samples - worse) + 1):
            counts = np.array([worse, better_count, samples - worse - better_count])
            chance = np.exp(gammaln(samples + 1) + (xlogy(counts, rates) - gammaln(counts + 1)).sum())
            score = abs(float(tango(np.array(worse), np.array(better_count), samples, limit)))
            if score < 1.3:
                found["undecided"] += chance
            elif chance > 1e-6:
                found[verdict(pair(worse, better_count, samples), limit)] += chance
    assert sum(found.values()) > 0.99
    assert max(found["pass"], found["fail"]) <= 0.051


def test_contributions_may_change_as_much_as_the_heaviest_sample() -> None:
    ones = np.ones(400)
    # Without a change, the bound is that of a loss that n samples do not show: 3 / n of the reach.
    for reach in (1.0, 4.0):
        found = decide(Paired(ones, ones, reach=reach), 0.1)
        assert found.verdict == "pass"
        assert found.bounds.high == pytest.approx(reach * -math.log(0.05) / 400, rel=0.03)
    heavy = decide(Paired(ones, ones, reach=4.0), 0.01)
    assert heavy.verdict == "undecided"
    assert heavy.p_value is None
    assert (heavy.samples_needed or 0) > 1200
    # Zeros and ones may have different weights: they are no counts for an exact test.
    assert not Paired(ones, ones, is_fraction=True, reach=1.0).is_binary
    # Contributions reach further than the weights if one of them does.
    far = Paired(ones, np.append(ones[1:], -9.0), reach=2.0)
    assert far.largest_change(0.95) == 10.0


def test_contributions_without_a_reach_need_samples_that_show_rare_losses() -> None:
    values = np.random.default_rng(0).normal(5, 1, 298)
    assert verdict(Paired(values, values, reach=0.0), 0.5) == "undecided"
    more = np.append(values, 5.0)
    assert verdict(Paired(more, more, reach=0.0), 0.5) == "pass"
    assert common_reach(2.0, 3.0) == 3.0
    assert common_reach(2.0, 0.0) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("samples", [30, 60])
def test_a_verdict_on_miou_is_wrong_in_at_most_one_of_twenty(samples: int) -> None:
    """In one image of twenty, the second model answers one class everywhere."""
    random, metric, population = np.random.default_rng(samples), Miou(), 2000
    masks = np.zeros((population, 8, 8), np.int64)
    for mask in masks:
        top, left = random.integers(0, 5, 2)
        mask[top : top + 4, left : left + 4] = random.integers(1, 3)
    before = np.where(random.random(masks.shape) < 0.05, random.integers(0, 3, masks.shape), masks)
    after = before.copy()
    after[random.random(population) < 0.05] = 2
    drop = metric.score(list(before), list(masks)).value - metric.score(list(after), list(masks)).value
    assert drop > 0.05
    found = {"pass": 0, "fail": 0, "undecided": 0}
    for _ in range(300):
        chosen = random.integers(0, population, samples)
        one, other = (
            metric.scored(list(answers[chosen]), list(masks[chosen])).contributions
            for answers in (before, after)
        )
        assert one is not None and other is not None
        found[
            verdict(Paired(one.values, other.values, reach=common_reach(one.reach, other.reach)), drop)
        ] += 1
    # 5 % of 300 are 15. The percentile bootstrap passes 63 (30 samples) and 41 (60 samples).
    assert found["pass"] <= 18 and found["fail"] <= 18


@pytest.mark.slow
def test_the_number_of_samples_that_would_decide_is_usually_enough() -> None:
    random = np.random.default_rng(4)
    enough = []
    for drop in (0.0, 0.03):
        rates = [0.02 + drop, 0.02, 0.96 - drop]
        for worse, better, _ in random.multinomial(150, rates, 60):
            if verdict(pair(worse, better, 150), 0.01) == "undecided":
                needed = samples_needed(pair(worse, better, 150), 0.01)
                assert needed is not None
                more = random.multinomial(needed, rates)
                enough.append(verdict(pair(more[0], more[1], needed), 0.01) != "undecided")
    assert len(enough) > 50
    assert np.mean(enough) >= 0.8
