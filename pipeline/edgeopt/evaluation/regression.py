"""Comparison of a run with a baseline: every artifact with its predecessor, sample by sample. Pure."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import Field

from edgeopt.config.settings import Settings
from edgeopt.errors import UsageError
from edgeopt.evaluation.baseline import Baseline, Entry, judging_of, why_missing
from edgeopt.evaluation.confidence.paired import Paired, common_reach
from edgeopt.evaluation.confidence.verdicts import UNBOUNDED, decide
from edgeopt.results import CODE_OF, Kind, Measurement, Report, Result, Samples, Verdict, kind_of

REJUDGED = "the same file, but "


class Change(NamedTuple):
    """One artifact of a baseline in a later run, and the verdicts on it."""

    entry: Entry
    result: Result | None
    verdicts: tuple[Verdict, ...]
    rejudged: str = ""
    """What changed besides the file, so that even the same one may be worse; '' if nothing did."""

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
        return self.same_file and all(
            verdict.status == "pass" and not verdict.reason.startswith(REJUDGED) for verdict in self.verdicts
        )


class Limits(Settings):
    """How much worse than the baseline a run may be."""

    max_drop: float = Field(0.01, ge=0, le=1)
    confidence: float = Field(0.95, ge=0.5, lt=1)
    undecided: Literal["fail", "pass"] = "fail"
    max_size_increase: float = Field(0.02, ge=0, description="relative to the old size")


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
    judging = _judging(baseline.judging, judging_of(report))
    found = [Change(entry, result, (), judging or _runtime(entry, result)) for entry, result in pairs]
    return [change._replace(verdicts=tuple(_verdicts(change, limits))) for change in found]


def _judging(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """What the recipe changed in how a file is judged."""
    if before is None or now is None:
        which = "baseline" if before is None else "report"
        return f"the {which} does not say how it was judged"
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    unknown = [key for key in keys if key.startswith(CODE_OF) and key not in before]
    changed = [key for key in keys if key not in unknown]
    parts = [f"{', '.join(changed)} changed"] if changed else []
    # Written by an earlier version, or the metric is new, which its name among the changes says.
    parts += [f"the baseline does not record {', '.join(unknown)}"] if unknown else []
    return " and ".join(parts)


def _runtime(entry: Entry, result: Result | None) -> str:
    if result is None or entry.runtime == result.runtime:
        return ""
    return f"the runtime changed from {entry.runtime} to {result.runtime}"


def _verdicts(change: Change, limits: Limits) -> Iterator[Verdict]:
    entry, result = change.entry, change.result
    if result is None or result.status != "ok":
        reason = "the run has no such artifact" if result is None else why_missing(result)
        known = entry.failed is not None
        if known:
            same = reason == entry.failed
            reason += "; as in the baseline" if same else f"; in the baseline: {entry.failed}"
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
        kind = measured.kind if measured is not None else kind_of(metric)
        try:
            pair = _paired(old, new, is_fraction=kind == "fraction")
        except ValueError as error:  # a baseline was tested when it was read
            where = f"{metric} of {entry.variant}.{entry.format} on {entry.device}"
            raise UsageError(
                f"the report is damaged: {where}: {error}", fix="run the recipe again"
            ) from error
        if pair is None:
            reason = f"{metric} is a mean over samples only in one of the two runs: update the baseline"
            yield verdict_on(entry, gate, "fail", None, limits.max_drop, reason)
            continue
        yield _compare_samples(change, gate, pair, kind, limits)
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


def _shown(value: float, kind: Kind) -> str:
    """A difference of a metric, as in every table."""
    of = "points" if kind == "fraction" else kind
    return Measurement(value=value + 0.0, kind=of, role="drop").text


def _compare_samples(change: Change, gate: str, pair: Paired, kind: Kind, limits: Limits) -> Verdict:
    """Compare an artifact with its predecessor; an unchanged one passes, however few the samples.

    The same file is unchanged only if it was judged in the same way, by the same runtime. Even then it fails
    if it is worse beyond doubt.
    """
    entry, same_file = change.entry, change.same_file
    decision = decide(pair, limits.max_drop, limits.confidence)
    drop, (low, high) = float(pair.drops.mean()), decision.bounds
    alike = same_file and not change.rejudged
    if pair.unchanged or (alike and decision.verdict != "fail"):
        decision = decision._replace(verdict="pass", samples_needed=None)
        what = (
            f"the predictions are identical ({len(pair.before)} samples)"
            if pair.unchanged
            else "the same file"
        )
        reason = f"unchanged: {what}"
    else:
        better = drop < 0
        ends = sorted((-low, -high)) if better else (low, high)
        amount, least, most = (_shown(value, kind) for value in (abs(drop), *ends))
        reason = f"{'better' if better else 'worse'} by {amount.lstrip('+')} on {len(pair.before)} samples"
        if not pair.of_set:  # every contribution changes if one sample does
            reason += f" ({pair.worse} worse, {pair.better} better)"
        if decision.bounds == UNBOUNDED:
            reason += "; the values have no known range, so few samples do not bound the drop"
        else:
            reason += f"; with {limits.confidence:.0%} confidence, by more than {least} and less than {most}"
        if change.rejudged:
            reason = f"{REJUDGED if same_file else ''}{change.rejudged}: {reason}"
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
