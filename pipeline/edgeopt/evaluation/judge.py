"""Gates: from measurements to verdicts. Pure: the same report gives the same verdicts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from edgeopt.errors import first_line
from edgeopt.evaluation.confidence.paired import Paired
from edgeopt.evaluation.confidence.verdicts import UNBOUNDED, decide
from edgeopt.plugin import PerSample
from edgeopt.results import MEASUREMENTS, Gate, Result, Verdict


class Evidence(NamedTuple):
    """Per-sample results of one artifact."""

    pairs: Mapping[str, Paired]
    """Per metric, the values of the source model and of the artifact for every sample; higher is better.

    Of a metric of the whole set, such as mAP, they are the samples' contributions."""
    labels: Mapping[str, PerSample | None] = {}
    """Per metric."""
    names: tuple[str, ...] = ()
    """Class names, if there are any."""
    lower: frozenset[str] = frozenset()
    """Metrics for which lower is better: their values are negated in ``pairs``."""


AllEvidence: TypeAlias = Mapping[tuple[str, str, str], Evidence]
"""By variant, format and device."""


def judge(
    gates: Sequence[Gate],
    results: Sequence[Result],
    evidence: AllEvidence | None = None,
    failures: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """Evaluate every gate on every result that it applies to. An unmeasured value fails.

    A gate without a variant applies to the optimized variants and to ``float``. A gate with classes or a
    confidence is evaluated on the per-sample results in ``evidence``. ``failures`` contains the reasons why
    metrics could not be computed.
    """
    known = evidence or {}
    verdicts = []
    for gate in gates:
        applicable = [result for result in results if gate.concerns(result)]
        if not applicable:
            verdicts.append(_verdict(gate, None, None, "the gate applies to no result of this run"))
        failure = (failures or {}).get(gate.metric.removesuffix("_worst_class_drop"), "")
        for result in applicable:
            if failure and result.status == "ok":
                reason = f"{gate.metric} could not be computed: {first_line(failure)}"
                verdicts.append(_verdict(gate, result, None, reason))
            elif gate.classes or gate.confidence is not None:
                samples = known.get((result.variant, result.format, result.device), Evidence({}))
                verdicts.append(_by_samples(gate, result, samples))
            else:
                measured, reason = _measured(gate, result, results)
                verdicts.append(_verdict(gate, result, measured, reason))
    return verdicts


def _by_samples(gate: Gate, result: Result, evidence: Evidence) -> Verdict:
    """Evaluate a gate that needs per-sample results."""
    if result.status != "ok":
        return _verdict(gate, result, None, _not_measured(result))
    pair = evidence.pairs.get(gate.metric)
    if pair is None:
        return _verdict(gate, result, None, f"{gate.metric} has no per-sample values")
    if gate.classes:
        if pair.of_set:
            return _verdict(gate, result, None, f"{gate.metric} is a metric of the whole set, not of classes")
        labels = evidence.labels.get(gate.metric)
        if not isinstance(labels, np.ndarray) or labels.ndim != 1:
            return _verdict(gate, result, None, "the evaluation data have no class labels")
        classes = [
            evidence.names.index(name) if name in evidence.names else int(name) for name in gate.classes
        ]
        chosen = np.isin(labels, classes)
        if not chosen.any():
            return _verdict(
                gate, result, None, f"no evaluation sample belongs to class {', '.join(gate.classes)}"
            )
        pair = pair._replace(before=pair.before[chosen], after=pair.after[chosen])
    kind, limit = gate.limit
    if gate.confidence is None:
        mean = float(pair.after.mean()) * (-1.0 if gate.metric in evidence.lower else 1.0)
        value = float(pair.drops.mean()) if kind == "max_drop" else mean
        return _verdict(gate, result, value, "")
    decision = decide(pair, limit, gate.confidence)
    drop, (low, high) = float(pair.drops.mean()), decision.bounds
    reason = f"{gate.metric} dropped by {drop:.4g} on {len(pair.before)} samples; "
    if decision.bounds == UNBOUNDED:
        reason += "its values have no known range, so few samples do not bound the drop"
    else:
        reason += f"with {gate.confidence:.0%} confidence, by more than {low:.4g} and less than {high:.4g}"
    if decision.verdict == "undecided":
        needed = decision.samples_needed
        reason += f": too few samples to decide whether by more than {limit:g}"
        reason += f"; about {needed:,} would decide it" if needed else "; more samples would not decide it"
    return Verdict(
        gate=str(gate),
        variant=result.variant,
        format=result.format,
        device=result.device,
        status=decision.verdict,
        measured=drop,
        limit=limit,
        reason="" if decision.verdict == "pass" else reason,
        blocks=decision.verdict == "fail" or (decision.verdict == "undecided" and gate.undecided == "fail"),
        confidence=gate.confidence,
        bounds=None if decision.bounds == UNBOUNDED else (low, high),
        p_value=decision.p_value,
        samples_needed=decision.samples_needed,
    )


def _measured(gate: Gate, result: Result, results: Sequence[Result]) -> tuple[float | None, str]:
    kind, _ = gate.limit
    shown = MEASUREMENTS.get(gate.metric)
    # The size of a file is known even if the file could not be run.
    known_anyway = shown is not None and shown.kind == "bytes" and gate.metric in result.measurements
    if result.status != "ok" and not (known_anyway and result.status == "skipped"):
        return None, _not_measured(result)
    values = result.measurements
    if gate.output is not None:
        if gate.output not in result.outputs:
            named = ", ".join(map(repr, result.outputs)) or "only one"
            return None, f"the model has no output {gate.output!r}; it has {named}"
        values = result.outputs[gate.output]
    value = values.get(gate.metric)
    if value is None:
        return None, f"{gate.metric} was not measured"
    if kind in ("max", "min"):
        return value.value, ""
    if kind == "max_drop":
        drop = result.measurements.get(f"{gate.metric}_drop")
        if drop is not None:
            return drop.value, ""
        return None, f"{gate.metric} of the source model was not measured"
    if gate.metric == "latency_ratio":
        return value.value, ""
    base = _float_of(result, results)
    reference = base.measurements.get(gate.metric) if base is not None else None
    if reference is None:
        return None, f"{gate.metric} of the float variant was not measured"
    if kind == "max_increase":
        return value.value - reference.value, ""
    if reference.value == 0:
        return None, f"{gate.metric} of the float variant is 0: the ratio is undefined"
    if shown is not None and (ratio := result.measurements.get(shown.in_turns)) is not None:
        # Two absolute latencies are never divided: the interleaved measurement gives the ratio itself.
        return ratio.value, ""
    return value.value / reference.value, ""


def _not_measured(result: Result) -> str:
    return f"not measured: {first_line(result.reason) or result.status}"


def _float_of(result: Result, results: Sequence[Result]) -> Result | None:
    for other in results:
        if (other.variant, other.format, other.device) == ("float", result.format, result.device):
            return other
    return None


def _verdict(gate: Gate, result: Result | None, measured: float | None, reason: str) -> Verdict:
    kind, limit = gate.limit
    # A drop of exactly the limit passes, and 0.01 has no exact binary representation.
    slack = 1e-9 * max(1.0, abs(limit))
    passed = measured is not None and (
        measured >= limit - slack if kind == "min" else measured <= limit + slack
    )
    if measured is not None and not passed:
        reason = f"{gate.metric} {kind} {limit:g}, measured {measured:.6g}"
    return Verdict(
        gate=str(gate),
        variant=result.variant if result else "-",
        format=result.format if result else "-",
        device=result.device if result else "-",
        status="pass" if passed else "fail",
        measured=measured,
        limit=limit,
        reason=reason,
        blocks=not passed,
    )
