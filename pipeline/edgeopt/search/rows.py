"""From the measurements of a candidate to a trial: its objectives, and by how much it exceeds each limit."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgeopt.evaluation.confidence.verdicts import verdict
from edgeopt.evaluation.interpreter import labels_of
from edgeopt.evaluation.judge import Evidence, judge
from edgeopt.plugin import Labels
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.searching import Search
from edgeopt.results import MEASUREMENTS, Gate, Result
from edgeopt.results.search import Tried

SNR, SIZE, DISAGREEMENT, BROKEN = "fidelity_snr_db", "size_bytes", "disagreement", "broken outputs"
NOISE = "noise"
"""The relative power of the error of the outputs: of the worst output, on the worst device.

It tells candidates apart whose answers are equally right, as accuracy changes in steps of one sample.
"""


class Row(NamedTuple):
    """One artifact on one device."""

    result: Result
    evidence: Evidence


class Rows:
    """Judges the rows of candidates, as gates judge those of a report.

    Args:
        recipe: the recipe with the selection data as its evaluation data.
        search: limits and objectives.
        labels: those of the selection data.
    """

    def __init__(self, recipe: Recipe, search: Search, labels: Labels | None) -> None:
        self.search = search
        self.loss = _loss(recipe, search, labels)
        self.floats: list[Row] = []
        """Those of the float artifacts, which ratios refer to."""
        higher = {name for name, metric, _ in recipe.metrics if metric.higher_is_better}
        self._higher = higher | {name for name, each in MEASUREMENTS.items() if each.better == "higher"}

    def tried(
        self, rows: Sequence[Row], known: dict[str, Any], status: str, reason: str, samples: int
    ) -> Tried:
        """The trial with the worst of all devices, and by how much it exceeds each limit."""
        broken = next((row.result.reason for row in rows if is_broken(row.result)), "")
        # What broke a model is a lesson for the search; what could not be run is none.
        rows = [row._replace(result=_unbroken(row.result)) for row in rows] if broken else rows
        status, reason = ("stopped", broken) if broken else (status, reason)
        failed = next((row.result.reason for row in rows if row.result.status != "ok"), "")
        worst: dict[str, float] = {}
        for row in rows:
            for name, each in row.result.measurements.items():
                worse = min if name in self._higher else max
                worst[name] = worse(worst.get(name, each.value), each.value)
        absent = [name for name in self.search.part.minimize if name not in worst]
        if not failed and absent:
            devices = ", ".join(row.result.device for row in rows)
            failed = f"{absent[0]} is not measured on {devices}"
        if failed:
            return Tried(**known, status="failed", reason=failed)
        excess: dict[str, float] = {}
        evidence = {_place(row.result): row.evidence for row in (*rows, *self.floats)}
        everything = [row.result for row in (*self.floats, *rows)]
        for gate in self.search.limits:
            for row in rows:
                if not gate.concerns(row.result):
                    continue
                (found,) = (
                    each
                    for each in judge([gate], everything, evidence)
                    if (each.variant, each.format, each.device) == _place(row.result)
                )
                if found.measured is None:
                    return Tried(**known, status="failed", reason=found.reason)
                over = (
                    found.limit - found.measured if gate.limit[0] == "min" else found.measured - found.limit
                )
                excess[str(gate)] = max(over, excess.get(str(gate), over))
        return Tried(
            **known,
            status=status,
            reason=reason,
            samples=samples,
            objectives={name: worst[name] for name in self.search.part.minimize} | self._losses(worst),
            excess=excess | ({BROKEN: 1.0} if broken else {}),
            measurements=worst,
        )

    def _losses(self, worst: Mapping[str, float]) -> dict[str, float]:
        disagreement = 1.0 - worst.get("agreement", 0.0)
        loss = disagreement if self.loss == DISAGREEMENT else worst.get(self.loss, 1.0)
        return {self.loss: loss, NOISE: noise_of(worst.get(SNR))}


def clearly_over(limits: Sequence[Gate], row: Row, confidence: float) -> str:
    """The limit that a candidate exceeds at this confidence, by its first samples; '' if there is none."""
    if is_broken(row.result):
        return row.result.reason
    for gate in limits:
        pair = row.evidence.pairs.get(gate.metric)
        if gate.max_drop is None or gate.classes or pair is None or not gate.concerns(row.result):
            continue
        if verdict(pair, gate.max_drop, confidence) == "fail":
            drop = float(pair.drops.mean())
            return f"{gate}: a drop of {drop:.2%} on the first {len(pair.before)} samples"
    return ""


def _loss(recipe: Recipe, search: Search, labels: Labels | None) -> str:
    """What a search minimizes besides its objectives: a drop that it limits, or the first one that it can."""
    limited = [gate.metric for gate in search.limits if gate.max_drop is not None]
    judged = [
        name
        for name, metric, head in recipe.metrics
        if metric.against == "labels" and labels_of(labels, head) is not None
    ]
    names = [name for name in limited if name in judged] or judged
    return f"{names[0]}_drop" if names else DISAGREEMENT


def noise_of(snr_db: float | None) -> float:
    return 1.0 if snr_db is None else float(10 ** (-snr_db / 10))


def is_broken(result: Result) -> bool:
    return any(each.status == "broken" for each in result.hops)


def _unbroken(result: Result) -> Result:
    """A result whose measurements count although its outputs do not resemble those of the source."""
    return result.model_copy(update={"status": "ok", "reason": ""}) if is_broken(result) else result


def _place(result: Result) -> tuple[str, str, str]:
    return result.variant, result.format, result.device
