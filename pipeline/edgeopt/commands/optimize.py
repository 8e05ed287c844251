"""The main use case, in order: recipe, plan, build, measure, judge, report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgeopt.commands.start import RECIPE, Given, paths_of, recipe_of
from edgeopt.config.files import NO_SPACE, SCRATCH, make_ignored, replacing, unwritable, writing
from edgeopt.config.registry import plugin_name
from edgeopt.config.scratch import scratch_folder, sweep
from edgeopt.errors import DataError, UsageError
from edgeopt.evaluation.confidence import drop_tests
from edgeopt.evaluation.judge import judge
from edgeopt.plugin import Dataset, Sample
from edgeopt.recipe.plan import Built, Plan
from edgeopt.recipe.planner import make_plan
from edgeopt.reports import write_report
from edgeopt.reports.index import write_index
from edgeopt.reports.thumbnails import Thumbnails, room_for, thumbnails, worst_samples
from edgeopt.results import Event, Reference, Report, Result, recommend
from edgeopt.run import assemble
from edgeopt.run.artifacts import OTHER_FOLDER
from edgeopt.run.assemble import RunClock
from edgeopt.run.executors.choice import executing
from edgeopt.run.keys import judging_code
from edgeopt.run.measuring.session import build_and_measure, measure_step, unmeasured
from edgeopt.run.preflight import Findings, preflight
from edgeopt.run.scoring import scorer_of
from edgeopt.run.store import ARTIFACTS, Store, open_store, store_place
from edgeopt.search.variants import with_found


def optimize(
    recipe: str | Path,
    *,
    data: str | Path | Sequence[str | Path] = (),
    int8: bool = False,
    goal: str | None = None,
    factory: str | None = None,
    shapes: Sequence[Sequence[int]] = (),
    out: Path | None = None,
    store: str | Path | None = None,
    overrides: Sequence[str] = (),
    variants: Sequence[str] = (),
    formats: Sequence[str] = (),
    devices: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    keep_going: bool = False,
    on: str | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Run a recipe, or one made for a model, and write its report; ``report.exit_code`` is the verdict.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or a model.
        data: for a model, files or folders of samples; one is split, of two one calibrates, the other judges.
        int8: for a model, build int8 files.
        goal: for a model, where it is to run: phone, pi or mcu.
        factory: for a checkpoint, what builds its network, such as ``my_network.py:build``.
        shapes: for a model that does not declare them, the shapes of its inputs.
        out: folder of the report; default ``artifacts/runs/<time>-<recipe>``.
        store: folder or URL of cached results; default ``EDGEOPT_STORE`` or ``artifacts/store``.
        overrides: ``key.key=value`` settings that replace those of the recipe.
        variants: build only these variants of the recipe, and float; for a model, schemes of quantization.
        formats: the formats to build instead of the recipe's.
        devices: the devices to measure on instead of the recipe's.
        data_root: folder for relative paths that are not found beside the recipe; default ``EDGEOPT_DATA``.
        device_folders: folders with your own device files.
        keep_going: build the rest if some requested artifacts cannot be produced.
        on: where stages run: ``local``, ``ray`` or ``ray:HOST:PORT``; default ``EDGEOPT_ON`` or ``local``.
        watch: called with every progress event.

    Raises:
        UsageError: the recipe, a model, data or a folder is invalid; raised before anything slow starts.
        CannotRunError: the run could not be finished; completed steps are in the store.
    """
    given = Given(
        Path(recipe),
        paths_of(data),
        int8,
        goal,
        factory,
        shapes,
        variants,
        formats,
        devices,
        overrides,
    )
    return run(
        given,
        out=out,
        store=store,
        data_root=data_root,
        device_folders=device_folders,
        keep_going=keep_going,
        on=on,
        watch=watch,
    )


def run(
    given: Given,
    *,
    out: Path | None = None,
    store: str | Path | None = None,
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    keep_going: bool = False,
    on: str | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Run a recipe or model, with what a user says about it; otherwise as `optimize`.

    Raises:
        UsageError: as `optimize`.
        CannotRunError: as `optimize`.
    """
    clock = RunClock()
    ready = recipe_of(
        given,
        lambda name: out or ARTIFACTS / "runs" / f"{clock.started:%Y%m%d-%H%M%S}-{name}",
        store=lambda: open_store(store),
        data_root=data_root,
        device_folders=device_folders,
        watch=watch,
    )
    place = ready.folder
    drop_tests.import_early()
    plan = make_plan(ready.recipe)
    if not keep_going:
        plan.demand_possible()
    with run_folder(place, whole=out is None) as folder, executing(on, store_place(store), watch):
        if ready.text is not None:
            with writing(folder / RECIPE, OTHER_FOLDER):
                (folder / RECIPE).write_text(ready.text, "utf-8")
        if any(variant.search for variant in ready.recipe.variants):
            plan = make_plan(with_found(ready.recipe, open_store(store), device_folders, watch))
        report = _run(plan, folder, open_store(store), clock, device_folders, watch)
    if out is None:
        with writing(place.parent, OTHER_FOLDER):
            point_latest(place, report)
        write_index(place.parent)
    return report.model_copy(update={"folder": place})


def _run(
    plan: Plan,
    folder: Path,
    finished: Store,
    clock: RunClock,
    device_folders: Sequence[Path],
    watch: Callable[[Event], None],
) -> Report:
    """Build, measure and judge everything in a plan, and write the report to ``folder``."""
    loaded = plan.recipe
    findings = Findings()
    try:
        findings = preflight(plan, finished, device_folders, watch)
        announce(plan, watch)
        builds, measured = build_and_measure(plan, finished, device_folders, watch)
        finished.flush()
    except DataError as error:
        # Nothing can be built or judged without its data; the report says so.
        builds = [Built(branch, failure=str(error)) for branch in plan.branches]
        measured = unmeasured(plan, str(error))
    with scorer_of(loaded, measured.labels, findings.failed_metrics) as scorer:
        source = assemble.source_result(plan, measured, scorer)
        rows, evidence = assemble.results(plan, builds, measured, scorer, folder)
        references = assemble.references(rows, scorer)
    verdicts = judge(loaded.gates, rows, evidence, scorer.failures)

    pictures = _pictures(plan, rows, references)
    report = Report(
        recipe=loaded.name,
        run=clock.record(
            recipe_digest=loaded.digest,
            calibration_digest=_digest(loaded.calibration),
            evaluation_digest=measured.evaluation_digest,
            train_digest=_digest(loaded.train),
            validation_digest=_digest(loaded.validation),
            document=loaded.document,
            judging_code=judging_code(loaded),
            samples=measured.samples,
            notes=(
                *assemble.plausibility_notes(source, scorer),
                *plan.notes,
                *findings.notes,
                *(f"store entry {key[:12]} was damaged and rebuilt" for key in finished.damaged),
                *finished.notes,
            ),
        ),
        environment={name: dict(probe) for name, probe in measured.probes.items()},
        source=source,
        metrics=scorer.infos(),
        results=tuple(rows),
        gates=tuple(verdicts),
        recommended=recommend(rows, verdicts, loaded.ship),
        target=loaded.target,
        limits=assemble.memory_limits(loaded.devices),
        labels=loaded.model.labels,
        thumbnails=pictures.pictures,
        image_size=pictures.size,
        references=references,
    )
    with writing(folder, OTHER_FOLDER):
        write_report(report, folder)
    return report


def announce(plan: Plan, watch: Callable[[Event], None]) -> None:
    """Emit a ``planned`` event for every step, in order, before the first one starts."""
    for branch in plan.branches:
        steps = [*map(plugin_name, branch.stages), *(measure_step(device.name) for device in branch.devices)]
        for step in steps:
            watch(Event(branch=branch.name, step=step, status="planned"))


@contextmanager
def run_folder(place: Path, *, whole: bool) -> Iterator[Path]:
    """The folder to write the report to, created early, to fail before the run if it is not writable.

    A run that does not finish leaves no empty folder. With ``whole``, it leaves nothing: the folder is a
    scratch folder, which is renamed to ``place`` at the end.

    Raises:
        UsageError: the folder cannot be created or written.
        CannotRunError: the disk is full.
    """
    with ExitStack() as cleanup:
        parent = place.parent if whole else place
        try:
            if whole:
                make_ignored(parent)  # the folder of all runs
            parent.mkdir(parents=True, exist_ok=True)
            sweep(parent, SCRATCH)
            scratch = cleanup.enter_context(scratch_folder(parent, SCRATCH))
        except OSError as error:
            if error.errno in NO_SPACE:
                raise unwritable(place, error, OTHER_FOLDER) from error
            raise UsageError(
                f"cannot write to {place}: {error.strerror}", fix="choose another with --out DIR"
            ) from error
        if whole:
            yield scratch
            with writing(place, OTHER_FOLDER):
                scratch.rename(place)
            return
        cleanup.close()
        try:
            yield place
        finally:
            with suppress(OSError):
                place.rmdir()  # only if it is empty


def _digest(dataset: Dataset | None) -> str:
    """The digest of a dataset; '' if there is none, or its code fails, which the results say."""
    try:
        return dataset.digest() if dataset is not None else ""
    except DataError:
        return ""


def _pictures(plan: Plan, rows: Sequence[Result], references: Sequence[Reference]) -> Thumbnails:
    """Thumbnails of the samples that changed most, for models with image input: of the first image."""
    if plan.recipe.evaluation is None:
        return Thumbnails({})
    inputs, preprocessing = plan.source.inputs, plan.preprocessing
    index = next((index for index, spec in enumerate(inputs) if spec.layout), 0)
    names = preprocessing.names(inputs)
    samples = (Sample((each.in_order(names)[index],)) for each in plan.recipe.evaluation.samples())
    room = room_for(references)
    layout = preprocessing.of(index, inputs[index]).layout
    return thumbnails(samples, worst_samples(rows, room.samples), layout, room)


def point_latest(folder: Path, report: Report) -> None:
    """Point the ``latest`` symlink beside a run folder at it, atomically.

    A run that could build nothing leaves it at an earlier run, with artifacts to publish or to compare.
    """
    latest = folder.parent / "latest"
    if latest.exists() and all(row.artifact is None for row in report.results):
        return
    with replacing(latest) as scratch:
        scratch.symlink_to(folder.name)
