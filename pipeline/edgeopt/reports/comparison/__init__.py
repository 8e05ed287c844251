"""Several runs of a recipe side by side: each artifact in every run, and its change from the first one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from edgeopt.config.leaves import leaves, told_changes
from edgeopt.config.yaml_source import read_yaml
from edgeopt.errors import UsageError
from edgeopt.evaluation.baseline import baseline_of
from edgeopt.evaluation.regression import Limits, changes
from edgeopt.reports.cards import MINUS
from edgeopt.reports.columns import COLUMNS, higher_is_better, show
from edgeopt.results import MEASUREMENTS, Measurement, Report, Result, Verdict

Key: TypeAlias = tuple[str, str, str]
"""Variant, format and device of an artifact."""
SHOWN = (
    "size_bytes",
    "arena_bytes",
    "sram_bytes",
    "latency_p50_ms",
    "latency_ratio",
    "estimated_latency_max_ms",
)
"""Measurements of the tables after the quality; report.json has all."""
SNR = "fidelity_snr_db"
MAX_CHANGES = 8
"""Changes of a recipe that are listed."""


class Compared(NamedTuple):
    """A run, and the name under which it is shown."""

    name: str
    report: Report


class Cell(NamedTuple):
    """One artifact in one run; ``result`` is None if the run does not have it."""

    result: Result | None
    gate: str
    """The worst verdict of its gates; '' without any."""
    change: Verdict | None
    """The paired difference of the metric from the first run, if both have values for every sample."""

    @property
    def status(self) -> str:
        return self.result.status if self.result is not None else "absent"

    @property
    def reason(self) -> str:
        """Why there are no measurements."""
        return self.result.reason if self.result is not None else "the run has no such artifact"


class Line(NamedTuple):
    """One artifact in every run."""

    key: Key
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        variant, form, device = self.key
        return f"{variant}.{form} on {device}"


class Comparison(NamedTuple):
    """All runs, the first of which is the reference."""

    runs: tuple[Compared, ...]
    metric: str
    """The primary metric; '' if the runs have none, and agreement is shown."""
    higher: bool
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Titles and names of the measurements that some artifact has."""
        first = self.runs[0].report
        title = next((info.title for info in first.metrics if info.name == self.metric), self.metric)
        costs = [(MEASUREMENTS[name].title, name) for name in COLUMNS if name in SHOWN]
        every = [(title or "agreement", self.metric or "agreement"), *costs, ("SNR", SNR)]
        found = {name for line in self.lines for cell in line.cells for name in _values(cell)}
        return [(title, name) for title, name in every if name in found]


def compare(runs: Sequence[Compared], confidence: float = 0.95) -> Comparison:
    """Compare runs of one recipe with the first of them.

    Raises:
        UsageError: they belong to different recipes, or measure different metrics.
    """
    first = runs[0].report
    # A run in which nothing could be measured has no metric of its own.
    measured = [run for run in runs if any(row.status == "ok" for row in run.report.results)] or [*runs]
    metric = measured[0].report.primary_metric
    for name, report in runs[1:]:
        if report.recipe != first.recipe:
            raise UsageError(
                f"{name} is a run of recipe {report.recipe!r}, {runs[0].name} of {first.recipe!r}",
                fix="compare runs of one recipe",
            )
    for name, report in measured[1:]:
        if report.primary_metric != metric:
            other = report.primary_metric or "no metric"
            raise UsageError(
                f"{name} measures {other}, {measured[0].name} {metric or 'none'}",
                fix="compare runs with the same metric",
            )
    paired = [_paired(first, report, metric, confidence) for _, report in runs]
    results = [{_key(row): row for row in report.results} for _, report in runs]
    gates = [_worst(report.gates) for _, report in runs]
    keys = dict.fromkeys(key for rows in results for key in rows)
    lines = tuple(
        Line(
            key,
            tuple(
                Cell(rows.get(key), verdicts.get(key, ""), drops.get(key))
                for rows, verdicts, drops in zip(results, gates, paired, strict=True)
            ),
        )
        for key in keys
    )
    return Comparison(
        tuple(runs), metric, higher_is_better(measured[0].report, metric), lines, tuple(_notes(runs))
    )


def _paired(first: Report, other: Report, metric: str, confidence: float) -> Mapping[Key, Verdict]:
    """The paired difference of every artifact that both runs measured on the same samples."""
    samples = any(row.samples for row in first.results if row.status == "ok")
    if other is first or not samples or first.run.evaluation_digest != other.run.evaluation_digest:
        return {}
    limits = Limits(max_drop=0.0, confidence=confidence, undecided="pass", max_size_increase=1e9)
    return {
        change.entry.key: verdict
        for change in changes(other, baseline_of(first), limits)
        for verdict in change.verdicts
        if verdict.gate.startswith(f"{metric} max_drop ") and verdict.measured is not None
    }


def _worst(verdicts: Sequence[Verdict]) -> dict[Key, str]:
    order = ("fail", "undecided", "pass")
    ranked = sorted(verdicts, key=lambda verdict: (verdict.blocks, -order.index(verdict.status)))
    return {_key(verdict): verdict.status for verdict in ranked}


def _key(one: Result | Verdict) -> Key:
    return one.variant, one.format, one.device


def _notes(runs: Sequence[Compared]) -> Iterator[str]:
    first = runs[0]
    for name, report in runs[1:]:
        if changed := _recipe_changes(first.report.run.document, report.run.document):
            more = f" and {len(changed) - MAX_CHANGES} more" if len(changed) > MAX_CHANGES else ""
            told = ", ".join(changed[:MAX_CHANGES])
            yield f"the recipe of {name} differs from that of {first.name}: {told}{more}"
        if report.run.evaluation_digest != first.report.run.evaluation_digest:
            yield f"{name} was evaluated on other data than {first.name}: their quality is not subtracted"
        for device in report.devices():
            processors = [each.environment.get(device, {}).get("cpu") for each in (first.report, report)]
            if all(processors) and processors[0] != processors[1]:
                yield f"{device} has another processor in {name}: its latencies are not comparable"
    yield "latencies of two runs share no clock; ratios to float are measured in turns within a run"


def _recipe_changes(before: str, after: str) -> list[str]:
    """What changed in the recipe; nothing if a run did not record it."""
    if not before or not after:
        return []
    one, other = (leaves(read_yaml(text, "the recipe of a run")[0]) for text in (before, after))
    return told_changes(one, other)


def _values(cell: Cell) -> Mapping[str, Measurement]:
    return cell.result.measurements if cell.result is not None else {}


def change_text(cell: Cell, comparison: Comparison) -> str:
    """The change of the metric from the first run, with its bounds."""
    verdict = cell.change
    if verdict is None or verdict.measured is None:
        return ""
    if verdict.reason.startswith("unchanged: the predictions"):
        return "same"
    kind = _values(cell)[comparison.metric].kind
    sign = -1.0 if comparison.higher else 1.0

    def shown(value: float) -> str:
        difference = Measurement(
            value=sign * value + 0.0, kind="points" if kind == "fraction" else kind, role="drop"
        )
        return show(difference).replace("-", MINUS)

    text = shown(verdict.measured)
    if verdict.bounds is None:
        return text
    ends = sorted(verdict.bounds, key=lambda end: sign * end)
    return f"{text} ({shown(ends[0])} to {shown(ends[1])})"


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON-compatible values."""
    return {
        "recipe": comparison.runs[0].report.recipe,
        "metric": comparison.metric,
        "runs": [
            {
                "run": name,
                "started": report.run.started,
                "edgeopt": report.run.edgeopt,
                "exit_code": report.exit_code,
            }
            for name, report in comparison.runs
        ],
        "artifacts": [
            {"variant": line.key[0], "format": line.key[1], "device": line.key[2]}
            | {
                "runs": [
                    _cell_data(run.name, cell) for run, cell in zip(comparison.runs, line.cells, strict=True)
                ]
            }
            for line in comparison.lines
        ],
        "notes": list(comparison.notes),
    }


def _cell_data(run: str, cell: Cell) -> dict[str, Any]:
    change = cell.change
    return {
        "run": run,
        "status": cell.status,
        "reason": cell.reason,
        "gates": cell.gate,
        "measurements": {name: value.value for name, value in _values(cell).items()},
        "drop": None
        if change is None
        else {
            "value": change.measured,
            "bounds": change.bounds,
            "p_value": change.p_value,
            "reason": change.reason,
        },
    }
