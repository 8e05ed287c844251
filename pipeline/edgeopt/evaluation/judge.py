"""From measurements to verdicts. Pure: same report, same verdicts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from edgeopt.evaluation.statistics import Paired, decide
from edgeopt.model import Array
from edgeopt.results import MEASUREMENTS, Gate, Result, Verdict


class Evidence(NamedTuple):
    """What the evaluation samples say of one artifact, one by one."""

    pairs: Mapping[str, Paired]
    """Per metric: the source model's value and the artifact's for every sample, higher is better."""
    labels: Array | None = None
    names: tuple[str, ...] = ()
    """The classes' names, where they have any."""
    lower: frozenset[str] = frozenset()
    """Metrics of which less is better: their values are negative in ``pairs``."""


AllEvidence: TypeAlias = Mapping[tuple[str, str, str], Evidence]
"""By variant, format and device."""


def judge(
    gates: Sequence[Gate],
    results: Sequence[Result],
    evidence: AllEvidence | None = None,
    failures: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """Every gate on every result it concerns. What was not measured fails.

    A gate that names no variant concerns the optimized ones as well as ``float``. One that names
    classes, or asks how sure a drop is, judges the samples themselves: ``evidence`` has them. ``failures``
    says why a metric could not be computed.
    """
    known = evidence or {}
    verdicts = []
    for gate in gates:
        concerned = [result for result in results if gate.concerns(result)]
        if not concerned:
            verdicts.append(_verdict(gate, None, None, "nothing in this run fits the gate"))
        failure = (failures or {}).get(gate.metric.removesuffix("_worst_class_drop"), "")
        for result in concerned:
            if failure and result.status == "ok":
                reason = f"{gate.metric} could not be computed: {failure.splitlines()[0]}"
                verdicts.append(_verdict(gate, result, None, reason))
            elif gate.classes or gate.confidence is not None:
                found = known.get((result.variant, result.format, result.device), Evidence({}))
                verdicts.append(_by_samples(gate, result, found))
            else:
                measured, reason = _measured(gate, result, results)
                verdicts.append(_verdict(gate, result, measured, reason))
    return verdicts


def _by_samples(gate: Gate, result: Result, evidence: Evidence) -> Verdict:
    """A gate that cannot be judged from one number."""
    if result.status != "ok":
        told = result.reason.splitlines()[0] if result.reason else result.status
        return _verdict(gate, result, None, f"not measured: {told}")
    pair = evidence.pairs.get(gate.metric)
    if pair is None:
        return _verdict(gate, result, None, f"{gate.metric} was not measured sample by sample")
    if gate.classes:
        if evidence.labels is None or evidence.labels.ndim != 1:
            return _verdict(gate, result, None, "the evaluation data has no class labels")
        wanted = [
            evidence.names.index(name) if name in evidence.names else int(name) for name in gate.classes
        ]
        chosen = np.isin(evidence.labels, wanted)
        if not chosen.any():
            return _verdict(gate, result, None, f"no evaluation sample is of class {', '.join(gate.classes)}")
        pair = Paired(pair.before[chosen], pair.after[chosen])
    kind, limit = gate.limit
    if gate.confidence is None:
        mean = float(pair.after.mean()) * (-1.0 if gate.metric in evidence.lower else 1.0)
        value = float(pair.drops.mean()) if kind == "max_drop" else mean
        return _verdict(gate, result, value, "")
    decision = decide(pair, limit, gate.confidence)
    drop, (low, high) = float(pair.drops.mean()), decision.bounds
    reason = (
        f"{gate.metric} fell by {drop:.4g} on {len(pair.before)} samples; with {gate.confidence:.0%} "
        f"confidence by more than {low:.4g}, and by less than {high:.4g}"
    )
    if decision.verdict == "undecided":
        needed = decision.samples_needed
        reason += f": too few samples to say whether by more than {limit:g}"
        reason += f"; about {needed:,} would decide" if needed else ", and more of them would not decide it"
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
        bounds=(max(low, -1e300), min(high, 1e300)),
        p_value=decision.p_value,
        samples_needed=decision.samples_needed,
    )


def _measured(gate: Gate, result: Result, results: Sequence[Result]) -> tuple[float | None, str]:
    kind, _ = gate.limit
    shown = MEASUREMENTS.get(gate.metric)
    # The bytes of a file are known even where it could not be run.
    known_anyway = shown is not None and shown.kind == "bytes" and gate.metric in result.measurements
    if result.status != "ok" and not (known_anyway and result.status == "skipped"):
        return None, f"not measured: {result.reason.splitlines()[0] if result.reason else result.status}"
    value = result.measurements.get(gate.metric)
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
        return None, f"{gate.metric} of the float variant is 0: there is no ratio to it"
    if shown is not None and (ratio := result.measurements.get(shown.in_turns)) is not None:
        # Two absolute times are never divided: the interleaved ratio is what was measured.
        return ratio.value, ""
    return value.value / reference.value, ""


def _float_of(result: Result, results: Sequence[Result]) -> Result | None:
    for other in results:
        if (other.variant, other.format, other.device) == ("float", result.format, result.device):
            return other
    return None


def _verdict(gate: Gate, result: Result | None, measured: float | None, reason: str) -> Verdict:
    kind, limit = gate.limit
    # A drop of exactly the limit holds, and 0.01 is not a binary number.
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
