from typing import Any

import numpy as np
import pytest

from edgeopt.evaluation.confidence.intervals import bootstrap, quantile_interval
from edgeopt.evaluation.confidence.paired import Paired
from edgeopt.evaluation.judge import Evidence, judge
from edgeopt.evaluation.measurements import flips, sample_measurements
from edgeopt.evaluation.metrics.agreement import Agreement
from edgeopt.evaluation.metrics.f1 import F1
from edgeopt.evaluation.metrics.fidelity_snr_db import FidelitySnrDb
from edgeopt.evaluation.metrics.max_abs_error import MaxAbsError
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, NamedMetric
from edgeopt.results import Gate, Report, Result, Run, Verdict
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.readings import latency
from edgeopt.run.scoring import Scorer


def decided(scores: np.ndarray) -> Decisions:
    return Classification().decide(Outputs([scores]))


RUN = Run(started="", seconds=0.0, command="", edgeopt="")


def result(variant: str = "int8", status: str = "ok", device: str = "host", **values: float) -> Result:
    return Result.model_validate(
        {
            "variant": variant,
            "format": "tflite",
            "device": device,
            "status": status,
            "reason": "" if status == "ok" else "broken for a reason",
            "measurements": {name: {"value": value} for name, value in values.items()},
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
        (Gate(metric="top1", max_drop=0.01, formats=("onnx",)), "the gate applies to no result of this run"),
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
    metrics = [NamedMetric("top1", Top1()), NamedMetric("agreement", Agreement())]
    with Scorer(metrics, labels) as scorer:
        assert scorer.source(Outputs([source]))["top1"].value == pytest.approx(0.9)
        found, pairs, *_ = scorer.artifact(Outputs([worse]), Outputs([source]))
    assert scorer.failures == {} and [info.kind for info in scorer.infos()] == ["fraction"] * 2
    assert (pairs["top1"].worse, pairs["top1"].better) == (2, 0)
    assert found["top1"].value == pytest.approx(0.88)
    assert found["top1_drop"].value == pytest.approx(0.02)
    low, high = found["top1_drop"].ci95 or (0, 0)
    assert -1e-9 <= low <= 0.02 <= high <= 0.06
    assert found["agreement"].value == pytest.approx(0.98)


def test_latency_percentiles_and_interleaved_ratio() -> None:
    seconds = np.linspace(1e-3, 2e-3, 101)
    found = latency(Outcome("null", times={"latency": seconds, "baseline": seconds * 2}))
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

    from edgeopt.results import SourceResult
    from edgeopt.run.assemble import plausibility_notes

    scorer: Any = SimpleNamespace(source_decisions={"": decided(logits([1, 2]))}, metrics=[])

    def source(top1: float) -> SourceResult:
        value = {"value": top1, "n": 446}
        return SourceResult(format="keras", path="m.keras", measurements={"top1": value})

    (note,) = plausibility_notes(source(0.1121), scorer)
    assert "correct for 11.2% of 446 samples, which is chance level for 10 classes" in note
    assert plausibility_notes(source(0.5), scorer) == []


def samples(worse: int, better: int, count: int) -> Paired:
    before, after = np.ones(count), np.ones(count)
    after[:worse] = 0
    before[worse : worse + better] = 0
    return Paired(before, after)


def confident(gate: Gate, pair: Paired, **found: Any) -> Verdict:
    row = result(top1=float(pair.after.mean()), top1_drop=float(pair.drops.mean()))
    evidence = {(row.variant, row.format, row.device): Evidence({"top1": pair}, **found)}
    (verdict,) = judge([gate], [row], evidence)
    return verdict


def test_a_confident_gate_says_pass_fail_or_undecided() -> None:
    gate = Gate(metric="top1", max_drop=0.01, confidence=0.95)
    passed = confident(gate, samples(1, 1, 400))
    assert (passed.status, passed.blocks, passed.reason) == ("pass", False, "")
    failed = confident(gate, samples(20, 4, 400))
    assert (failed.status, failed.blocks) == ("fail", True)
    assert failed.p_value is not None
    assert failed.p_value < 0.01
    assert failed.bounds is not None
    assert 0.01 < failed.bounds[0] < 0.04 < failed.bounds[1]
    open_ = confident(gate, samples(0, 0, 40))
    assert (open_.status, open_.blocks) == ("undecided", True)
    assert (open_.samples_needed or 0) > 299
    assert f"about {open_.samples_needed:,} would decide" in open_.reason
    lenient = confident(gate.model_copy(update={"undecided": "pass"}), samples(0, 0, 40))
    assert (lenient.status, lenient.blocks) == ("undecided", False)


def test_few_values_of_a_metric_without_a_range_are_undecided() -> None:
    values = np.random.default_rng(0).random(20) + 5
    verdict = confident(Gate(metric="top1", max_drop=0.5, confidence=0.95), Paired(values, values))
    assert (verdict.status, verdict.bounds) == ("undecided", None)
    assert "no known range" in verdict.reason


def of_set(worse: int, count: int, reach: float) -> Paired:
    """Contributions of which some are lost."""
    before = np.random.default_rng(0).normal(0.8, 0.1, count)
    return Paired(before, before - (np.arange(count) < worse), reach=reach)


def test_a_confident_gate_on_a_metric_of_the_whole_set() -> None:
    gate = Gate(metric="top1", max_drop=0.02, confidence=0.95)
    passed = confident(gate, of_set(0, 400, 2.0))
    assert (passed.status, passed.reason, passed.p_value) == ("pass", "", None)
    assert passed.bounds == pytest.approx((-0.015, 0.015), rel=0.05)
    failed = confident(gate, of_set(40, 400, 2.0))
    assert (failed.status, failed.measured) == ("fail", pytest.approx(0.1))
    assert "top1 dropped by 0.1 on 400 samples; with 95% confidence, by more than 0.0" in failed.reason
    # The same samples, but one of them weighs as much as eight.
    heavy = confident(gate, of_set(0, 400, 8.0))
    assert (heavy.status, heavy.blocks) == ("undecided", True)
    assert (heavy.samples_needed or 0) > 1000
    unknown = confident(gate, of_set(0, 200, 0.0))
    assert "its values have no known range" in unknown.reason
    classes = confident(Gate(metric="top1", max_drop=0.1, classes=("3",)), of_set(0, 400, 2.0))
    assert (classes.status, classes.reason) == ("fail", "top1 is a metric of the whole set, not of classes")


def test_metrics_of_the_whole_set_state_what_they_can_detect() -> None:
    labels, metrics = np.arange(400) % 4, [NamedMetric("f1", F1())]
    found = sample_measurements(metrics, {"f1": of_set(10, 400, 2.0)}, labels)
    # No worst class: the samples of one class do not have a value of their own.
    assert set(found) == {"f1_detectable_drop"}
    assert 0.01 < found["f1_detectable_drop"].value < 0.1


def test_only_a_gate_that_blocks_decides_the_exit_code() -> None:
    def code(**changes: Any) -> int:
        gate = Gate(metric="top1", max_drop=0.01, confidence=0.95, **changes)
        verdict = confident(gate, samples(0, 0, 40))
        return Report(recipe="r", run=RUN, gates=(verdict,)).exit_code

    assert code() == 1
    assert code(undecided="pass") == 0


def test_a_gate_on_classes_judges_their_samples_alone() -> None:
    labels = np.arange(100) % 10
    before, after = np.ones(100), np.ones(100)
    after[labels == 3] = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    pair = Paired(before, after)
    names = tuple("abcdefghij")
    for gate, measured in (
        (Gate(metric="top1", max_drop=0.1, classes=("d",)), 0.4),
        (Gate(metric="top1", max_drop=0.1, classes=("3",)), 0.4),
        (Gate(metric="top1", max_drop=0.1, classes=("d", "e")), 0.2),
        (Gate(metric="top1", min=0.9, classes=("d",)), 0.6),
    ):
        verdict = confident(gate, pair, labels={"top1": labels}, names=names)
        assert (verdict.status, verdict.measured) == ("fail", pytest.approx(measured))
    same = confident(Gate(metric="top1", max_drop=0.0, classes=("4",)), pair, labels={"top1": labels})
    assert same.status == "pass"
    absent = confident(Gate(metric="top1", max_drop=0.1, classes=("42",)), pair, labels={"top1": labels})
    assert absent.reason == "no evaluation sample belongs to class 42"
    unlabelled = confident(Gate(metric="top1", max_drop=0.1, classes=("3",)), pair)
    assert unlabelled.reason == "the evaluation data have no class labels"


def test_a_confident_gate_without_samples_fails() -> None:
    (verdict,) = judge([Gate(metric="top1", max_drop=0.1, confidence=0.9)], [result(top1=0.9, top1_drop=0.0)])
    assert (verdict.status, verdict.blocks) == ("fail", True)
    assert verdict.reason == "top1 has no per-sample values"


def test_samples_tell_the_worst_class_and_what_could_be_seen() -> None:
    labels = np.arange(100) % 10
    after = np.ones(100)
    after[labels == 3] = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    found = sample_measurements([NamedMetric("top1", Top1())], {"top1": Paired(np.ones(100), after)}, labels)
    assert found["top1_worst_class_drop"].value == pytest.approx(0.4)
    assert 0.03 < found["top1_detectable_drop"].value < 0.1


def test_lost_samples_are_listed_most_certain_first() -> None:
    labels = np.arange(20) % 10
    source = logits(list(labels))
    worse = logits([*labels[:18], (labels[18] + 1) % 10, (labels[19] + 1) % 10])
    worse[19] *= 3
    first, second = flips(decided(worse), labels, decided(source))
    assert (first.sample, first.label, first.answer) == (19, 9, 0)
    assert second.sample == 18
    assert first.margin > second.margin > 0
    assert flips(decided(worse), None, decided(source)) == ()


def test_the_worst_output_counts_and_a_gate_can_name_one() -> None:
    random = np.random.default_rng(0)
    boxes, scores = random.uniform(0, 9, (40, 6)), random.uniform(0, 1, (40, 3))
    source = Outputs([boxes, scores], ("boxes", "scores"))
    worse = Outputs([boxes + 0.001, scores + random.normal(0, 0.2, scores.shape)], ("boxes", "scores"))
    with Scorer([NamedMetric.of(FidelitySnrDb()), NamedMetric.of(MaxAbsError())], None) as scorer:
        found, _, outputs, _ = scorer.artifact(worse, source)
    assert list(outputs) == ["boxes", "scores"]
    assert outputs["boxes"]["fidelity_snr_db"].value > 70
    assert found["fidelity_snr_db"] == outputs["scores"]["fidelity_snr_db"]
    assert found["fidelity_snr_db"].value < 15
    assert found["max_abs_error"] == outputs["scores"]["max_abs_error"]
    row = Result(
        variant="int8", format="onnx", device="host", status="ok", measurements=found, outputs=outputs
    )
    gates = [
        Gate(metric="fidelity_snr_db", min=30.0),
        Gate(metric="fidelity_snr_db", min=30.0, output="boxes"),
        Gate(metric="fidelity_snr_db", min=30.0, output="scores"),
        Gate(metric="fidelity_snr_db", min=30.0, output="masks"),
    ]
    verdicts = judge(gates, [row])
    assert [verdict.status for verdict in verdicts] == ["fail", "pass", "fail", "fail"]
    assert verdicts[1].gate == "fidelity_snr_db min 30 output=boxes"
    assert verdicts[3].reason == "the model has no output 'masks'; it has 'boxes', 'scores'"
