"""From measurements to verdicts. Pure: same report, same verdicts."""

from collections.abc import Sequence

from edgeopt.results import Gate, Result, Verdict


def judge(gates: Sequence[Gate], results: Sequence[Result]) -> list[Verdict]:
    """Every gate on every result it concerns. What was not measured fails.

    A gate that names no variant concerns the optimized ones as well as ``float``.
    """
    verdicts = []
    for gate in gates:
        concerned = [result for result in results if gate.concerns(result)]
        if not concerned:
            verdicts.append(_verdict(gate, None, None, "nothing in this run fits the gate"))
        for result in concerned:
            measured, reason = _measured(gate, result, results)
            verdicts.append(_verdict(gate, result, measured, reason))
    return verdicts


def _measured(gate: Gate, result: Result, results: Sequence[Result]) -> tuple[float | None, str]:
    kind, _ = gate.limit
    known_anyway = gate.metric in ("size_bytes", "gzip_bytes") and gate.metric in result.measurements
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
    if gate.metric.startswith("latency_") and (ratio := result.measurements.get("latency_ratio")) is not None:
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
    )
