"""Regression baselines: a small file under version control, with which later runs are compared.

A baseline records the measurements of every artifact, including the value of each sample, or its contribution
to a metric of the whole set, so that a later run can be compared sample by sample without the old artifact.
Of the latencies, only the ratio to float is recorded, for information: two runs share no clock.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.config.files import regular, write_text, writing
from edgeopt.config.leaves import leaves, told_changes
from edgeopt.config.yaml_source import read_yaml
from edgeopt.errors import UsageError, first_line
from edgeopt.formats.wire.bounded import json_value
from edgeopt.results import MEASUREMENTS, Report, Result, Samples

SCHEMA = 1
DECIMALS = 6
RATIO_DECIMALS = 2
"""Of the latency ratio, which differs between runs of the same file by more."""
JUDGING = ("model.inputs", "model.preprocess", "model.labels", "task", "tasks", "postprocess", "metric")
"""Keys of a recipe that change what the same file answers, or what its answers are worth. The content of the
evaluation data has a digest."""
MAX_VALUE = 200
"""Characters of a value in the file; of a longer one, such as a thousand labels, the digest."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Entry(_Part):
    """Measurements of one artifact on one device."""

    variant: str
    format: str
    device: str
    digest: str = ""
    runtime: str = ""
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
    judging: dict[str, str] | None = Field(
        None, description="values of the recipe that decide how a file is judged; None: not recorded"
    )
    entries: tuple[Entry, ...]


def baseline_of(report: Report) -> Baseline:
    """Create a baseline from a report. Failed artifacts are recorded as such, with the reason.

    Raises:
        UsageError: every result of the run failed, or no sample was evaluated.
    """
    if report.results and all(result.status != "ok" for result in report.results):
        first = report.results[0]
        raise UsageError(
            f"no result of this run is ok: it cannot be a baseline; {first.variant}.{first.format} on "
            f"{first.device}: {why_missing(first)}",
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
        judging=judging_of(report),
        entries=tuple(_entry(result) for result in report.results),
    )


def judging_of(report: Report) -> dict[str, str] | None:
    """The values of a run's recipe that decide how a file is judged, and the digests of code that does.

    None if the report has no recipe.
    """
    if not report.run.document:
        return None
    document, _ = read_yaml(report.run.document, "the recipe of the run")
    values = {
        key: value if len(value) <= MAX_VALUE else f"sha256 {hashlib.sha256(value.encode()).hexdigest()}"
        for key, value in leaves(document).items()
        if any(key == part or key.startswith(f"{part}.") for part in JUDGING)
    }
    return values | {title: f"sha256 {digest}" for title, digest in report.run.judging_code.items()}


def _entry(result: Result) -> Entry:
    artifact = {"variant": result.variant, "format": result.format, "device": result.device}
    if result.status != "ok":
        return Entry(**artifact, failed=why_missing(result))
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
        runtime=result.runtime,
        measurements=measurements,
        samples=result.samples,
    )


def why_missing(result: Result) -> str:
    """Why a result is unavailable, in one line."""
    return first_line(f"{result.status}: {result.reason}")


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
    judged, now = old.judging or {}, new.judging or {}
    lines = [f"  {change}" for change in told_changes(judged, now)] if judged else []
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
