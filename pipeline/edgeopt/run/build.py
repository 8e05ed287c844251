"""Builds the branches of a plan, stage by stage; every step is cached in the store.

Branches with a common prefix share its steps. Stages run in worker processes: one that crashes, hangs or
exhausts memory fails only the branches that depend on its result.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt.config import registry
from edgeopt.config.references import Code
from edgeopt.errors import StageError
from edgeopt.formats.known import formats
from edgeopt.model import Model
from edgeopt.plugin import Stage, Trial, digest_of
from edgeopt.recipe.plan import Built, Plan, Step
from edgeopt.results import Breakdown, Event
from edgeopt.run.executors.choice import executor_for
from edgeopt.run.executors.executor import Elsewhere, Executor, Progress, Task, TaskResult
from edgeopt.run.executors.worker import BREAKDOWN, StageInputs, run_stage, stage_entry
from edgeopt.run.keys import Keys, data_used, judging_of
from edgeopt.run.store import Entry, Store

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 5.0
"""Minimum run time before progress is shown, and minimum interval between two lines."""


@dataclass
class _Job:
    """A running stage, and the branches that wait for its result."""

    key: str
    stage: Stage
    folder: Path
    waiting: list[Built]
    cleanup: ExitStack
    checkpoints: Path | None
    shown_at: float = 0.0


def build(
    plan: Plan,
    store: Store,
    watch: Callable[[Event], None],
    executor: Executor | None = None,
    *,
    progressed: Callable[[Sequence[Built]], None] = lambda builds: None,
) -> list[Built]:
    """Build every branch of a plan; ``failure`` of a failed branch is the reason.

    With an ``executor``, its workers are used and stay open: a search builds many small plans. ``progressed``
    is called with all branches whenever some of them may have got steps.

    Raises:
        StoreError: the store is not writable.
    """
    with ExitStack() as cleanup:
        if executor is None:
            executor = cleanup.enter_context(executor_for(plan.recipe.limits.stage_memory))
        return _Builder(plan, store, watch, cleanup, executor, progressed).run()


def look_up(plan: Plan, store: Store) -> list[Built]:
    """Every branch with its cached steps; builds nothing."""
    keys = Keys(plan)
    builds = [Built(branch) for branch in plan.branches]
    for built in builds:
        while not built.complete and (entry := store.get(keys.of_next(built))) is not None:
            built.steps.append(_step(plan, built, entry, cached=True))
    return builds


class _Builder:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        watch: Callable[[Event], None],
        cleanup: ExitStack,
        executor: Executor,
        progressed: Callable[[Sequence[Built]], None],
    ) -> None:
        self.plan = plan
        self.store = store
        self.watch = watch
        self.cleanup = cleanup
        self.builds = [Built(branch) for branch in plan.branches]
        self.keys = Keys(plan)
        self.executor = executor
        self.progressed = progressed
        self.running: dict[str, _Job] = {}
        self.failed: dict[str, str] = {}
        self.lost: set[str] = set()
        """Of the failed steps, those that may succeed when they run again."""
        self.built_here: dict[str, tuple[str, float]] = {}
        """Steps built in this run, by key: the branch they were built for, and the seconds."""
        self.places: dict[str, list[str]] = {}
        """Steps built in this run by each of several machines."""

    def run(self) -> list[Built]:
        self._continue(self.builds)
        while self.running:
            for result in self.executor.wait(POLL_SECONDS):
                self._finish(self.running.pop(result.key), result)
            for progress in self.executor.progress():
                self._forward_progress(self.running[progress.key], progress)
        self.store.notes += [f"{machine} ran {', '.join(steps)}" for machine, steps in self.places.items()]
        return self.builds

    def advance(self, built: Built) -> None:
        """Append all next steps that are cached."""
        while not built.complete:
            stage, key = built.next_stage, self.keys.of_next(built)
            entry = self.store.get(key)
            if entry is None:
                return
            built.steps.append(_step(self.plan, built, entry, cached=key not in self.built_here))
            branch, seconds = self.built_here.get(key, ("", 0.0))
            if not branch:
                self._emit(built, stage, "cached")
            elif branch == built.branch.name:
                self._emit(built, stage, "done", seconds)
            else:
                self._emit(built, stage, "shared", message=f"built for {branch}")

    def _continue(self, builds: Sequence[Built]) -> None:
        """Add to branches the steps that are there, and start their next stages, the cheapest first."""
        ready: list[tuple[Built, str]] = []
        for built in builds:
            try:
                self.advance(built)
                if not built.complete:
                    ready.append((built, self.keys.of_next(built)))
            except StageError as error:
                built.failure = f"{registry.plugin_name(built.next_stage)}: {error}"
                self._emit(built, built.next_stage, "failed", message=built.failure)
        for built, key in sorted(ready, key=lambda each: each[0].next_stage.cost):
            if key in self.failed:
                built.failure, built.lost = self.failed[key], key in self.lost
            elif key in self.running:
                self.running[key].waiting.append(built)
            else:
                self._start(built, key)
        self.progressed(self.builds)

    def _start(self, built: Built, key: str) -> None:
        stage = built.next_stage
        cleanup = self.cleanup.enter_context(ExitStack())
        folder = cleanup.enter_context(self.store.scratch())
        limits = self.plan.recipe.limits
        limit = "training_minutes" if stage.needs_training else "stage_minutes"
        checkpoints = self.store.checkpoints(key) if stage.needs_training or stage.extra_minutes else None
        model = self.plan.latest(built)
        feeds, source_step = self.keys.feeds, built.source_step
        inputs = StageInputs(
            **{part: feeds[part] for part in data_used(stage) if part in feeds},
            source=(source_step.model if source_step else self.plan.source) if stage.needs_source else None,
            judging=judging_of(self.plan.recipe)._replace(
                outputs=tuple(spec.name for spec in self.plan.source.outputs)
            ),
            checkpoints=checkpoints,
        )
        task = Task(
            key=key,
            function=run_stage,
            args=(stage, model, inputs, folder),
            worker=stage.worker,
            minutes=getattr(limits, limit) + stage.extra_minutes,
            too_long=f"raise limits.{limit}",
            elsewhere=Elsewhere(
                title=f"{registry.plugin_name(stage)} of {built.branch.name}",
                folder=folder,
                entry=partial(stage_entry, stage),
                versions=stage.versions(),
                code=self.plan.recipe.model.factory,
            ),
            gpu=stage.uses_gpu,
        )
        self.running[key] = _Job(key, stage, folder, [built], cleanup, checkpoints)
        self.executor.submit(task)
        self._emit(built, stage, "started")

    def _finish(self, job: _Job, result: TaskResult) -> None:
        name = registry.plugin_name(job.stage)
        with job.cleanup:
            failure, lost = result.failure, result.lost
            if not failure:
                try:
                    self._save(job, result)
                except StageError as error:
                    failure, lost = str(error), result.stored
            if failure:
                self.failed[job.key] = f"{name}: {failure}"
                self.lost.update([job.key] if lost else [])
            elif job.checkpoints is not None:
                shutil.rmtree(job.checkpoints, ignore_errors=True)
        for built in job.waiting if failure else ():
            self._emit(built, job.stage, "failed", result.seconds, self.failed[job.key])
        self._continue(job.waiting)

    def _save(self, job: _Job, result: TaskResult) -> None:
        if not result.stored:
            meta = stage_entry(job.stage, result.value, job.folder, result.seconds)
            self.store.put(job.key, job.folder, meta)
        elif self.store.get(job.key) is None:
            raise StageError(
                "its result was stored, but is not in the store of this machine",
                fix="let all machines use the same store: a folder that they share, or a URL",
            )
        branch = job.waiting[0].branch.name
        self.built_here[job.key] = branch, result.seconds
        if result.where:
            title = f"{registry.plugin_name(job.stage)} of {branch}"
            self.places.setdefault(result.where, []).append(title)

    def _forward_progress(self, job: _Job, progress: Progress) -> None:
        """Show the last progress line of a stage, at a readable rate."""
        now = time.monotonic()
        due = progress.seconds >= PROGRESS_SECONDS and now - job.shown_at >= PROGRESS_SECONDS
        if due or progress.at_once:
            job.shown_at = now
            self._emit(job.waiting[0], job.stage, "note", progress.seconds, progress.line)

    def _emit(self, built: Built, stage: Stage, status: Any, seconds: float = 0.0, message: str = "") -> None:
        self.watch(
            Event(
                branch=built.branch.name,
                step=registry.plugin_name(stage),
                status=status,
                seconds=seconds,
                message=message,
            )
        )


def _step(plan: Plan, built: Built, entry: Entry, *, cached: bool) -> Step:
    """The next step of a branch, from its store entry."""
    stage, record = built.next_stage, entry.meta["model"]
    kind = formats().get(record["format"])
    code = None
    if kind is not None and kind.needs_code:
        # The entry may be from another run: the location of the code is known only from this run's recipe.
        before = plan.latest(built)
        code = next((value.folder for _, value in stage if isinstance(value, Code)), None) or before.code
    model = Model.model_validate(record | {"path": entry.folder / record["path"], "code": code})
    # Input and output specs may affect the next stage: they are part of its key, too.
    digest = digest_of([entry.meta["digest"], record["format"], record["inputs"], record["outputs"]])
    trials = tuple(Trial.model_validate(trial) for trial in entry.meta.get("trials", ()))
    notes, arithmetic = tuple(entry.meta.get("notes", ())), entry.meta.get("arithmetic", {})
    file = entry.folder / BREAKDOWN
    breakdown = Breakdown.model_validate_json(file.read_bytes()) if file.is_file() else None
    return Step(stage, model, digest, cached, notes, trials, arithmetic, breakdown)
