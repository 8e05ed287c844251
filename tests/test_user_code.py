"""Whatever user code does, it costs its branch: a reason, exit code 3, a report, and no process left."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgeopt.commands.optimize import plan as make
from edgeopt.plugin import Stage
from edgeopt.recipe.planner import Branch, Built, Plan
from edgeopt.run.build import build
from edgeopt.run.store import Store
from edgeopt.testing import toys

Write = Callable[..., Path]
Build = Callable[..., list[Built]]
LONGEST_REASON = 6000


@pytest.fixture
def built_of(write_recipe: Write, tmp_path: Path) -> Build:
    """Build one branch of each stage, in order, in one worker process."""

    def run(*stages: Stage, limits: str = "{}") -> list[Built]:
        plan: Plan = make(write_recipe(limits=limits))
        branches = tuple(
            Branch(f"b{number}", "tflite", (stage,), plan.recipe.devices)
            for number, stage in enumerate(stages)
        )
        return build(dataclasses.replace(plan, branches=branches), Store(tmp_path / "store"), lambda _: None)

    return run


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process that a test's user code starts is alive after it."""
    yield
    assert not left(), "a process outlived its run"


def left() -> list[psutil.Process]:
    """The processes that toys started and that still run."""
    deadline = time.monotonic() + 2
    while (found := [each for each in psutil.process_iter() if _is_of_toy(each)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return found


def _is_of_toy(process: psutil.Process) -> bool:
    try:
        return process.cmdline() == ["sleep", "971"]
    except psutil.Error:
        return False


FAILURES = {
    "exit": "it exited its process with exit code 0",
    "exit with text": "it exited its process: bye",
    "os exit": "its process died with exit code 0",
    "os exit 3": "its process died with exit code 3",
    "crash": "its process died with SIGSEGV",
    "generator exit": "GeneratorExit",
    "interrupt": "KeyboardInterrupt",
    "unpicklable": "_Unpicklable: 1 and 2",
    "mute": "_Mute",
    "long": "ValueError: zzz",
    "control": "ValueError: ??red",
    "recursion": "RecursionError",
    "close pipes": "",
    "daemon, then os exit": "its process died with exit code 0",
    "children, then os exit": "its process died with exit code 0",
}


def test_a_stage_that_misbehaves_costs_its_branch_alone(built_of: Build) -> None:
    *bad, good = built_of(*(toys.Misbehave(how=how) for how in FAILURES), toys.Toy())
    assert good.complete
    for reason, built in zip(FAILURES.values(), bad, strict=True):
        assert built.failure and reason in built.failure
        assert len(built.failure) < LONGEST_REASON
        assert built.failure.encode() and "\x1b" not in built.failure and "\x00" not in built.failure


HARMLESS = ("fork", "child", "daemon", "forked daemon", "close streams", "threads")


def test_what_a_stage_started_ends_with_it(built_of: Build) -> None:
    begun = time.monotonic()
    builds = built_of(*(toys.Misbehave(how=how) for how in HARMLESS), toys.Toy())
    assert [built.failure for built in builds] == [""] * len(builds)
    assert all(built.complete for built in builds)
    assert time.monotonic() - begun < 60
    assert not left()


@pytest.mark.parametrize("how", ["wait for child", "daemon, then hang"])
def test_what_a_stage_started_ends_at_the_limit(built_of: Build, how: str) -> None:
    bad, good = built_of(toys.Misbehave(how=how), toys.Toy(), limits="{stage_minutes: 0.05}")
    assert "stopped after 0.05 minutes" in bad.failure
    assert good.complete


def test_a_result_that_is_no_model_costs_its_branch(built_of: Build) -> None:
    reasons = {
        "nothing": "it returned NoneType, not a Model",
        "unpicklable": "it returned lock, not a Model",
        "a removed folder": "which is not a file below context.folder",
    }
    *bad, good = built_of(*(toys.Return(what=what) for what in reasons), toys.Toy())
    assert good.complete
    for reason, built in zip(reasons.values(), bad, strict=True):
        assert reason in built.failure


def test_notes_and_progress_are_bounded_and_printable(built_of: Build) -> None:
    (built,) = built_of(toys.Return(what="unprintable notes"))
    (note,) = built.steps[-1].notes
    assert note.startswith("?nnn") and len(note) < LONGEST_REASON


def test_time_limits_do_not_depend_on_the_wall_clock(
    built_of: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400 * (time.monotonic() % 2 > 1))
    (slow,) = built_of(toys.Misbehave(how="pause"), limits="{stage_minutes: 0.5}")
    assert slow.complete


def test_an_interrupt_ends_what_a_stage_started(built_of: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.run.executors.local import LocalExecutor

    wait, begun = LocalExecutor.wait, time.monotonic()

    def interrupted(self: LocalExecutor, seconds: float) -> object:
        if time.monotonic() - begun > 4:
            raise KeyboardInterrupt
        return wait(self, seconds)

    monkeypatch.setattr(LocalExecutor, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built_of(toys.Misbehave(how="daemon, then hang"))
    assert not left()
