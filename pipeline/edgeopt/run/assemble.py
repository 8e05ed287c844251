"""Assembles the report of a run: one row per artifact and device, from the plan, builds and measurements."""

import datetime
import importlib.metadata
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.devices.device import HOST, Device, Limits
from edgeopt.evaluation.comparison import difference
from edgeopt.evaluation.findings import Reader
from edgeopt.evaluation.golden import Golden
from edgeopt.evaluation.hops import aligned, hop, output_changes
from edgeopt.evaluation.interpreter import UNDECIDABLE, Interpreter, labels_of
from edgeopt.evaluation.judge import Evidence
from edgeopt.evaluation.measurements import by_class, flips, sample_measurements
from edgeopt.formats.known import format_named, model_digest, model_files
from edgeopt.model import Model, Outputs
from edgeopt.plugin import Decisions
from edgeopt.recipe.plan import Built, Plan
from edgeopt.results import (
    Hop,
    Measurement,
    MemoryLimits,
    Reference,
    Result,
    Run,
    Samples,
    SourceResult,
    Status,
)
from edgeopt.run.artifacts import keep_artifact, keep_compiled
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.readings import readings
from edgeopt.run.measuring.session import Measured, StepOutputs
from edgeopt.run.scoring import Scorer
from edgeopt.run.source_names import renamed_rows, renamed_trial, source_names


class RunClock:
    """Measures the duration of a command; created when the command starts."""

    def __init__(self) -> None:
        self.started = datetime.datetime.now().astimezone()
        self._clock = time.monotonic()

    def record(self, **fields: Any) -> Run:
        """The record of a run that ends now; ``fields`` are the other fields of `Run`."""
        return Run(
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 3),
            command=shlex.join(["edgeopt", *sys.argv[1:]]),
            edgeopt=importlib.metadata.version("edgeopt"),
            **fields,
        )


def results(
    plan: Plan, builds: Sequence[Built], measured: Measured, scorer: Scorer, out: Path
) -> tuple[list[Result], dict[tuple[str, str, str], Evidence]]:
    """One result per branch and device, including failed and unavailable ones; copies artifacts to ``out``.

    Returns the results, and the per-sample scores by (variant, format, device), for the gates that need them.
    """
    recipe = plan.recipe
    dataset = recipe.evaluation or recipe.calibration
    golden = Golden(dataset, plan.preprocessing, measured.labels, measured.samples)
    rows: list[Result] = []
    evidence: dict[tuple[str, str, str], Evidence] = {}
    for built in builds:
        branch = built.branch
        base: dict[str, Any] = {"variant": branch.variant, "format": branch.format, "chain": branch.names}
        step_notes = tuple(note for each in built.steps for note in each.notes)
        if not built.complete:
            base |= {"status": "failed", "reason": built.failure or "not built", "notes": step_notes}
            rows += [Result(device=d.name, **base) for d in branch.devices]
            continue
        artifact = keep_artifact(plan, built, out)
        rename = source_names(plan, built).of
        model = plan.latest(built)
        for device in branch.devices:
            step_outputs = [s for s in measured.step_outputs[branch.name] if s.device in ("", device.name)]
            outcome = measured.finals[branch.name, device.name]
            common = base | {
                "device": device.name,
                "artifact": artifact,
                "transposes": model.transposes,
                "trials": tuple(
                    renamed_trial(trial, rename) for each in built.steps for trial in each.trials
                ),
            }
            if outcome.compiled is not None:
                common["artifact"] = keep_compiled(built, device.name, outcome.compiled, out)
            hops = hops_of(step_outputs, scorer.interpreters, random_inputs=measured.random)
            read = readings(model, device, outcome, built.steps[-1].arithmetic if built.steps else {})
            values = dict(read.values)
            if outcome.outputs and not outcome.error and not outcome.non_finite:
                name = f"{branch.variant}.{branch.format}.{device.name}.npz"
                golden.write(model, outcome.outputs, out / "golden" / name)
                if not measured.source.error:
                    source = _outputs(measured.source)
                    ordered = aligned(_outputs(outcome), source)
                    judged, pairs, common["outputs"], decisions = scorer.artifact(ordered, source)
                    values |= judged | sample_measurements(recipe.metrics, pairs, measured.labels)
                    common["output_changes"] = output_changes(source, ordered, scorer.interpreters)
                    common |= _of_decisions(decisions, scorer.readers)
                    common["samples"] = {
                        name: Samples.pack(pair.after, pair.reach) for name, pair in pairs.items()
                    }
                    lower = frozenset(
                        name for name, metric, _ in recipe.metrics if not metric.higher_is_better
                    )
                    evidence[branch.variant, branch.format, device.name] = Evidence(
                        pairs,
                        {name: labels_of(measured.labels, head) for name, _, head in recipe.metrics},
                        plan.recipe.model.labels,
                        lower,
                    )
                values |= _parity(measured, branch.name, device.name, scorer.interpreters)
            notes = (*step_notes, *read.notes, *magnified(model, values.get("parity_max_steps")))
            layers = renamed_rows(outcome.details, rename)
            rows.append(
                result_of(outcome, hops=hops, measurements=values, notes=notes, layers=layers, **common)
            )
    for missing in plan.impossible:
        reason = f"{missing.reason}; {missing.fix}"
        for device in plan.recipe.devices:
            rows.append(
                Result(
                    variant=missing.variant,
                    format=missing.format,
                    device=device.name,
                    status="skipped",
                    reason=reason,
                )
            )
    return rows, evidence


def _of_decisions(decisions: Mapping[str, Decisions], readers: Sequence[Reader]) -> dict[str, Any]:
    """The fields of a result on the decisions of each task."""
    known = [reader for reader in readers if reader.head in decisions]
    fields: dict[str, Any] = {"findings": tuple(each.findings(decisions[each.head]) for each in known)}
    for reader in known:
        compared = decisions[reader.head], reader.targets, reader.source
        fields["classes"], fields["confusions"] = by_class(*compared)
        if fields["classes"]:
            fields["flips"] = flips(*compared)
            break
    return fields


def references(rows: Sequence[Result], scorer: Scorer) -> tuple[Reference, ...]:
    """What the changed samples of all results are compared with, once for all of them."""
    changed = {
        (found.head, change.sample) for row in rows for found in row.findings for change in found.samples
    }
    return tuple(
        reference
        for reader in scorer.readers
        for reference in reader.references(sorted(at for head, at in changed if head == reader.head))
    )


def memory_limits(devices: Sequence[Device]) -> dict[str, MemoryLimits]:
    """The memory of the devices whose files limit it."""
    return {
        device.name: MemoryLimits(flash=device.limits.flash, ram=device.limits.ram)
        for device in devices
        if device.limits != Limits()
    }


def result_of(outcome: Outcome, **fields: Any) -> Result:
    """One row of the report: ok if the artifact ran, its outputs are finite, and no hop is broken.

    ``fields`` are the other fields of `Result`.
    """
    broken = next((hop for hop in fields.get("hops", ()) if hop.status == "broken"), None)
    status: Status = "ok"
    reason = ""
    if outcome.error:
        status, reason = "skipped" if outcome.unreachable else "failed", outcome.error
    elif outcome.non_finite:
        status, reason = "failed", f"{outcome.non_finite} output values are NaN or infinite"
    elif broken is not None:
        status, reason = "failed", broken.reason
    return Result(
        status=status,
        reason=reason,
        runtime=outcome.runtime,
        cached=outcome.cached,
        **({"layers": outcome.details} | fields),
    )


def source_result(plan: Plan, measured: Measured, scorer: Scorer) -> SourceResult:
    """The original model's row; must be computed before those of the artifacts."""
    path = plan.source.path
    common: dict[str, Any] = {
        "format": plan.source.format,
        "path": path.name,
        "is_folder": path.is_dir(),
        "digest": model_digest(plan.source),
        "size_bytes": sum(file.stat().st_size for file in model_files(plan.source)),
        "runtime": measured.source.runtime,
    }
    if measured.source.error:
        return SourceResult(status="failed", reason=measured.source.error, **common)
    return SourceResult(measurements=scorer.source(_outputs(measured.source)), **common)


def plausibility_notes(source: SourceResult, scorer: Scorer) -> list[str]:
    """Notes on the whole run: warns if the source model is no better than chance."""
    top1 = source.measurements.get("top1")
    head = next((named.head for named in scorer.metrics if named.name == "top1"), "")
    decisions = scorer.source_decisions.get(head)
    if top1 is None or decisions is None or decisions.scores is None:
        return []
    classes = decisions.scores.shape[-1]
    if top1.value > 1.5 / classes:
        return []
    return [
        f"the source model is correct for {top1.value:.1%} of {top1.n} samples, which is chance level for "
        f"{classes} classes: check model.preprocess and the labels"
    ]


def hops_of(
    step_outputs: Sequence[StepOutputs],
    interpreters: Sequence[Interpreter] = (),
    *,
    random_inputs: bool = False,
) -> tuple[Hop, ...]:
    """Compare each step with the previous one that could be run.

    On random inputs, only lossless steps are judged: ranges calibrated on real data need not cover noise.
    """
    hops: list[Hop] = []
    before: Outputs | None = None
    if step_outputs and not step_outputs[0].outcome.error:
        before = _outputs(step_outputs[0].outcome)
    for step in step_outputs[1:]:
        common: dict[str, Any] = {"stage": step.step, "produced": step.produced, "lossless": step.lossless}
        if step.outcome.error or before is None:
            reason = step.outcome.error or "the source model could not be run"
            hops.append(Hop(status="unmeasured", reason=reason, **common))
            continue
        after = _outputs(step.outcome)
        measured = hop(
            step.step,
            step.produced,
            lossless=step.lossless,
            before=before,
            after=after,
            trained=step.trained,
            interpreters=interpreters,
        )
        if random_inputs and not step.lossless:
            measured = measured.model_copy(update={"status": "unmeasured", "reason": "random inputs"})
        hops.append(measured)
        # Keeps the order and the names of the source model.
        before = aligned(after, before) if len(after.arrays) == len(before.arrays) else after
    return tuple(hops)


def _outputs(outcome: Outcome) -> Outputs:
    return Outputs(outcome.outputs, outcome.output_names)


def magnified(model: Model, steps: Measurement | None) -> tuple[str, ...]:
    """A note if the steps between two devices are those after an operator that makes many out of one."""
    kind = format_named(model.format)
    if steps is None or steps.value <= 1 or not kind.magnifying:
        return ()
    kinds = [each.kind for each in kind.operators(model.path) or () if each.kind not in kind.casts]
    if not kinds or kinds[-1] not in kind.magnifying:
        return ()
    return (
        f"the {steps.value:.0f} steps to host are those of the output, after {kinds[-1]}, which turns one "
        "step of its input into many: edgeopt parity counts in front of it",
    )


def _parity(
    measured: Measured, branch: str, device: str, interpreters: Sequence[Interpreter]
) -> dict[str, Measurement]:
    """Difference between the device's and the host's outputs of the same file; empty if the host has none."""
    host = measured.finals.get((branch, HOST))
    outcome = measured.finals[branch, device]
    if device == HOST or host is None or not host.outputs:
        return {}
    if [array.size for array in host.outputs] != [array.size for array in outcome.outputs]:
        return {}
    try:
        found = difference(
            host.outputs,
            outcome.outputs,
            host.output_scales,
            interpreters=interpreters,
            names=host.output_names,
        )
    except UNDECIDABLE:  # not the outputs of the task: the hop says so
        found = difference(host.outputs, outcome.outputs, host.output_scales)
    return found.measurements()
