import numpy as np
import pytest

from edgeopt.comparison import hop
from edgeopt.judge import judge
from edgeopt.measurements import accuracy, latency
from edgeopt.metrics.agreement import Agreement
from edgeopt.metrics.top1 import Top1
from edgeopt.results import Gate, Measurement, Result
from edgeopt.statistics import bootstrap, quantile_interval


def result(variant: str = "int8", status: str = "ok", device: str = "host", **values: float) -> Result:
    return Result.model_validate(
        {
            "variant": variant,
            "format": "tflite",
            "device": device,
            "status": status,
            "reason": "" if status == "ok" else "broken for a reason",
            "measurements": {name: Measurement(value=value) for name, value in values.items()},
        }
    )


def verdicts(gate: Gate, *results: Result) -> list[tuple[str, float | None]]:
    return [(v.status, v.measured) for v in judge([gate], results)]


def test_limits_hold_at_the_limit_and_fail_beyond() -> None:
    assert verdicts(Gate(metric="size_bytes", max=100), result(size_bytes=100)) == [("pass", 100)]
    assert verdicts(Gate(metric="size_bytes", max=100), result(size_bytes=101)) == [("fail", 101)]
    assert verdicts(Gate(metric="top1", min=0.9), result(top1=0.9)) == [("pass", 0.9)]
    assert verdicts(Gate(metric="top1", max_drop=0.01), result(top1=0.8, top1_drop=0.01)) == [("pass", 0.01)]
    assert verdicts(Gate(metric="top1", max_drop=0.01), result(top1=0.8, top1_drop=0.011)) == [
        ("fail", 0.011)
    ]


def test_ratio_and_increase_are_against_the_float_variant() -> None:
    base, small = result("float", size_bytes=400), result(size_bytes=100)
    gate = Gate(metric="size_bytes", max_ratio=0.3, variants=("int8",))
    assert verdicts(gate, base, small) == [("pass", 0.25)]
    gate = Gate(metric="size_bytes", max_increase=-250, variants=("int8",))
    assert verdicts(gate, base, small) == [("pass", -300)]


def test_a_latency_ratio_is_never_made_from_two_absolute_times() -> None:
    base = result("float", latency_p50_ms=1.0)
    fast = result(latency_p50_ms=0.1, latency_ratio=0.9)
    gate = Gate(metric="latency_p50_ms", max_ratio=0.5, variants=("int8",))
    assert verdicts(gate, base, fast) == [("fail", 0.9)]


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Gate(metric="top1", max_drop=0.01), "top1 was not measured"),
        (Gate(metric="top1", max_drop=0.01, formats=("onnx",)), "nothing in this run fits the gate"),
        (Gate(metric="latency_p50_ms", max=1), "latency_p50_ms was not measured"),
        (Gate(metric="size_bytes", max_ratio=0.5), "size_bytes of the float variant was not measured"),
    ],
)
def test_a_gate_on_what_was_not_measured_fails(gate: Gate, reason: str) -> None:
    (verdict,) = judge([gate], [result(size_bytes=5)])
    assert (verdict.status, verdict.measured, verdict.reason) == ("fail", None, reason)


def test_a_gate_on_a_failed_result_fails_with_its_reason() -> None:
    (verdict,) = judge([Gate(metric="size_bytes", max=9)], [result(status="failed", size_bytes=5)])
    assert (verdict.status, verdict.reason) == ("fail", "not measured: broken for a reason")


def logits(classes: list[int], margin: float = 4.0) -> np.ndarray:
    out = np.zeros((len(classes), 10), np.float32)
    out[np.arange(len(classes)), classes] = margin
    return out


def test_a_drop_is_paired_with_the_source() -> None:
    labels = np.arange(100) % 10
    source = logits([*labels[:90], *((labels[90:] + 1) % 10)])
    worse = logits([*labels[:88], *((labels[88:] + 1) % 10)])
    found = accuracy([("top1", Top1()), ("agreement", Agreement())], worse, labels, source)
    assert found["top1"].value == pytest.approx(0.88)
    assert found["top1_drop"].value == pytest.approx(0.02)
    low, high = found["top1_drop"].ci95 or (0, 0)
    assert -1e-9 <= low <= 0.02 <= high <= 0.06
    assert found["agreement"].value == pytest.approx(0.98)


def test_a_collapsed_model_is_named_by_the_step_that_broke_it() -> None:
    before = logits(list(np.arange(64) % 10))
    after = logits([3] * 64)
    found = hop("quantize_onnx", "onnx", lossless=False, before=before, after=after)
    assert found.status == "broken"
    assert found.agreement == pytest.approx(7 / 64)
    assert found.reason.startswith("quantize_onnx broke the model: SNR ")


def test_a_conversion_is_held_to_the_outputs_and_a_quantization_is_not() -> None:
    before = logits(list(np.arange(64) % 10))
    noisy = before + np.float32(0.05)
    assert hop("to", "onnx", lossless=True, before=before, after=noisy).status == "broken"
    assert hop("quantize", "onnx", lossless=False, before=before, after=noisy).status == "ok"
    exact = hop("to", "onnx", lossless=True, before=before, after=before + np.float32(1e-6))
    assert exact.status == "ok"
    assert exact.max_abs_error == pytest.approx(1e-6, rel=0.2)


def test_nan_outputs_are_broken_and_stay_finite_in_the_report() -> None:
    before = logits([1, 2, 3])
    found = hop("to", "onnx", lossless=False, before=before, after=before * np.float32(np.nan))
    assert found.status == "broken"
    assert np.isfinite([found.snr_db, found.max_abs_error]).all()


def test_another_output_shape_is_broken() -> None:
    found = hop("to", "onnx", lossless=True, before=np.zeros((4, 10)), after=np.zeros((4, 9)))
    assert found.reason == "to changed the output shape from [10] to [9]"


def test_latency_percentiles_and_interleaved_ratio() -> None:
    seconds = np.linspace(1e-3, 2e-3, 101)
    found = latency({}, {"latency": seconds, "baseline": seconds * 2})
    assert found["latency_p50_ms"].value == pytest.approx(1.5)
    assert found["latency_p90_ms"].value == pytest.approx(1.9)
    assert found["latency_ratio"].value == pytest.approx(0.5)
    low, high = found["latency_p50_ms"].ci95 or (0, 0)
    assert 1.3 < low < 1.5 < high < 1.7


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    medians = [quantile_interval(random.exponential(1, 200), 0.5) for _ in range(400)]
    means = [bootstrap(random.exponential(1, 200)) for _ in range(200)]
    assert 0.92 <= np.mean([i is not None and i[0] <= np.log(2) <= i[1] for i in medians]) <= 0.99
    assert 0.88 <= np.mean([i is not None and i[0] <= 1 <= i[1] for i in means]) <= 0.99


def test_a_source_model_that_guesses_is_told() -> None:
    from types import SimpleNamespace
    from typing import Any

    from edgeopt.assemble import doubts
    from edgeopt.results import SourceResult

    measured: Any = SimpleNamespace(source=SimpleNamespace(outputs=(logits([1, 2]),)))

    def source(top1: float) -> SourceResult:
        value = Measurement(value=top1, n=446)
        return SourceResult(format="keras", path="m.keras", measurements={"top1": value})

    (doubt,) = doubts(source(0.1121), measured)
    assert "right for 11.2% of 446 samples, which is guessing among 10 classes" in doubt
    assert doubts(source(0.5), measured) == []
