"""Carries out the chains of a plan in worker processes, through the store.

The workers of two frameworks run side by side; stages of one framework run one after the other in
one warm process. What a stage does to its process (abort, hang, eat all memory) costs the branches
that need its result and nothing else.
"""

import concurrent.futures
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool

from edgeopt.config import registry
from edgeopt.config.references import Code
from edgeopt.config.units import show_bytes
from edgeopt.errors import EdgeoptError, StageError, StoreError
from edgeopt.model import Model, content_digest
from edgeopt.plugin import Dataset, Feed, Stage, Trial, Worker, digest_of
from edgeopt.recipe.document import Recipe
from edgeopt.recipe.planner import Built, Plan, Step
from edgeopt.results import Breakdown, Event
from edgeopt.run.executors.worker import BREAKDOWN, Finished, Supplies, carry_out, prepare
from edgeopt.run.store import Entry, Store

LOG_LINES = 12
POLL_SECONDS = 0.2
MEMORY_SHARE = 0.8
PATIENCE_SECONDS = 5.0
"""What is over sooner needs no telling on the way."""


@dataclass
class _Job:
    """One stage under way, and the branches that wait for its result."""

    key: str
    stage: Stage
    folder: Path
    stem: Path
    waiting: list[Built]
    cleanup: ExitStack
    minutes: float
    checkpoints: Path | None
    killed_at_bytes: int = 0
    said: int = 0
    said_at: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the stage itself has been running; waiting for its worker does not count."""
        try:
            return time.time() - self.stem.with_suffix(".pid").stat().st_mtime
        except OSError:
            return 0.0


def build(plan: Plan, store: Store, watch: Callable[[Event], None]) -> list[Built]:
    """Build every branch of a plan. A branch that fails carries its reason; nothing is raised for it.

    Raises:
        StoreError: the store itself cannot be written.
    """
    with ExitStack() as cleanup:
        return _Builder(plan, store, watch, cleanup).run()


def look_up(plan: Plan, store: Store) -> list[Built]:
    """What the store holds of every branch already; builds nothing."""
    with ExitStack() as cleanup:
        builder = _Builder(plan, store, lambda _: None, cleanup)
        for built in builder.all:
            builder.advance(built)
        return builder.all


class _Builder:
    def __init__(self, plan: Plan, store: Store, watch: Callable[[Event], None], cleanup: ExitStack) -> None:
        self.plan = plan
        self.store = store
        self.watch = watch
        self.cleanup = cleanup
        self.all = [Built(branch) for branch in plan.branches]
        self.source_digest = digest_of(
            [content_digest(plan.source.path), plan.source.model_dump(mode="json", exclude={"path", "code"})]
        )
        recipe = plan.recipe
        self.feeds: dict[str, Feed] = {}
        self.digests: dict[str, str] = {}
        for part, dataset in _data(recipe).items():
            self.feeds[part] = Feed(dataset, recipe.model.preprocess)
            self.digests[part] = digest_of([dataset.digest(), recipe.model.preprocess.model_dump()])
        self.memory_limit = recipe.limits.stage_memory or int(psutil.virtual_memory().total * MEMORY_SHARE)
        self.pools: dict[Worker, ProcessPool] = {}
        self.running: dict[concurrent.futures.Future[Any], _Job] = {}
        self.failed: dict[str, str] = {}
        self.made: dict[str, tuple[str, float]] = {}
        """By key: the branch for which it was made in this run, and in how many seconds."""
        self.logs = Path(tempfile.mkdtemp(prefix="edgeopt-"))
        cleanup.callback(shutil.rmtree, self.logs, ignore_errors=True)

    def run(self) -> list[Built]:
        for built in self.all:
            self._move_on(built)
        while self.running:
            done, _ = concurrent.futures.wait(
                self.running, timeout=POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                self._finish(future, self.running.pop(future))
            self._watch_memory()
            for job in self.running.values():
                self._pass_on(job)
        return self.all

    def advance(self, built: Built) -> None:
        """Take every next step that the store holds already."""
        while not built.complete:
            stage, key = built.next_stage, self._key(built)
            entry = self.store.get(key)
            if entry is None:
                return
            before = built.steps[-1].model if built.steps else self.plan.source
            built.steps.append(_step(stage, entry, _code(stage) or before.code, cached=key not in self.made))
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
        key = self._key(built)
        if key in self.failed:
            built.failure = self.failed[key]
            return
        for job in self.running.values():
            if job.key == key:
                job.waiting.append(built)
                return
        self._start(built, key)

    def _start(self, built: Built, key: str) -> None:
        stage = built.next_stage
        cleanup = self.cleanup.enter_context(ExitStack())
        folder = cleanup.enter_context(self.store.scratch())
        limits = self.plan.recipe.limits
        minutes = limits.training_minutes if stage.needs_training else limits.stage_minutes
        minutes += stage.own_minutes
        checkpoints = self.store.checkpoints(key) if stage.needs_training or stage.own_minutes else None
        job = _Job(key, stage, folder, self.logs / key[:16], [built], cleanup, minutes, checkpoints)
        model = built.steps[-1].model if built.steps else self.plan.source
        untouched = built.untouched
        supplies = Supplies(
            **{part: self.feeds[part] for part in _uses(stage) if part in self.feeds},
            source=(untouched.model if untouched else self.plan.source) if stage.needs_source else None,
            checkpoints=checkpoints,
        )
        future = self._pool(stage.worker).schedule(
            carry_out, args=(stage, model, supplies, folder, job.stem), timeout=minutes * 60
        )
        self.running[future] = job
        self._tell(built, stage, "started")

    def _pool(self, worker: Worker) -> ProcessPool:
        if worker not in self.pools:
            _silence_tracker()
            pool = ProcessPool(
                max_workers=1,
                # Never fork: a framework's threads and locks do not survive it.
                context=multiprocessing.get_context("spawn"),
                initializer=prepare,
                initargs=(worker, os.getpid()),
            )
            self.cleanup.push(lambda kind, *_: _leave(pool, at_once=kind is not None))
            self.pools[worker] = pool
        return self.pools[worker]

    def _finish(self, future: concurrent.futures.Future[Any], job: _Job) -> None:
        seconds = job.seconds
        with job.cleanup:
            try:
                self._keep(job, future.result(), seconds)
                if job.checkpoints is not None:
                    shutil.rmtree(job.checkpoints, ignore_errors=True)
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001 - the one place where a stage's failure becomes a result
                self.failed[job.key] = self._reason(job, error)
        for built in job.waiting:
            if job.key in self.failed:
                self._tell(built, job.stage, "failed", seconds, self.failed[job.key])
            self._move_on(built)

    def _keep(self, job: _Job, finished: Finished, seconds: float) -> None:
        model = finished.model
        _demand_truth(job, model)
        meta = {
            "stage": registry.plugin_name(job.stage),
            "seconds": round(seconds, 3),
            "digest": content_digest(model.path),
            "model": model.model_dump(mode="json", exclude={"code"})
            | {"path": model.path.relative_to(job.folder).as_posix()},
            "arithmetic": finished.arithmetic,
            "notes": list(finished.notes),
            "trials": [trial.model_dump(mode="json") for trial in finished.trials],
        }
        self.made[job.key] = job.waiting[0].branch.name, seconds
        self.store.put(job.key, job.folder, meta)

    def _reason(self, job: _Job, error: Exception) -> str:
        name = registry.plugin_name(job.stage)
        if isinstance(error, EdgeoptError):
            return f"{name}: {error}"
        if isinstance(error, concurrent.futures.TimeoutError):
            limit = "training_minutes" if job.stage.needs_training else "stage_minutes"
            what = f"stopped after {job.minutes:g} minutes (raise limits.{limit})"
        elif job.killed_at_bytes:
            what = (
                f"stopped at {show_bytes(job.killed_at_bytes)} of memory, over the limit of "
                f"{show_bytes(self.memory_limit)} (limits.stage_memory)"
            )
        elif isinstance(error, ProcessExpired):
            code = error.exitcode
            what = f"its process died with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        else:
            what = f"{type(error).__name__}: {error}"
        tail = _tail(job.stem.with_suffix(".log"))
        return f"{name}: {what}" + (f"\n{tail}" if tail else "")

    def _pass_on(self, job: _Job) -> None:
        """Show the last line that a stage said, no more often than can be read."""
        if job.seconds < PATIENCE_SECONDS or time.monotonic() - job.said_at < PATIENCE_SECONDS:
            return
        try:
            lines = job.stem.with_suffix(".progress").read_text("utf-8").splitlines()
        except OSError:
            return
        if len(lines) > job.said:
            job.said, job.said_at = len(lines), time.monotonic()
            self._tell(job.waiting[0], job.stage, "note", job.seconds, lines[-1])

    def _watch_memory(self) -> None:
        for job in self.running.values():
            if job.killed_at_bytes:
                continue
            try:
                process = psutil.Process(int(job.stem.with_suffix(".pid").read_text()))
                used = process.memory_info().rss + sum(
                    c.memory_info().rss for c in process.children(recursive=True)
                )
                if used > self.memory_limit:
                    job.killed_at_bytes = used
                    process.kill()
            except (OSError, ValueError, psutil.Error):
                continue  # not started yet, or just gone

    def _key(self, built: Built) -> str:
        stage = built.next_stage
        return digest_of(
            {
                "input": built.steps[-1].digest if built.steps else self.source_digest,
                "stage": registry.plugin_name(stage),
                "revision": stage.revision,
                "options": stage.options(),
                "code": registry.code_digest(stage),
                "parts": stage.key_parts(),
                "calibration": self.digests.get("calibration", "") if stage.needs_calibration else "",
                "versions": stage.versions(),
                **self._further_parts(built, stage),
            }
        )

    def _further_parts(self, built: Built, stage: Stage) -> dict[str, str]:
        """What else the result of a stage depends on; nothing for most stages."""
        parts = {part: self.digests[part] for part in _uses(stage) if part in self.digests}
        if stage.needs_calibration or stage.needs_training:
            parts.pop("calibration", None)  # part of every key, or only looked at for a remark
        if stage.needs_source:
            untouched = built.untouched
            parts["source"] = untouched.digest if untouched else self.source_digest
        return parts

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


def _data(recipe: Recipe) -> dict[str, Dataset]:
    """The datasets that building may look at: never the one that judges."""
    parts = {
        "calibration": recipe.calibration,
        "training": recipe.train,
        "validation": recipe.validation,
    }
    return {part: dataset for part, dataset in parts.items() if dataset is not None}


def _uses(stage: Stage) -> list[str]:
    """The datasets that a stage is given."""
    searches = stage.own_minutes > 0
    used = ["calibration"] if stage.needs_calibration or stage.needs_training or searches else []
    used += ["training"] if stage.needs_training else []
    return [*used, "validation"] if stage.needs_training or searches else used


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


def _silence_tracker() -> None:
    """Start multiprocessing's resource tracker so that it does not speak.

    Libraries of the frameworks (joblib's loky) tell it of semaphores that they later remove by
    themselves, and it would warn on the user's screen about each at the end.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _leave(pool: ProcessPool, *, at_once: bool) -> None:
    """End a pool: let its worker go in peace, or stop it where it is."""
    if at_once:
        pool.stop()
    else:
        pool.close()
    pool.join()


def _code(stage: Stage) -> Path | None:
    """Where the code lies that a stage names in its options."""
    return next((value.folder for _, value in stage if isinstance(value, Code)), None)


def _step(stage: Stage, entry: Entry, code: Path | None, *, cached: bool) -> Step:
    record = entry.meta["model"]
    code = code if record["format"] == "torch" else None  # of this run: the entry may be another's
    model = Model.model_validate(record | {"path": entry.folder / record["path"], "code": code})
    # The specs are part of what the next stage is given, so they are part of its key as well.
    digest = digest_of([entry.meta["digest"], record["format"], record["inputs"], record["outputs"]])
    trials = tuple(Trial.model_validate(trial) for trial in entry.meta.get("trials", ()))
    notes, arithmetic = tuple(entry.meta.get("notes", ())), entry.meta.get("arithmetic", {})
    told = entry.folder / BREAKDOWN
    breakdown = Breakdown.model_validate_json(told.read_bytes()) if told.is_file() else None
    return Step(stage, model, digest, cached, notes, trials, arithmetic, breakdown)


def _tail(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(["  | " + line[:300] for line in lines if line.strip()][-LOG_LINES:])
