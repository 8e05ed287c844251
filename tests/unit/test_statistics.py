"""Confidence of a drop, compared with published values, an independent solution, and simulation."""

import math

import numpy as np
import pytest

from edgeopt.evaluation.statistics import (
    Paired,
    bounds,
    decide,
    detectable_drop,
    mcnemar,
    samples_needed,
    score_bounds,
)


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
    assert decision.samples_needed == 268
    assert decide(pair(0, 0, 268), 0.01).verdict == "pass"
    assert decide(pair(0, 0, 267), 0.01).verdict == "undecided"


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
    fails = [decide(pair(worse, better, 400), 0.0).verdict == "fail" for worse, better, _ in draws]
    assert 0.01 < np.mean(fails) < 0.06


def test_a_drop_of_the_detectable_size_is_usually_found() -> None:
    random = np.random.default_rng(1)
    drop = detectable_drop(pair(10, 10, 400))
    assert 0.03 < drop < 0.045

    def found(size: float) -> float:
        draws = random.multinomial(400, [0.025 + size, 0.025, 0.95 - size], 300)
        return float(np.mean([decide(pair(w, b, 400), 0.0).verdict == "fail" for w, b, _ in draws]))

    assert 0.65 < found(drop) < 0.9
    assert found(2 * drop) >= 0.95


def test_other_scores_are_bootstrapped() -> None:
    random = np.random.default_rng(2)
    before = random.normal(1.0, 0.1, 500)
    shifted = Paired(before, before - random.normal(0.05, 0.1, 500))
    assert not shifted.is_binary
    low, high = bounds(shifted)
    expected = 1.645 * 0.1 / math.sqrt(500)
    mean = float(shifted.drops.mean())
    assert (low, high) == pytest.approx((mean - expected, mean + expected), abs=0.0015)
    assert decide(shifted, 0.01).verdict == "fail"
    assert decide(shifted, 0.1).verdict == "pass"
    near = decide(shifted, mean + 0.002)
    assert near.verdict == "undecided"
    assert near.samples_needed == pytest.approx((1.645 * 0.1 / 0.002) ** 2, rel=0.1)
    assert detectable_drop(shifted) == pytest.approx(2.487 * 0.1 / math.sqrt(500), rel=0.1)


def test_one_sample_or_equal_ones_are_no_error() -> None:
    assert decide(Paired(np.array([0.5]), np.array([0.4])), 0.0).verdict == "undecided"
    assert decide(Paired(np.full(9, 0.5), np.full(9, 0.25)), 0.0).verdict == "fail"
    assert decide(pair(1, 0, 1), 0.0).verdict == "undecided"
