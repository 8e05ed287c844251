"""Puts a run together: what was planned, built and measured becomes one report and its files."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.config import registry
from edgeopt.errors import UsageError
from edgeopt.evaluation.comparison import difference, hop, output_scales
from edgeopt.evaluation.golden import Golden
from edgeopt.evaluation.judge import Evidence
from edgeopt.evaluation.measurements import (
    accuracy,
    by_class,
    conditions,
    flips,
    latency,
    of_the_device,
    of_the_samples,
    sizes,
    sparse,
)
from edgeopt.model import SUFFIXES, Array, content_digest, file_digest, size_bytes
from edgeopt.plugin import Metric
from edgeopt.recipe.planner import Built, Plan
from edgeopt.results import ALWAYS, EMULATED, UNITS, Artifact, Hop, Measurement, Result, SourceResult
from edgeopt.run.bench import Outcome
from edgeopt.run.packing import Samples
from edgeopt.run.session import Measured, Trail

Named = list[tuple[str, Metric]]

HOST = "host"


def results(
    plan: Plan, builds: Sequence[Built], measured: Measured, out: Path
) -> tuple[list[Result], dict[tuple[str, str, str], Evidence]]:
    """One result per branch and device, also of what failed or cannot be had; artifacts go to ``out``.

    Beside them it gives what single samples say, for the gates that ask them.
    """
    metrics = named_metrics(plan)
    recipe = plan.recipe
    judged_on = recipe.evaluation or recipe.calibration
    golden = Golden(judged_on, recipe.model.preprocess, measured.labels, measured.samples)
    found: list[Result] = []
    evidence: dict[tuple[str, str, str], Evidence] = {}
    for built in builds:
        branch = built.branch
        base: dict[str, Any] = {"variant": branch.variant, "format": branch.format, "chain": _chain(built)}
        if not built.complete:
            reason = built.failure or "not built"
            found += [Result(device=d.name, status="failed", reason=reason, **base) for d in branch.devices]
            continue
        artifact = keep_artifact(plan, built, out)
        step = built.steps[-1]
        for device in branch.devices:
            trail = [t for t in measured.trails[branch.name] if t.device in ("", device.name)]
            hops = hops_of(trail, made_up=measured.random)
            broken = next((h for h in hops if h.status == "broken"), None)
            outcome = measured.finals[branch.name, device.name]
            common = base | {
                "device": device.name,
                "artifact": artifact,
                "hops": hops,
                "transposes": step.model.transposes,
                "runtime": outcome.runtime,
                "cached": outcome.cached,
                "layers": tuple(outcome.info.get("details") or ()),
            }
            values = sizes(step.model.path)
            if outcome.error:
                status = "skipped" if outcome.unreachable else "failed"
                found.append(Result(status=status, reason=outcome.error, measurements=values, **common))
                continue
            strange = outcome.info.get("non_finite") or 0
            values |= latency(outcome.info, outcome.times)
            values |= {
                name: Measurement(value=value, unit=UNITS[name]) for name, value in step.arithmetic.items()
            }
            common["notes"] = (
                *(note for each in built.steps for note in each.notes),
                *outcome.info.get("notes", ()),
                *conditions(outcome.info),
                *sparse(values),
            )
            common["trials"] = tuple(trial for each in built.steps for trial in each.trials)
            if device.emulated:
                values = of_the_device(values)
                if outcome.outputs:
                    common["notes"] += (EMULATED,)
            if outcome.compiled is not None:
                common["artifact"] = keep_compiled(built, device.name, outcome.compiled, out)
            if outcome.outputs and not strange:
                name = f"{branch.variant}.{branch.format}.{device.name}.npz"
                golden.write(step.model, outcome.outputs, out / "golden" / name)
                if not measured.source.error:
                    outputs, source = _aligned(outcome, measured)
                    judged, pairs = accuracy(metrics, outputs, measured.labels, source)
                    values |= judged | of_the_samples(pairs, measured.labels)
                    common["flips"] = flips(outputs, measured.labels, source)
                    common["classes"], common["confusions"] = by_class(outputs, measured.labels, source)
                    common["samples"] = {name: Samples.pack(pair.after) for name, pair in pairs.items()}
                    lower = frozenset(name for name, metric in metrics if not metric.higher_is_better)
                    evidence[branch.variant, branch.format, device.name] = Evidence(
                        pairs, measured.labels, plan.recipe.model.labels, lower
                    )
                values |= _parity(measured, branch.name, device.name)
            status, reason = ("failed", broken.reason) if broken else ("ok", "")
            if strange:
                status, reason = "failed", f"{strange} output values are NaN or infinite"
            found.append(Result(status=status, reason=reason, measurements=values, **common))
    for missing in plan.impossible:
        reason = f"{missing.reason}; {missing.fix}"
        for device in plan.recipe.devices:
            found.append(
                Result(
                    variant=missing.variant,
                    format=missing.format,
                    device=device.name,
                    status="skipped",
                    reason=reason,
                )
            )
    return found, evidence


def source_result(plan: Plan, measured: Measured) -> SourceResult:
    """The untouched model's row."""
    path = plan.source.path
    common: dict[str, Any] = {
        "format": plan.source.format,
        "path": path.name,
        "digest": content_digest(path),
        "size_bytes": size_bytes(path),
        "runtime": measured.source.runtime,
    }
    if measured.source.error:
        return SourceResult(status="failed", reason=measured.source.error, **common)
    outputs = measured.source.outputs[0]
    values: dict[str, Measurement] = {}
    for name, value in accuracy(named_metrics(plan), outputs, measured.labels, outputs)[0].items():
        if not name.endswith("_drop") and name not in ALWAYS:
            values[name] = value
    return SourceResult(measurements=values, **common)


def doubts(source: SourceResult, measured: Measured) -> list[str]:
    """What makes a run suspicious as a whole."""
    top1 = source.measurements.get("top1")
    if top1 is None or not measured.source.outputs:
        return []
    classes = max(measured.source.outputs[0].shape[-1], 2)
    if top1.value > 1.5 / classes:
        return []
    return [
        f"the source model itself is right for {top1.value:.1%} of {top1.n} samples, which is guessing among "
        f"{classes} classes: look at model.preprocess and at the labels"
    ]


def named_metrics(plan: Plan) -> Named:
    """The metrics of a plan under the names that reports give them."""
    return [(registry.plugin_name(metric), metric) for metric in plan.recipe.metrics]


def hops_of(trail: Sequence[Trail], *, made_up: bool = False) -> tuple[Hop, ...]:
    """Each step compared with the last one before it that could be run.

    On made-up inputs only exact steps are judged: a range that was calibrated on real data need not
    hold for noise.
    """
    found: list[Hop] = []
    before = trail[0].outcome if trail and not trail[0].outcome.error else None
    for step in trail[1:]:
        common: dict[str, Any] = {"stage": step.step, "produced": step.produced, "lossless": step.lossless}
        if step.outcome.error or before is None:
            reason = step.outcome.error or "the source model could not be run"
            found.append(Hop(status="unmeasured", reason=reason, **common))
            continue
        measured = hop(
            step.step,
            step.produced,
            lossless=step.lossless,
            before=before.outputs[0],
            after=step.outcome.outputs[0],
            trained=step.trained,
        )
        if made_up and not step.lossless:
            measured = measured.model_copy(update={"status": "unmeasured", "reason": "made-up inputs"})
        found.append(measured)
        before = step.outcome
    return tuple(found)


def keep_artifact(plan: Plan, built: Built, out: Path) -> Artifact:
    """Copy a finished file to ``models/`` with a record of what it takes and gives beside it."""
    branch, step = built.branch, built.steps[-1]
    model = step.model
    relative = f"models/{branch.variant}{SUFFIXES[branch.format]}"
    target = out / relative
    replace(target, lambda scratch: shutil.copyfile(model.path, scratch))
    digest = file_digest(target)
    record = {
        "recipe": plan.recipe.name,
        "variant": branch.variant,
        "format": branch.format,
        "digest": digest,
        "inputs": [spec.model_dump(mode="json") for spec in model.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in model.outputs],
        "preprocessing": plan.recipe.model.preprocess.model_dump(mode="json"),
        "labels": plan.recipe.model.labels,
        "chain": _chain(built),
        "versions": {name: version for stage in branch.stages for name, version in stage.versions().items()},
    }
    replace(
        target.with_name(target.name + ".json"), lambda s: s.write_text(json.dumps(record, indent=2) + "\n")
    )
    size = target.stat().st_size
    return Artifact(path=relative, digest=digest, size_bytes=size, breakdown=step.breakdown)


def keep_compiled(built: Built, device: str, compiled: Path, out: Path) -> Artifact:
    """Copy what a device's compiler made of an artifact to ``models/``, under the device's name."""
    relative = f"models/{built.branch.variant}.{device}{SUFFIXES[built.branch.format]}"
    target = out / relative
    replace(target, lambda scratch: shutil.copyfile(compiled, scratch))
    return Artifact(path=relative, digest=file_digest(target), size_bytes=target.stat().st_size)


def replace(target: Path, write: Any) -> None:
    """Write a file beside its place, then rename: complete or as it was.

    Raises:
        UsageError: the folder cannot be written.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        scratch.replace(target)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {target}: {error.strerror}", fix="choose another folder with --out DIR"
        ) from error


def _chain(built: Built) -> tuple[str, ...]:
    return tuple(registry.plugin_name(stage) for stage in built.branch.stages)


def _parity(measured: Measured, branch: str, device: str) -> dict[str, Measurement]:
    """How far the device's outputs are from the host's, for the same file, where the host ran it too."""
    host = measured.finals.get((branch, HOST))
    outcome = measured.finals[branch, device]
    if device == HOST or host is None or not host.outputs:
        return {}
    if [array.size for array in host.outputs] != [array.size for array in outcome.outputs]:
        return {}
    return difference(host.outputs, outcome.outputs, output_scales(host.info)).measurements()


def _aligned(outcome: Outcome, measured: Measured) -> tuple[Array, Array]:
    """First outputs of an artifact and of the source model, in the shape of the source model's."""
    outputs, source = outcome.outputs[0], measured.source.outputs[0]
    return (outputs.reshape(source.shape) if outputs.size == source.size else outputs), source
