import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edgeopt.commands.plan import plan as make
from edgeopt.devices.descendants import descendants, end, family
from edgeopt.plugin import Stage
from edgeopt.recipe.plan import Branch, Built, Plan
from edgeopt.results import Event
from edgeopt.run.build import build, look_up
from edgeopt.run.executors import gpus
from edgeopt.run.executors.executor import Task
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.store import Store
from edgeopt.testing import toys

Write = Callable[..., Path]


@pytest.fixture
def plan_of(write_recipe: Write) -> Callable[..., Plan]:
    """A plan with the given chains of toys as branches."""

    def plan(*chains: tuple[Stage, ...], limits: str = "{}", **parts: str) -> Plan:
        made = make(write_recipe(limits=limits, **parts))
        branches = [Branch(f"b{i}", "tflite", chain, made.recipe.devices) for i, chain in enumerate(chains)]
        return dataclasses.replace(made, branches=tuple(branches))

    return plan


def run(plan: Plan, root: Path, events: list[Event] | None = None) -> list[Built]:
    return build(plan, Store(root), (events if events is not None else []).append)


def contents(built: Built) -> str:
    return built.steps[-1].model.path.read_bytes()[64:].decode()


def test_chains_are_built_and_common_steps_only_once(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    first = toys.Toy(mark="a", calls=calls)
    plan = plan_of(
        (first, toys.Finish(mark="b", calls=calls)), (first, toys.Finish(mark="c", calls=calls)), (first,)
    )
    events: list[Event] = []
    builds = run(plan, tmp_path / "store", events)
    assert [contents(built) for built in builds] == ["b", "c", "a"]
    assert sorted(calls.read_text()) == ["a", "b", "c"]
    # The duration once; for the others, the branch that built it.
    told = [(each.status, each.message) for each in events if each.step.endswith("Toy")]
    of = builds[0].branch.name
    assert told == [("started", ""), ("done", ""), *[("shared", f"built for {of}")] * 2]


def test_of_the_stages_that_are_ready_the_cheapest_starts_first(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    first, cheap = toys.Toy(mark="a", calls=calls), toys.Finish(mark="c", calls=calls)
    dear = [toys.Costly(mark=mark, calls=calls) for mark in "de"]
    plan = plan_of(*((first, last) for last in (*dear, cheap)))
    assert [contents(built) for built in run(plan, tmp_path / "store")] == ["d", "e", "c"]
    assert calls.read_text() == "acde"


def test_a_second_run_takes_everything_from_the_store(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    plan = plan_of((toys.Toy(mark="a", calls=calls), toys.Finish(mark="b", calls=calls)))
    run(plan, tmp_path / "store")
    events: list[Event] = []
    (built,) = run(plan, tmp_path / "store", events)
    assert [event.status for event in events] == ["cached", "cached"]
    assert all(step.cached for step in built.steps)
    assert calls.read_text() == "ab"
    assert [len(b.steps) for b in look_up(plan, Store(tmp_path / "store"))] == [2]


def test_options_and_revision_are_part_of_the_key(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    run(plan_of((toys.Toy(mark="a", calls=calls),)), tmp_path / "store")
    run(plan_of((toys.Toy(mark="b", calls=calls),)), tmp_path / "store")
    monkeypatch.setattr(toys.Toy, "revision", 2)
    run(plan_of((toys.Toy(mark="b", calls=calls),)), tmp_path / "store")
    assert calls.read_text() == "abb"


def test_a_crash_costs_its_branch_only_and_its_last_words_are_kept(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of((toys.Abort(),), (toys.Refuse(),), (toys.Bug(),), (toys.Toy(mark="after"),))
    crashed, refused, bug, fine = run(plan, tmp_path / "store")
    assert "edgeopt.testing.toys:Abort: its process died with SIGABRT" in crashed.failure
    assert "Check failed: rank == 4" in crashed.failure
    assert refused.failure == "edgeopt.testing.toys:Refuse: layer 'odd' cannot be converted\n  replace it"
    assert bug.failure.startswith("edgeopt.testing.toys:Bug: KeyError: 'surprise'")
    assert fine.complete


def test_a_stage_is_held_to_what_it_promises(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    (liar,) = run(plan_of((toys.Liar(),)), tmp_path / "store")
    assert "which is not a file below context.folder" in liar.failure


def test_a_failure_is_never_cached(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    run(plan_of((toys.Refuse(),)), tmp_path / "store")
    events: list[Event] = []
    run(plan_of((toys.Refuse(),)), tmp_path / "store", events)
    assert [event.status for event in events] == ["started", "failed"]


def test_a_hang_is_stopped_at_the_time_limit(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    hung, fine = run(
        plan_of((toys.Hang(),), (toys.Toy(),), limits="{stage_minutes: 0.05}"), tmp_path / "store"
    )
    assert "stopped after 0.05 minutes (raise limits.stage_minutes)" in hung.failure
    assert fine.complete


def test_a_stage_is_stopped_at_the_memory_limit(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    hungry, fine = run(
        plan_of((toys.Hungry(),), (toys.Toy(),), limits="{stage_memory: 300 MiB}"), tmp_path / "store"
    )
    assert "over the limit of 300.0 MiB (limits.stage_memory)" in hungry.failure
    assert fine.complete


def test_a_damaged_entry_is_built_again(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of((toys.Toy(mark="a"), toys.Finish(mark="b")))
    (before,) = run(plan, tmp_path / "store")
    digests = [step.digest for step in before.steps]
    before.steps[0].model.path.write_bytes(b"rotten")
    store = Store(tmp_path / "store")
    (after,) = build(plan, store, lambda _: None)
    assert len(store.damaged) == 1
    assert [step.digest for step in after.steps] == digests
    assert [step.cached for step in after.steps] == [False, True]


TRAINING = (
    "{calibration: {uses: digits, with: {part: calibration, limit: 50}}, "
    "train: {uses: digits, with: {part: calibration, limit: 70}}}"
)


def test_a_training_stage_is_given_its_data_and_the_untouched_model(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    chain = (toys.Toy(mark="s"), toys.Thin(mark="t"), toys.Train(mark="u"))
    (built,) = run(plan_of(chain, data=TRAINING, metric=""), tmp_path / "store")
    assert built.failure == ""
    assert built.steps[-1].notes == ("source s", "begun after 0 epochs, 70 samples")
    assert [trial.name for trial in built.steps[-1].trials] == ["one"]
    assert not list((tmp_path / "store" / "checkpoints").iterdir())
    (again,) = run(plan_of(chain, data=TRAINING, metric=""), tmp_path / "store")
    assert again.steps[-1].cached
    assert again.steps[-1].notes == built.steps[-1].notes
    assert again.steps[-1].trials == built.steps[-1].trials


def test_training_that_was_killed_goes_on_where_it_was(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of((toys.Toy(mark="s"), toys.Train(die=True)), data=TRAINING, metric="")
    (killed,) = run(plan, tmp_path / "store")
    assert "its process died with SIGKILL" in killed.failure
    (built,) = run(plan, tmp_path / "store")
    assert built.steps[-1].notes[1] == "begun after 2 epochs, 70 samples"


def test_the_untouched_model_and_the_training_data_are_part_of_the_key(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"

    def train(data: str) -> None:
        (built,) = run(
            plan_of((toys.Toy(), toys.Train(calls=calls)), data=data, metric=""), tmp_path / "store"
        )
        assert built.complete

    train(TRAINING)
    train(TRAINING)
    assert calls.read_text() == "x"
    train(TRAINING.replace("70", "71"))
    assert calls.read_text() == "xx"
    train(TRAINING.replace("}}}", "}}, validation: {uses: digits, with: {part: evaluation, limit: 9}}}"))
    assert calls.read_text() == "xxx"


def test_long_work_tells_how_far_it_is(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    events: list[Event] = []
    run(plan_of((toys.Slow(),)), tmp_path / "store", events)
    said = [event.message for event in events if event.status == "note"]
    assert 1 <= len(said) <= 2
    assert said[0].startswith("second ")


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, multiprocessing, os, time\n"
        "from pebble import ProcessPool\n"
        "from edgeopt.run.executors.worker import prepare\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPool(1, context=multiprocessing.get_context('spawn'), initializer=prepare,\n"
        "                       initargs=('plain', os.getpid()))\n"
        "    print(pool.schedule(os.getpid).result(), flush=True)\n"
        "    pool.schedule(time.sleep, args=(600,))\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def test_a_worker_that_is_ended_while_it_leaves_says_nothing(tmp_path: Path) -> None:
    script = (
        "import atexit, ctypes, os, signal\n"
        # Registered first, so called last: after all Python code, and before Python removes its handlers.
        "atexit.register(getattr(ctypes.CDLL(None), 'raise'), signal.SIGTERM)\n"
        "import logging\n"
        "from edgeopt.run.executors.worker import prepare\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"  # as the pool does before its setup
        "prepare('plain', os.getppid())\n"
        "handler = logging.StreamHandler()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


def _seen(say: object) -> tuple[str, int]:
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def test_a_process_that_is_killed_before_its_task_begins_is_lost() -> None:
    """It says nothing about the task, as one that is killed later."""
    others = {each.pid for each in psutil.Process().children()}
    with LocalExecutor() as executor:
        executor.submit(Task("task", _seen, (), "plain", 1, ""))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            started = [each for each in psutil.Process().children() if each.pid not in others]
            if started := [each for each in started if "spawn_main" in " ".join(each.cmdline())]:
                break
        started[0].kill()
        while not (results := executor.wait(1)):
            assert time.monotonic() < deadline
    (result,) = results
    assert result.failure.startswith("its process died before it had begun")
    assert result.lost and result.killed


@pytest.mark.parametrize("possible", [True, False])
def test_only_tasks_that_use_a_gpu_see_one(possible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "possible", lambda: possible)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    seen: dict[str, tuple[str, int]] = {}
    with LocalExecutor() as executor:
        for name in ("training", "other"):
            executor.submit(Task(name, _seen, (), "plain", 1, "", gpu=name == "training"))
        while len(seen) < 2:
            seen |= {each.key: each.value for each in executor.wait(1)}
    assert seen["training"][0] == ("3" if possible else "-1")
    assert seen["other"][0] == "-1"
    # One process serves both where there is no GPU.
    assert (seen["training"][1] == seen["other"][1]) is not possible


def test_the_family_of_a_task_is_complete() -> None:
    """As the memory of a task includes that of all processes below it."""
    command = ["sh", "-c", "sh -c 'sleep 60 & wait' & sleep 60 & wait"]
    with subprocess.Popen(command, start_new_session=True) as process:
        me = psutil.Process(process.pid)
        deadline = time.monotonic() + 30
        while len(descendants(me)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(descendants(me)) == 3
        assert set(family(me)) == set(descendants(me))
        end(process.pid)
    assert family(me) == []
