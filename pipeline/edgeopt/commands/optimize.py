"""The main use case, in order: recipe, plan, build, measure, judge, report."""

import datetime
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeopt.config.files import replacing
from edgeopt.config.registry import plugin_name
from edgeopt.errors import UsageError
from edgeopt.evaluation.judge import judge
from edgeopt.recipe.planner import Plan, make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.reports import write_report
from edgeopt.reports.index import write_index
from edgeopt.reports.thumbnails import thumbnails, worst_flips
from edgeopt.results import Event, Report, Result
from edgeopt.run import assemble
from edgeopt.run.assemble import RunClock
from edgeopt.run.build import build
from edgeopt.run.preflight import preflight
from edgeopt.run.scoring import Scorer
from edgeopt.run.session import measure, measure_step
from edgeopt.run.store import ARTIFACTS, Store, store_folder


def optimize(
    recipe: str | Path,
    *,
    out: Path | None = None,
    store: Path | None = None,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    keep_going: bool = False,
    watch: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Run a recipe and write its report; ``report.exit_code`` is the verdict.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        out: folder of the report; default ``artifacts/runs/<time>-<recipe>``.
        store: folder of cached results; default ``EDGEOPT_STORE`` or ``artifacts/store``.
        overrides: ``key.key=value`` settings that replace those of the recipe.
        data_root: folder for relative paths that are not found beside the recipe; default ``EDGEOPT_DATA``.
        device_folders: folders with your own device files.
        keep_going: build the rest if some requested artifacts cannot be produced.
        watch: called with every progress event.

    Raises:
        UsageError: the recipe, a model, data or a folder is invalid; raised before anything slow starts.
        CannotRunError: the run could not be finished; completed steps are in the store.
    """
    clock = RunClock()
    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root, device_folders=device_folders)
    plan = make_plan(loaded)
    if not keep_going:
        plan.demand_possible()
    folder = run_folder(out, loaded.name, clock.started)
    finished = Store(store_folder(store))
    findings = preflight(plan, finished, device_folders, watch)

    announce(plan, watch)
    builds = build(plan, finished, watch)
    measured = measure(plan, builds, finished, device_folders, watch)
    with Scorer(loaded.metrics, measured.labels, findings.failed_metrics) as scorer:
        source = assemble.source_result(plan, measured, scorer)
        rows, evidence = assemble.results(plan, builds, measured, scorer, folder)
    verdicts = judge(loaded.gates, rows, evidence, scorer.failures)

    report = Report(
        recipe=loaded.name,
        run=clock.record(
            recipe_digest=loaded.digest,
            calibration_digest=loaded.calibration.digest() if loaded.calibration else "",
            evaluation_digest=measured.evaluation_digest,
            train_digest=loaded.train.digest() if loaded.train else "",
            validation_digest=loaded.validation.digest() if loaded.validation else "",
            document=loaded.document,
            samples=measured.samples,
            notes=(
                *assemble.plausibility_notes(source, measured),
                *plan.notes,
                *findings.notes,
                *(f"store entry {key[:12]} was damaged and rebuilt" for key in finished.damaged),
            ),
        ),
        environment={name: dict(probe) for name, probe in measured.probes.items()},
        source=source,
        metrics=scorer.infos(),
        results=tuple(rows),
        gates=tuple(verdicts),
        labels=loaded.model.labels,
        thumbnails=_pictures(plan, rows),
    )
    write_report(report, folder)
    if out is None:
        point_latest(folder)
        write_index(folder.parent)
    return report.model_copy(update={"folder": folder})


def plan(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
) -> Plan:
    """Plan a recipe without running it; ``plan.impossible`` lists what cannot be produced.

    Raises:
        UsageError: the recipe or the model file is invalid.
    """
    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root, device_folders=device_folders)
    return make_plan(loaded)


def announce(plan: Plan, watch: Callable[[Event], None]) -> None:
    """Emit a ``planned`` event for every step, in order, before the first one starts."""
    for branch in plan.branches:
        steps = [*map(plugin_name, branch.stages), *(measure_step(device.name) for device in branch.devices)]
        for step in steps:
            watch(Event(branch=branch.name, step=step, status="planned"))


def run_folder(given: Path | None, name: str, started: datetime.datetime) -> Path:
    """Create the report's folder early, to fail before the run if it is not writable.

    Raises:
        UsageError: the folder cannot be created or written.
    """
    folder = given or ARTIFACTS / "runs" / f"{started:%Y%m%d-%H%M%S}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror}", fix="choose another with --out DIR"
        ) from error
    return folder


def _pictures(plan: Plan, rows: Sequence[Result]) -> dict[int, str]:
    """Thumbnails of the worst flipped samples, for models with image input."""
    recipe = plan.recipe
    if recipe.evaluation is None:
        return {}
    layout = recipe.model.preprocess.layout or next((spec.layout for spec in plan.source.inputs), None)
    return thumbnails(recipe.evaluation.samples(), worst_flips(rows), layout)


def point_latest(folder: Path) -> None:
    """Point the ``latest`` symlink beside a run folder at it, atomically."""
    with replacing(folder.parent / "latest") as scratch:
        scratch.symlink_to(folder.name)
