"""Ranges from histograms: exact where required, streaming, and the purpose of each calibrator."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from edgeopt.formats.calibration import MOST_COUNTED, Histogram
from edgeopt.formats.onnx.quantize.calibration import ahead

CALIBRATORS = ("minmax", "percentile", "entropy", "mse")


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part.astype(np.float32))
    return found


def squared_error(values: np.ndarray, low: float, high: float, levels: int = 256) -> float:
    scale = (high - low) / (levels - 1)
    steps = np.clip(np.rint((values - low) / scale), 0, levels - 1)
    return float(((steps * scale + low - values) ** 2).mean())


@pytest.mark.parametrize("scale", [1.0, 3.0, 1000.0])
def test_growing_loses_no_value(scale: float) -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal(500) * factor for factor in (0.001, 1, scale)]
    found = histogram(*parts)
    everything = np.concatenate(parts).astype(np.float32)
    assert found.count == 1500
    assert found.range("minmax") == (everything.min(), everything.max())
    inside = 2 * scale
    share = float((np.abs(everything) > inside).mean())
    assert found.clipped(-inside, inside) == pytest.approx(share, abs=0.01)


def test_one_sample_or_many_give_the_same_counts() -> None:
    values = np.random.default_rng(1).standard_normal((64, 100))
    values[0, 0] = 10.0  # the first sample sets the range
    whole, pieces = histogram(values), histogram(*values)
    assert np.array_equal(whole.counts, pieces.counts)


def test_of_a_large_tensor_evenly_spaced_values_and_both_extremes_are_counted() -> None:
    """All rows and channels alike: a step that divides an axis would see the same ones again and again."""
    values = np.random.default_rng(5).standard_normal((64, 64, 256)).astype(np.float32)
    values += 8 * np.arange(64)[:, np.newaxis, np.newaxis]
    values[3, 5, 7] = 900.0
    found = histogram(*[values] * 3)
    assert found.count == pytest.approx(3 * MOST_COUNTED, rel=0.1)
    assert found.range("minmax") == (min(values.min(), 0.0), 900.0)
    # Half of the planes are above 252.
    assert found.clipped(-np.inf, 252.0) == pytest.approx(0.5, abs=0.01)


def test_percentile_keeps_the_share_it_is_told() -> None:
    values = np.random.default_rng(2).standard_normal((2, 50_000))
    low, high = histogram(*values).range("percentile", percentile=99.0)
    expected = np.quantile(values, [0.005, 0.995])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)


def test_an_outlier_costs_least_with_mse() -> None:
    values = np.concatenate([np.random.default_rng(3).standard_normal(20_000), [60.0]])
    found = histogram(values)
    errors = {name: squared_error(values, *found.range(name, levels=16), 16) for name in CALIBRATORS}
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < 0.5 * errors["minmax"]


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_zero_is_always_inside_and_nothing_is_wider_than_what_was_seen(calibrator: str) -> None:
    random = np.random.default_rng(4)
    for values in (
        random.uniform(3, 5, 500),
        random.uniform(-5, -3, 500),
        np.maximum(random.normal(size=500), 0),
    ):
        low, high = histogram(values).range(calibrator)
        assert min(0, values.min()) - 1e-6 <= low <= 0 <= high <= max(0, values.max()) + 1e-6
        below, above = histogram(values).range(calibrator, symmetric=True)
        assert below == -above


def test_zeros_do_not_outweigh_the_rest() -> None:
    random = np.random.default_rng(5)
    some = np.abs(random.standard_normal(1000))
    with_zeros = histogram(np.concatenate([some, np.zeros(60_000)]))
    assert with_zeros.count == 61_000
    assert with_zeros.range("mse") == histogram(some).range("mse")
    assert histogram(np.zeros(10)).range("entropy") == (0.0, 0.0)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        histogram(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="histogram is empty"):
        Histogram().range("minmax")


@pytest.mark.parametrize("threads", [1, 3])
def test_samples_are_computed_ahead_in_order_and_few_at_a_time(threads: int) -> None:
    taken: list[int] = []
    given: list[int] = []

    def samples() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    def square(number: int) -> int:
        time.sleep(0.01 if number % 3 else 0)
        return number * number

    for number, result in ahead(square, samples(), threads):
        given.append(number)
        assert result == number * number
        assert len(taken) - len(given) <= threads
    assert given == taken == list(range(20))


def test_an_error_of_a_sample_that_is_computed_ahead_is_raised_at_its_turn() -> None:
    def inverse(number: int) -> float:
        return 1 / number

    found = ahead(inverse, [2, 1, 0, 4], 2)
    assert [next(found), next(found)] == [(2, 0.5), (1, 1.0)]
    with pytest.raises(ZeroDivisionError):
        next(found)
