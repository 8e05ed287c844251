"""Regression baselines: a small file under version control, and the paired comparison of a run with it.

A baseline records the measurements of every artifact, including the value of each sample, or its contribution
to a metric of the whole set, so that a later run can be compared sample by sample without the old artifact.
Of the latencies, only the ratio to float is recorded, for information: two runs share no clock.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.config.files import regular, write_text, writing
from edgeopt.config.settings import Settings
from edgeopt.errors import UsageError
from edgeopt.evaluation.statistics import UNBOUNDED, Paired, common_reach, decide
from edgeopt.formats.wire.bounded import json_value
from edgeopt.results import MEASUREMENTS, Report, Result, Samples, Verdict

SCHEMA = 1
DECIMALS = 6
RATIO_DECIMALS = 2
"""Of the latency ratio, which differs between runs of the same file by more."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Entry(_Part):
    """Measurements of one artifact on one device."""

    variant: str
    format: str
    device: str
    digest: str = ""
    failed: str | None = Field(None, description="why the artifact was unavailable; later runs may miss it")
    measurements: dict[str, float] = {}
    samples: dict[str, Samples] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        return self.variant, self.format, self.device


class Baseline(_Part):
    """The part of a run with which later runs are compared."""

    schema_version: int = Field(SCHEMA, alias="schema")
    recipe: str
    edgeopt: str = ""
    written: str = Field("", description="start time of the run")
    evaluation_digest: str
    environment: dict[str, str] = Field({}, description="processor of each device")
    entries: tuple[Entry, ...]


class Change(NamedTuple):
    """One artifact of a baseline in a later run, and the verdicts on it."""

    entry: Entry
    result: Result | None
    verdicts: tuple[Verdict, ...]

    @property
    def same_file(self) -> bool:
        """Whether both runs have the artifact, with the same content."""
        artifact = self.result.artifact if self.result is not None else None
        return bool(self.entry.digest) and artifact is not None and artifact.digest == self.entry.digest

    @property
    def unchanged(self) -> bool:
        """Whether there is nothing to see: the same file passes, or is unavailable as before."""
        if self.entry.failed is not None and (self.result is None or self.result.status != "ok"):
            return True
        return self.same_file and all(verdict.status == "pass" for verdict in self.verdicts)


class Limits(Settings):
    """How much worse than the baseline a run may be."""

    max_drop: float = Field(0.01, ge=0, le=1)
    confidence: float = Field(0.95, ge=0.5, lt=1)
    undecided: Literal["fail", "pass"] = "fail"
    max_size_increase: float = Field(0.02, ge=0, description="relative to the old size")


def baseline_of(report: Report) -> Baseline:
    """Create a baseline from a report. Failed artifacts are recorded as such, with the reason.

    Raises:
        UsageError: every result of the run failed, or no sample was evaluated.
    """
    if report.results and all(result.status != "ok" for result in report.results):
        first = report.results[0]
        raise UsageError(
            f"no result of this run is ok: it cannot be a baseline; {first.variant}.{first.format} on "
            f"{first.device}: {_first_line(first)}",
            fix="fix at least one of the failed results first",
        )
    if not any(result.samples for result in report.results):
        judged = [info.name for info in report.metrics if info.against == "labels"]
        if report.run.samples and judged:
            raise UsageError(
                f"a baseline compares sample by sample, and {', '.join(judged)} of this run has no value for "
                "a sample",
                fix="return one number per sample from your function, or add a metric that has one",
            )
        raise UsageError(
            "this run evaluated no samples: there is nothing to compare",
            fix="add data.evaluation with labels, and a metric, to the recipe",
        )
    return Baseline(
        recipe=report.recipe,
        edgeopt=report.run.edgeopt,
        written=report.run.started,
        evaluation_digest=report.run.evaluation_digest,
        environment={name: str(facts.get("cpu", "")) for name, facts in report.environment.items()},
        entries=tuple(_entry(result) for result in report.results),
    )


def _entry(result: Result) -> Entry:
    artifact = {"variant": result.variant, "format": result.format, "device": result.device}
    if result.status != "ok":
        return Entry(**artifact, failed=_first_line(result))
    measurements = {
        name: round(value.value, DECIMALS)
        for name, value in sorted(result.measurements.items())
        # Volatile measurements would change the file with every run, and no verdict uses them.
        if not (name in MEASUREMENTS and MEASUREMENTS[name].volatile)
    }
    if (ratio := result.measurements.get("latency_ratio")) is not None:
        measurements["latency_ratio"] = round(ratio.value, RATIO_DECIMALS)
    return Entry(
        **artifact,
        digest=result.artifact.digest if result.artifact else "",
        measurements=measurements,
        samples=result.samples,
    )


def _first_line(result: Result) -> str:
    return f"{result.status}: {result.reason}".splitlines()[0]


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline in a stable order, so that a diff shows only what changed.

    Raises:
        UsageError: the file cannot be written.
    """
    record = baseline.model_dump(mode="json", by_alias=True, exclude_none=True)
    with writing(path, "choose another file"):
        write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_baseline(path: Path) -> Baseline:
    """Read what ``write_baseline`` wrote.

    Raises:
        UsageError: it is missing, truncated, damaged, or of another version.
    """
    try:
        text = regular(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"cannot read the baseline {path}: {reason}", fix="write one: edgeopt baseline write RUN"
        ) from error
    try:
        version = json_value(text).get("schema")
        if version != SCHEMA:
            raise UsageError(
                f"{path} is a baseline of version {version}, this edgeopt reads version {SCHEMA}",
                fix="write it again with this version: edgeopt baseline write RUN",
            )
        baseline = Baseline.model_validate_json(text)
        for entry in baseline.entries:
            for samples in entry.samples.values():
                samples.unpack()
    except (ValidationError, ValueError, AttributeError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        message = f"{'.'.join(map(str, first['loc']))} {first['msg'].lower()}" if first else str(error)
        raise UsageError(
            f"{path} is not a complete baseline: {message}",
            fix="restore it, or write it again: edgeopt baseline write",
        ) from error
    return baseline


def differences(old: Baseline, new: Baseline) -> list[str]:
    """The changes of an update, line by line, for review."""
    before, after = ({entry.key: entry for entry in side.entries} for side in (old, new))
    lines = []
    for key in dict.fromkeys([*before, *after]):
        name = f"{key[0]}.{key[1]} on {key[2]}"
        if key not in before or key not in after:
            lines.append(f"{'+' if key in after else '-'} {name}")
            continue
        if before[key].failed != after[key].failed:
            states = ("ok" if entry.failed is None else entry.failed for entry in (before[key], after[key]))
            lines.append(f"  {name}: {' -> '.join(states)}")
        one, other = before[key].measurements, after[key].measurements
        for metric in dict.fromkeys([*one, *other]):
            if one.get(metric) != other.get(metric):
                lines.append(f"  {name}: {metric} {one.get(metric, '–')} -> {other.get(metric, '–')}")
    return lines


def check(report: Report, baseline: Baseline, limits: Limits) -> list[Verdict]:
    """The verdicts on every artifact of the baseline; see `changes`."""
    return [verdict for change in changes(report, baseline, limits) for verdict in change.verdicts]


def changes(report: Report, baseline: Baseline, limits: Limits) -> list[Change]:
    """Compare every artifact of the baseline with the corresponding one of a report.

    Raises:
        UsageError: they belong to different recipes, or were evaluated on different samples.
    """
    if report.recipe != baseline.recipe:
        raise UsageError(
            f"the baseline is of recipe {baseline.recipe!r}, the run of {report.recipe!r}",
            fix="use the baseline of this recipe",
        )
    if report.run.evaluation_digest != baseline.evaluation_digest:
        raise UsageError(
            "the baseline was evaluated on different data: its digest is "
            f"{baseline.evaluation_digest[:16]}, that of the run {report.run.evaluation_digest[:16]}",
            fix="evaluate on the same samples, or write a new baseline: edgeopt baseline write",
        )
    results = {(row.variant, row.format, row.device): row for row in report.results}
    pairs = [(entry, results.get(entry.key)) for entry in baseline.entries]
    return [Change(entry, result, tuple(_compare_entry(entry, result, limits))) for entry, result in pairs]


def _compare_entry(entry: Entry, result: Result | None, limits: Limits) -> Iterator[Verdict]:
    if result is None or result.status != "ok":
        reason = "the run has no such artifact" if result is None else _first_line(result)
        known = entry.failed is not None
        reason += f"; the baseline: {entry.failed}" if known and reason != entry.failed else ""
        yield verdict_on(entry, "artifact is still built", "pass" if known else "fail", None, 0.0, reason)
        return
    if entry.failed is not None:
        yield verdict_on(entry, "artifact is still built", "pass", None, 0.0, f"before: {entry.failed}")
    for metric, old in entry.samples.items():
        new = result.samples.get(metric)
        gate = f"{metric} max_drop {limits.max_drop:g} confidence={limits.confidence:g}"
        if new is None or new.count != old.count:
            yield verdict_on(entry, gate, "fail", None, limits.max_drop, f"{metric} was not measured")
            continue
        measured = result.measurements.get(metric)
        try:
            pair = _paired(old, new, is_fraction=measured is not None and measured.kind == "fraction")
        except ValueError as error:  # a baseline was tested when it was read
            where = f"{metric} of {entry.variant}.{entry.format} on {entry.device}"
            raise UsageError(
                f"the report is damaged: {where}: {error}", fix="run the recipe again"
            ) from error
        if pair is None:
            reason = f"{metric} is a mean over samples only in one of the two runs: update the baseline"
            yield verdict_on(entry, gate, "fail", None, limits.max_drop, reason)
            continue
        same_file = Change(entry, result, ()).same_file
        yield _compare_samples(entry, gate, pair, limits, same_file=same_file)
    before, after = entry.measurements.get("size_bytes"), result.measurements.get("size_bytes")
    if before and after is not None:
        growth = after.value / before - 1
        gate = f"size_bytes max_increase {limits.max_size_increase:.1%}"
        fits = growth <= limits.max_size_increase + 1e-12
        reason = "" if fits else f"{before:,.0f} B became {after.value:,.0f} B, {growth:+.1%}"
        yield verdict_on(entry, gate, "pass" if fits else "fail", growth, limits.max_size_increase, reason)


def _paired(old: Samples, new: Samples, *, is_fraction: bool) -> Paired | None:
    """None if only one of them is of a metric of the whole set."""
    if old.reach is not None and new.reach is not None:
        return Paired(old.unpack(), new.unpack(), reach=common_reach(old.reach, new.reach))
    return Paired(old.unpack(), new.unpack(), is_fraction) if old.reach is new.reach else None


def _compare_samples(entry: Entry, gate: str, pair: Paired, limits: Limits, *, same_file: bool) -> Verdict:
    """Compare an artifact with its predecessor; an unchanged one passes, however few the samples.

    The same file can still fail: another version of its runtime may give other answers.
    """
    decision = decide(pair, limits.max_drop, limits.confidence)
    drop, (low, high) = float(pair.drops.mean()), decision.bounds
    if pair.unchanged or (same_file and decision.verdict != "fail"):
        decision = decision._replace(verdict="pass", samples_needed=None)
        what = (
            f"the predictions are identical ({len(pair.before)} samples)"
            if pair.unchanged
            else "the same file"
        )
        reason = f"unchanged: {what}"
    else:
        reason = f"{drop:+.2%} lost on {len(pair.before)} samples"
        if not pair.of_set:  # every contribution changes if one sample does
            reason += f" ({pair.worse} worse, {pair.better} better)"
        if decision.bounds == UNBOUNDED:
            reason += "; the values have no known range, so few samples do not bound the drop"
        else:
            reason += (
                f"; with {limits.confidence:.0%} confidence, more than {low:+.2%} and less than {high:+.2%}"
            )
        if decision.p_value is not None:
            reason += f"; exact McNemar p = {decision.p_value:.2g}"
    if decision.verdict == "undecided":
        needed = decision.samples_needed
        reason += (
            f"; about {needed:,} samples would decide it" if needed else "; more samples would not decide it"
        )
    blocks = decision.verdict == "fail" or (decision.verdict == "undecided" and limits.undecided == "fail")
    return verdict_on(
        entry,
        gate,
        decision.verdict,
        drop,
        limits.max_drop,
        reason,
        blocks=blocks,
        confidence=limits.confidence,
        bounds=None if decision.bounds == UNBOUNDED else (low, high),
        p_value=decision.p_value,
        samples_needed=decision.samples_needed,
    )


def verdict_on(
    entry: Entry, gate: str, status: str, measured: float | None, limit: float, reason: str, **more: object
) -> Verdict:
    """A verdict on the artifact of an entry; it blocks unless it passes, or ``more`` overrides that."""
    return Verdict.model_validate(
        {
            "gate": gate,
            "variant": entry.variant,
            "format": entry.format,
            "device": entry.device,
            "status": status,
            "measured": measured,
            "limit": limit,
            "reason": reason,
            "blocks": status != "pass",
        }
        | more
    )
