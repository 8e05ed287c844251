"""The recommendation of a run: which artifact to ship on a device. Pure."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field

from edgeopt.errors import first_line
from edgeopt.results.gate import Verdict
from edgeopt.results.measurement import Value

if TYPE_CHECKING:
    from edgeopt.results.report import Result

Preference: TypeAlias = Literal["smallest", "fastest"]

MUCH = 0.8
"""Ratio of the times or sizes of two artifacts from which one is an alternative to the other."""
SPEEDS = ("latency_p50_ms", "estimated_latency_ms", "estimated_latency_max_ms", "npu_cycles")
"""Measurements that order artifacts by speed; those of a device are compared by the first that it has."""


class MemoryLimits(Value):
    """The memory of a device that a model may use."""

    flash: int | None = Field(None, description="in bytes")
    ram: int | None = Field(None, description="in bytes")


class Target(Value):
    """The kind of device that artifacts are for, if another one stands in for it."""

    title: str = Field(description="the kind in words, such as 'a phone'")
    device: str = Field(description="a device file of this kind")
    stand_in: str = Field(description="the device that measured in its place")
    hint: str = Field("", description="how to measure on a device of this kind")


class Recommendation(Value):
    """The artifact to ship on one device."""

    device: str
    status: Literal["ship", "unjudged", "none"] = Field(
        description="ship: it passes all its gates; unjudged: so it does, but no gate limits its quality; "
        "none: every artifact fails a gate, and this one is nearest to passing"
    )
    prefer: Preference = Field("smallest", description="what is preferred among those that pass")
    variant: str = Field("", description="empty if no artifact could be measured")
    format: str = ""
    reason: str = ""
    alternative: tuple[str, str] | None = Field(
        None,
        description="variant and format of a much faster one that passes as well; fastest: a much smaller",
    )


def recommend(
    results: Sequence["Result"], gates: Sequence[Verdict], prefer: Preference = "smallest"
) -> tuple[Recommendation, ...]:
    """The recommendation for each device, in the order of the results."""
    devices = dict.fromkeys(result.device for result in results)
    return tuple(
        _on_device(device, [row for row in results if row.device == device], gates, prefer)
        for device in devices
    )


def _on_device(
    device: str, rows: Sequence["Result"], gates: Sequence[Verdict], prefer: Preference
) -> Recommendation:
    measured = [row for row in rows if row.status == "ok"]
    if not measured:
        first = next((row for row in rows if row.reason), rows[0])
        cause = first_line(first.reason) or first.status
        reason = f"no artifact could be built and measured: {first.variant}.{first.format}: {cause}"
        return Recommendation(device=device, status="none", prefer=prefer, reason=reason)
    verdicts = {id(row): [verdict for verdict in gates if _concerns(verdict, row)] for row in measured}
    passing = [row for row in measured if not any(verdict.blocks for verdict in verdicts[id(row)])]
    if not passing:
        nearest = min(measured, key=lambda row: _distance(verdicts[id(row)]))
        reason = "; ".join(
            f"{verdict.gate}: {verdict.reason or verdict.status}"
            for verdict in verdicts[id(nearest)]
            if verdict.blocks
        )
        return _of(nearest, "none", prefer, reason)
    judged = [row for row in passing if any(_limits_quality(verdict, row) for verdict in verdicts[id(row)])]
    best, reason = _best(judged or passing, prefer)
    if judged:
        other, _ = _best(passing, prefer)
        if other is not best and other not in judged:
            better = "faster" if prefer == "fastest" and not reason else "smaller"
            unjudged = f"{other.variant}.{other.format} is {better}, but no gate limits its quality"
            reason = "; ".join(filter(None, (reason, unjudged)))
        return _of(best, "ship", prefer, reason).model_copy(
            update={"alternative": _alternative(best, judged, prefer)}
        )
    reason = "; ".join(filter(None, ("no gate limits its quality", reason)))
    return _of(best, "unjudged", prefer, reason)


def _of(
    row: "Result", status: Literal["ship", "unjudged", "none"], prefer: Preference, reason: str
) -> Recommendation:
    return Recommendation(
        device=row.device,
        status=status,
        prefer=prefer,
        variant=row.variant,
        format=row.format,
        reason=reason,
    )


def _concerns(verdict: Verdict, row: "Result") -> bool:
    return (verdict.variant, verdict.format, verdict.device) == (row.variant, row.format, row.device)


def _limits_quality(verdict: Verdict, row: "Result") -> bool:
    """Whether a gate limits the quality, and not only what the artifact costs."""
    measurement = row.measurements.get(verdict.gate.partition(" ")[0])
    return measurement is not None and measurement.role not in ("cost", "parity")


def _distance(verdicts: Sequence[Verdict]) -> tuple[int, float]:
    """How far an artifact is from passing: the number of failed gates, then the sum of relative excesses."""
    blocking = [verdict for verdict in verdicts if verdict.blocks]
    excesses = [
        math.inf
        if verdict.measured is None
        else abs(verdict.measured - verdict.limit) / (abs(verdict.limit) or 1.0)
        for verdict in blocking
    ]
    return len(blocking), sum(excesses)


def _alternative(best: "Result", rows: Sequence["Result"], prefer: Preference) -> tuple[str, str] | None:
    """What the other preference recommends, if that is worth a thought."""
    name = "size_bytes" if prefer == "fastest" else speed_of(rows)
    if name is None:
        return None
    other = min(rows, key=lambda row: _value(row, name))
    return (other.variant, other.format) if _value(other, name) < MUCH * _value(best, name) else None


def speed_of(rows: Sequence["Result"]) -> str | None:
    """The measurement by which results are ordered by speed; None if nothing says how fast they are."""
    return next((name for name in SPEEDS if any(name in row.measurements for row in rows)), None)


def _value(row: "Result", name: str) -> float:
    return row.measurements[name].value if name in row.measurements else math.inf


def _best(rows: Sequence["Result"], prefer: Preference) -> tuple["Result", str]:
    """The preferred one of several artifacts, and a remark; of equal ones, the first."""
    if prefer == "fastest":
        speed = speed_of(rows)
        if speed is not None:
            return min(rows, key=lambda row: (_value(row, speed), _value(row, "size_bytes"))), ""
        reason = "nothing was timed on this device: the smallest"
        return min(rows, key=lambda row: _value(row, "size_bytes")), reason
    return min(rows, key=lambda row: (_value(row, "size_bytes"), _value(row, SPEEDS[0]))), ""
