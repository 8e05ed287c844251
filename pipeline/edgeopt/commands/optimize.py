"""The whole program, top to bottom: recipe, plan, build, measure, judge, report."""

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
from edgeopt.run.session import measure, measuring
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
    """Carry a recipe out and write its report; ``report.exit_code`` is the verdict.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        out: folder of the report; default ``artifacts/runs/<time>-<recipe>``.
        store: folder of finished work; default ``EDGEOPT_STORE`` or ``artifacts/store``.
        overrides: ``key.key=value`` settings that replace what the recipe says.
        data_root: where relative paths are looked up when not beside the recipe; default ``EDGEOPT_DATA``.
        device_folders: folders with device files of your own.
        keep_going: build what can be had when the recipe also asks for what cannot.
        watch: called with every piece of progress.

    Raises:
        UsageError: the recipe, a model, data or a folder is wrong; nothing slow has been started.
        CannotRunError: the run could not be finished; what was is in the store.
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
                *assemble.doubts(source, measured),
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
    """What ``optimize`` would do, without doing it; ``plan.impossible`` tells what cannot be had.

    Raises:
        UsageError: the recipe or the model file is wrong.
    """
    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root, device_folders=device_folders)
    return make_plan(loaded)


def announce(plan: Plan, watch: Callable[[Event], None]) -> None:
    """Tell everything that is to come, in order, before the first of it starts."""
    for branch in plan.branches:
        steps = [*map(plugin_name, branch.stages), *(measuring(device.name) for device in branch.devices)]
        for step in steps:
            watch(Event(branch=branch.name, step=step, status="planned"))


def run_folder(given: Path | None, name: str, started: datetime.datetime) -> Path:
    """The folder of a report, made now, so that a folder that cannot be written is told at once.

    Raises:
        UsageError: it cannot be made or written.
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
    """Thumbnails of the worst of the samples that flipped, where the model's input is an image."""
    recipe = plan.recipe
    if recipe.evaluation is None:
        return {}
    layout = recipe.model.preprocess.layout or next((spec.layout for spec in plan.source.inputs), None)
    return thumbnails(recipe.evaluation.samples(), worst_flips(rows), layout)


def point_latest(folder: Path) -> None:
    """Make ``latest`` beside a run folder point at it, in one step."""
    with replacing(folder.parent / "latest") as scratch:
        scratch.symlink_to(folder.name)
