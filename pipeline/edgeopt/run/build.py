"""Builds the chains of a plan, stage by stage, through the store.

Branches that begin alike share their steps. What a stage does to the process it runs in (abort, hang, eat all
memory) costs the branches that need its result and nothing else.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.config import registry
from edgeopt.config.references import Code
from edgeopt.errors import StageError
from edgeopt.formats.known import formats, model_digest
from edgeopt.model import Model
from edgeopt.plugin import Stage, Trial, digest_of
from edgeopt.recipe.planner import Built, Plan, Step
from edgeopt.results import Breakdown, Event
from edgeopt.run.executors.executor import Ended, Executor, Progress, Task
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.executors.worker import BREAKDOWN, StageInputs, StageResult, run_stage
from edgeopt.run.keys import Keys, data_used
from edgeopt.run.store import Entry, Store

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0
"""What is over sooner needs no telling on the way."""


@dataclass
class _Job:
    """One stage under way, and the branches that wait for its result."""

    key: str
    stage: Stage
    folder: Path
    waiting: list[Built]
    cleanup: ExitStack
    checkpoints: Path | None
    shown_at: float = 0.0


def build(plan: Plan, store: Store, watch: Callable[[Event], None]) -> list[Built]:
    """Build every branch of a plan. A branch that fails carries its reason; nothing is raised for it.

    Raises:
        StoreError: the store itself cannot be written.
    """
    with ExitStack() as cleanup:
        executor = cleanup.enter_context(LocalExecutor(plan.recipe.limits.stage_memory))
        return _Builder(plan, store, watch, cleanup, executor).run()


def look_up(plan: Plan, store: Store) -> list[Built]:
    """What the store holds of every branch already; builds nothing."""
    keys = Keys(plan)
    every = [Built(branch) for branch in plan.branches]
    for built in every:
        while not built.complete and (entry := store.get(keys.of_next(built))) is not None:
            built.steps.append(_step(plan, built, entry, cached=True))
    return every


class _Builder:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        watch: Callable[[Event], None],
        cleanup: ExitStack,
        executor: Executor,
    ) -> None:
        self.plan = plan
        self.store = store
        self.watch = watch
        self.cleanup = cleanup
        self.all = [Built(branch) for branch in plan.branches]
        self.keys = Keys(plan)
        self.executor = executor
        self.running: dict[str, _Job] = {}
        self.failed: dict[str, str] = {}
        self.made: dict[str, tuple[str, float]] = {}
        """By key: the branch for which it was made in this run, and in how many seconds."""

    def run(self) -> list[Built]:
        for built in self.all:
            self._move_on(built)
        while self.running:
            for ended in self.executor.wait(POLL_SECONDS):
                self._finish(self.running.pop(ended.key), ended)
            for progress in self.executor.progress():
                self._forward_progress(self.running[progress.key], progress)
        return self.all

    def advance(self, built: Built) -> None:
        """Take every next step that the store holds already."""
        while not built.complete:
            stage, key = built.next_stage, self.keys.of_next(built)
            entry = self.store.get(key)
            if entry is None:
                return
            built.steps.append(_step(self.plan, built, entry, cached=key not in self.made))
            branch, seconds = self.made.get(key, ("", 0.0))
            if not branch:
                self._tell(built, stage, "cached")
            elif branch == built.branch.name:
                self._tell(built, stage, "done", seconds)
            else:
                self._tell(built, stage, "shared", message=f"made for {branch}")

    def _move_on(self, built: Built) -> None:
        self.advance(built)
        if built.complete:
            return
        key = self.keys.of_next(built)
        if key in self.failed:
            built.failure = self.failed[key]
            return
        if key in self.running:
            self.running[key].waiting.append(built)
            return
        self._start(built, key)

    def _start(self, built: Built, key: str) -> None:
        stage = built.next_stage
        cleanup = self.cleanup.enter_context(ExitStack())
        folder = cleanup.enter_context(self.store.scratch())
        limits = self.plan.recipe.limits
        limit = "training_minutes" if stage.needs_training else "stage_minutes"
        checkpoints = self.store.checkpoints(key) if stage.needs_training or stage.extra_minutes else None
        model = built.steps[-1].model if built.steps else self.plan.source
        feeds, source_step = self.keys.feeds, built.source_step
        inputs = StageInputs(
            **{part: feeds[part] for part in data_used(stage) if part in feeds},
            source=(source_step.model if source_step else self.plan.source) if stage.needs_source else None,
            checkpoints=checkpoints,
        )
        task = Task(
            key=key,
            function=run_stage,
            args=(stage, model, inputs, folder),
            worker=stage.worker,
            minutes=getattr(limits, limit) + stage.extra_minutes,
            too_long=f"raise limits.{limit}",
        )
        self.running[key] = _Job(key, stage, folder, [built], cleanup, checkpoints)
        self.executor.submit(task)
        self._tell(built, stage, "started")

    def _finish(self, job: _Job, ended: Ended) -> None:
        name = registry.plugin_name(job.stage)
        with job.cleanup:
            failure = ended.failure
            if not failure:
                try:
                    self._keep(job, ended.value, ended.seconds)
                except StageError as error:
                    failure = str(error)
            if failure:
                self.failed[job.key] = f"{name}: {failure}"
            elif job.checkpoints is not None:
                shutil.rmtree(job.checkpoints, ignore_errors=True)
        for built in job.waiting:
            if job.key in self.failed:
                self._tell(built, job.stage, "failed", ended.seconds, self.failed[job.key])
            self._move_on(built)

    def _keep(self, job: _Job, finished: StageResult, seconds: float) -> None:
        model = finished.model
        _demand_truth(job, model)
        meta = {
            "stage": registry.plugin_name(job.stage),
            "seconds": round(seconds, 3),
            "digest": model_digest(model),
            "model": model.model_dump(mode="json", exclude={"code"})
            | {"path": model.path.relative_to(job.folder).as_posix()},
            "arithmetic": finished.arithmetic,
            "notes": list(finished.notes),
            "trials": [trial.model_dump(mode="json") for trial in finished.trials],
        }
        self.made[job.key] = job.waiting[0].branch.name, seconds
        self.store.put(job.key, job.folder, meta)

    def _forward_progress(self, job: _Job, progress: Progress) -> None:
        """Show the last line that a stage said, no more often than can be read."""
        now = time.monotonic()
        if progress.seconds >= PATIENCE_SECONDS and now - job.shown_at >= PATIENCE_SECONDS:
            job.shown_at = now
            self._tell(job.waiting[0], job.stage, "note", progress.seconds, progress.line)

    def _tell(self, built: Built, stage: Stage, status: Any, seconds: float = 0.0, message: str = "") -> None:
        self.watch(
            Event(
                branch=built.branch.name,
                step=registry.plugin_name(stage),
                status=status,
                seconds=seconds,
                message=message,
            )
        )


def _demand_truth(job: _Job, model: Model) -> None:
    """Hold what a stage returned against what its class promises and what lies in its folder.

    Raises:
        StageError: the stage is wrong, and would break whatever comes after it.
    """
    folder = job.folder.resolve()
    if model.format != job.stage.produces:
        raise StageError(f"it promises {job.stage.produces} and returned {model.format}")
    if not model.path.exists() or folder not in model.path.resolve().parents:
        raise StageError(f"it returned {model.path}, which it did not write below context.folder")
    if not model.inputs:
        raise StageError("it returned a model that does not tell its inputs")


def _step(plan: Plan, built: Built, entry: Entry, *, cached: bool) -> Step:
    """The next step of a branch, as it lies in the store."""
    stage, record = built.next_stage, entry.meta["model"]
    kind = formats().get(record["format"])
    code = None
    if kind is not None and kind.needs_code:
        # Where it lies is known to this run only: the entry may be from another one.
        before = built.steps[-1].model if built.steps else plan.source
        code = next((value.folder for _, value in stage if isinstance(value, Code)), None) or before.code
    model = Model.model_validate(record | {"path": entry.folder / record["path"], "code": code})
    # The specs are part of what the next stage is given, so they are part of its key as well.
    digest = digest_of([entry.meta["digest"], record["format"], record["inputs"], record["outputs"]])
    trials = tuple(Trial.model_validate(trial) for trial in entry.meta.get("trials", ()))
    notes, arithmetic = tuple(entry.meta.get("notes", ())), entry.meta.get("arithmetic", {})
    told = entry.folder / BREAKDOWN
    breakdown = Breakdown.model_validate_json(told.read_bytes()) if told.is_file() else None
    return Step(stage, model, digest, cached, notes, trials, arithmetic, breakdown)
