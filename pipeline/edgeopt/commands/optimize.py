"""The whole program, top to bottom: recipe, plan, build, measure, judge, report."""

import datetime
import importlib.metadata
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.registry import plugin_name
from edgeopt.errors import UsageError
from edgeopt.evaluation.judge import judge
from edgeopt.evaluation.samples import checked, collect, fingerprint
from edgeopt.plugin import Dataset, digest_of
from edgeopt.recipe.document import Recipe
from edgeopt.recipe.planner import Plan, make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.reports import write_report
from edgeopt.reports.index import write_index
from edgeopt.reports.thumbnails import thumbnails, worst_flips
from edgeopt.results import Event, Report, Result, Run
from edgeopt.run import assemble
from edgeopt.run.build import build
from edgeopt.run.session import measure, measuring
from edgeopt.run.store import ARTIFACTS, Store, store_folder

LEAK = 0.01
"""Share of the evaluation data: real data holds a few samples twice; all silence is alike."""


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
    started, clock = datetime.datetime.now().astimezone(), time.monotonic()
    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root, device_folders=device_folders)
    plan = make_plan(loaded)
    if not keep_going:
        plan.demand_possible()
    folder = run_folder(out, loaded.name, started)
    finished = Store(store_folder(store))
    check_data(plan)
    leaks = find_leaks(loaded, check_samples(loaded, finished))

    announce(plan, watch)
    builds = build(plan, finished, watch)
    measured = measure(plan, builds, finished, device_folders, watch)
    source = assemble.source_result(plan, measured)
    rows, evidence = assemble.results(plan, builds, measured, folder)
    verdicts = judge(loaded.gates, rows, evidence)

    report = Report(
        recipe=loaded.name,
        run=Run(
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
            command=shlex.join(["edgeopt", *sys.argv[1:]]),
            edgeopt=importlib.metadata.version("edgeopt"),
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
                *leaks,
                *(f"store entry {key[:12]} was damaged and rebuilt" for key in finished.damaged),
            ),
        ),
        environment=measured.probes,
        source=source,
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


def check_data(plan: Plan) -> None:
    """Hold the first sample of every dataset against what the model takes.

    Raises:
        UsageError: naming the dataset and both shapes.
    """
    recipe = plan.recipe
    for dataset in parts(recipe).values():
        _, labels = collect(dataset, recipe.model.preprocess, plan.source.inputs, 1)
        needy = [metric for metric in recipe.metrics if metric.against == "labels"]
        if dataset is recipe.evaluation and labels is None and needy:
            raise UsageError(
                f"{recipe.file}: the evaluation data has no labels, but {plugin_name(needy[0])} needs them",
                fix="name the labels in data.evaluation, or remove metric: agreement needs none",
            )


def check_samples(recipe: Recipe, store: Store) -> dict[str, NDArray[np.uint64]]:
    """Look at every sample once before anything slow starts; the store remembers what was found sound.

    Returns, per use of data, one hash of the inputs of each sample.

    Raises:
        UsageError: naming the first sample that is not finite or of another shape, or an empty dataset.
    """
    hashes: dict[str, NDArray[np.uint64]] = {}
    for part, dataset in parts(recipe).items():
        key = digest_of(["hashes of samples", dataset.digest()])
        entry = store.get(key)
        if entry is None:
            found = np.fromiter((fingerprint(sample) for sample in checked(dataset)), np.uint64)
            with store.scratch() as folder:
                np.save(folder / "hashes.npy", found, allow_pickle=False)
                entry = store.put(key, folder, {"samples": len(found)})
        hashes[part] = np.load(entry.folder / "hashes.npy", allow_pickle=False)
    return hashes


def find_leaks(recipe: Recipe, hashes: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    """What is to be said of samples that judge and were also learned from.

    Raises:
        UsageError: too much of the evaluation data is among them, and the recipe does not allow it.
    """
    said: list[str] = []
    judging = hashes.get("evaluation")
    for part in ("calibration", "train", "validation") if judging is not None else ():
        if part not in hashes or judging is None:
            continue
        known = np.isin(judging, hashes[part])
        count, share = int(known.sum()), float(known.mean())
        told = f"{count} of the {len(judging)} evaluation samples are in data.{part} as well"
        if share > LEAK and not recipe.allow_leak:
            raise UsageError(
                f"{recipe.file}: {told}: the accuracy would be better than it is elsewhere",
                fix="give other samples, or allow it with data: {allow_leak: true}, which the report tells",
            )
        if count:
            said.append(f"{told}: the accuracy is better than it is elsewhere" if share > LEAK else told)
    return said


def parts(recipe: Recipe) -> dict[str, Dataset]:
    """The datasets that a recipe names, by their use."""
    named = {
        "calibration": recipe.calibration,
        "evaluation": recipe.evaluation,
        "train": recipe.train,
        "validation": recipe.validation,
    }
    return {part: dataset for part, dataset in named.items() if dataset is not None}


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
    scratch = folder.parent / f".latest-{os.getpid()}"
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(folder.name)
    scratch.replace(folder.parent / "latest")
