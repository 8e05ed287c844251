"""Stages on a Ray cluster of two nodes on loopback: results, and what happens if something is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.errors import CannotRunError
from edgeopt.recipe.plan import Built
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import find_recipe, load_recipe
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.executors.choice import executing, executor_for
from edgeopt.run.store import Store, open_store
from in_process import Edgeopt
from test_shared_store import Server
from toy_cluster import NAMESPACE, await_end, await_marks, digests, lines, marks, node, token, write_recipe

pytest.importorskip("ray", reason="the extra cluster is not installed")
pytestmark = pytest.mark.slow

OTHER = "127.0.0.4"

Build = Callable[..., tuple[list[Built], list[Event]]]


@pytest.mark.parametrize("recipe", ["digits-torch"])
def test_results_are_those_of_one_machine(recipe: str, built_on: Build) -> None:
    remote, events = built_on(find_recipe(recipe), formats=("onnx",))
    local, _ = built_on(find_recipe(recipe), "local", formats=("onnx",))
    assert digests(remote) == digests(local)
    assert len(digests(remote)["int8.onnx"]) >= 3
    assert "on a" in lines(events) or "on b" in lines(events)


def test_both_nodes_run_stages(built_on: Build, tmp_path: Path) -> None:
    steps = {f"step{number}": {"seconds": 2} for number in range(4)}
    builds, events = built_on(write_recipe(tmp_path, **steps))
    assert len(digests(builds)) == 5  # with float
    assert {"on a", "on b"} <= set(lines(events).splitlines())


def test_the_report_says_what_ran_where(edgeopt: Edgeopt, cluster: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, step={})
    said = edgeopt("optimize", recipe, "--on", f"ray:{cluster}", "--out", tmp_path / "out", "--keep-going")
    assert said.code == 0, said.err
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["run"]["notes"]
    assert any(re.fullmatch(r"[ab] ran steps_of_project:Step of step\.onnx", note) for note in notes), notes
    assert re.search(r"note  step\.onnx +steps_of_project:Step: on [ab]\n", said.err), said.err


def test_bytes_travel_through_a_server(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, step={})
    server = Server()
    monkeypatch.setenv("EDGEOPT_STORE_CACHE", str(tmp_path / "mine"))
    try:
        plan = make_plan(load_recipe(recipe))
        with executing(f"ray:{cluster}", server.url, lambda event: None):
            (built,) = [each for each in build(plan, open_store(server.url), print) if each.steps]
    finally:
        server.stop()
    assert built.failure == ""
    assert plan.latest(built).path.read_bytes().endswith(b"\x12\x04step")
    records = [name for name in server.objects if name.startswith("ac/")]
    # The node sends the entry, and nobody else; this machine fetches it.
    assert [each for each in server.asked if "ac/" in each and "PUT" in each] == [f"PUT {records[0]}"]
    assert server.asked.count(f"GET {records[0]}") >= 2


def test_a_node_without_the_files_gets_them(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project := tmp_path / "project").mkdir()
    (tmp_path / "marks").mkdir()
    mounted = [*NAMESPACE, 'mount -t tmpfs none "$0"', str(project)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    options = {"seconds": 3, "marks": str(tmp_path / "marks")}
    # A module of another name than in other tests: this process has theirs already.
    steps = {f"step{number}": options for number in range(6)}
    recipe = write_recipe(project, module="steps_elsewhere", **steps)
    server, events = Server(), list[Event]()
    monkeypatch.setenv("EDGEOPT_STORE_CACHE", str(tmp_path / "mine"))
    try:
        plan = make_plan(load_recipe(recipe))
        joining = node(cluster, "--address", OTHER, "--cpus", "2", name="bare", without=project)
        with joining, executing(f"ray:{cluster}", server.url, events.append):
            builds = build(plan, open_store(server.url), events.append)
    finally:
        server.stop()
    assert len(digests(builds)) == 7
    assert "on bare" in lines(events).splitlines()
    records = [name for name in server.objects if name.startswith("ac/")]
    assert len(records) == 6 + 2  # the steps, the model and the code


def test_a_cancelled_stage_ends_with_all_that_it_started(cluster: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, step={"seconds": 120})
    store = Store(tmp_path / "store")
    with executing(f"ray:{cluster}", str(store.root), print), executor_for(None) as executor:

        def cancel() -> None:
            await_marks(tmp_path, "step", 1)
            for key in list(executor._tasks):
                executor.cancel(key)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        builds = build(make_plan(load_recipe(recipe)), store, print)
        canceller.join()
        await_end(marks(tmp_path, "step")[0][0], seconds=60)
        # Its worker goes on with other stages, on each of the slots.
        others = write_recipe(tmp_path, **{f"other{number}": {"seconds": 1} for number in range(4)})
        assert len(digests(build(make_plan(load_recipe(others)), store, print))) == 5
    assert [built.failure.splitlines()[0] for built in builds if built.failure] == [
        "steps_of_project:Step: it was cancelled"
    ]


def test_what_is_killed_runs_again_twice(built_on: Build, tmp_path: Path) -> None:
    stage, worker = 0, 1  # the process that runs a step, and its parent
    times = {"stage": (stage, 1), "worker": (worker, 2), "often": (stage, 3)}
    recipe = write_recipe(tmp_path, **{name: {"seconds": 5} for name in times})

    def kill(name: str, victim: int, count: int) -> None:
        for number in range(1, count + 1):
            os.kill(await_marks(tmp_path, name, number)[victim], signal.SIGKILL)

    killers = [threading.Thread(target=kill, args=(name, *how)) for name, how in times.items()]
    for killer in killers:
        killer.start()
    builds, events = built_on(recipe)
    for killer in killers:
        killer.join()
    failures = {built.branch.variant: built.failure for built in builds}
    assert [built.branch.variant for built in builds if built.lost] == ["often"]
    assert "the process of the stage was lost" in failures.pop("often")
    assert set(failures.values()) == {""}
    assert {name: len(marks(tmp_path, name)) for name in times} == {"stage": 2, "worker": 3, "often": 3}
    assert "steps_of_project:Step of worker.onnx: a worker was lost" in lines(events)
    await_end(*(process for process, *_ in marks(tmp_path, "worker")))


def test_a_lost_node_costs_its_stages_time_only(built_on: Build, cluster: str, tmp_path: Path) -> None:
    steps = {f"step{number}": {"seconds": 4} for number in range(6)}
    recipe = write_recipe(tmp_path, **steps)
    with node(cluster, "--address", OTHER, "--cpus", "2", name="c") as lost:

        def kill() -> None:
            while not any(lost.runs(process) for name in steps for process, *_ in marks(tmp_path, name)):
                time.sleep(0.1)
            lost.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        builds, events = built_on(recipe)
        killer.join()
    assert len(digests(builds)) == 7
    assert "a node was lost on c: it runs again (1 of 2)" in lines(events)
    assert sum(len(marks(tmp_path, name)) for name in steps) > len(steps)


def test_training_goes_to_a_node_with_a_gpu(cluster: str, tmp_path: Path) -> None:
    """And to any other one when that is lost, whether it runs there or waits for the GPU."""
    store = Store(tmp_path / "store")
    on_gpu = ("--address", OTHER, "--cpus", "2", "--gpus", "1")
    joining = node(cluster, *on_gpu, name="gpu")
    with joining as lost, executing(f"ray:{cluster}", str(store.root), print):

        def run(**steps: dict[str, object]) -> list[Built]:
            return build(make_plan(load_recipe(write_recipe(tmp_path, **steps))), store, print)

        assert len(digests(run(train1={}, train2={}, step={}))) == 4
        ran = dict(note.split(" ran ") for note in store.notes)
        assert {"train1.onnx", "train2.onnx"} <= set(re.findall(r"Train of (\S+\.onnx)", ran["gpu"]))
        (first, _, _), (second, _, _) = (marks(tmp_path, name)[0] for name in ("train1", "train2"))
        assert first == second, "one at a time, and its process stays"
        with executor_for(None) as executor:
            assert {each.name: each.gpus for each in executor.machines(())} == {"a": 0, "b": 0, "gpu": 1}

        def kill() -> None:
            while not any(marks(tmp_path, name) for name in ("train3", "train4")):
                time.sleep(0.1)
            lost.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        builds = run(train3={"seconds": 3}, train4={"seconds": 3})
        killer.join()
    assert len(digests(builds)) == 3
    assert sorted(len(marks(tmp_path, name)) for name in ("train3", "train4")) == [1, 2]


def test_a_failure_of_the_stage_is_final(built_on: Build, tmp_path: Path) -> None:
    builds, _ = built_on(write_recipe(tmp_path, bad={"fails": True}))
    ((failure, lost),) = [(built.failure, built.lost) for built in builds if built.failure]
    assert "steps_of_project:Step: it fails on purpose\n  (on " in failure
    assert not lost
    assert len(marks(tmp_path, "bad")) == 1


def test_a_killed_command_ends_its_stages_and_resumes(built_on: Build, cluster: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, first={}, second={"seconds": 5})
    command = [
        "optimize",
        recipe,
        "--on",
        f"ray:{cluster}",
        "--store",
        tmp_path / "ray",
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen([sys.executable, "-m", "edgeopt", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "first.onnx" in line and "✓" in line:
            break
    running = await_marks(tmp_path, "second", 1)
    process.kill()
    process.communicate()
    await_end(running[0])
    builds, events = built_on(recipe)
    assert len(digests(builds)) == 3
    assert [event.branch for event in events if event.status == "cached"] == ["first.onnx"]
    assert [len(marks(tmp_path, name)) for name in ("first", "second")] == [1, 2]


def test_a_node_with_other_packages_is_passed_over(built_on: Build, cluster: str, tmp_path: Path) -> None:
    fake = tmp_path / "packages" / "onnx-0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 0.1\n")
    recipe = write_recipe(tmp_path, **{f"step{number}": {"seconds": 2} for number in range(6)})
    with node(cluster, "--address", OTHER, name="other", PYTHONPATH=str(fake.parent)):
        builds, events = built_on(recipe)
    assert len(digests(builds)) == 7
    assert "on other" not in lines(events).splitlines()
    assert "other has onnx 0.1 instead of" in lines(events)


def test_without_its_head_a_cluster_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token())
    recipe = write_recipe(tmp_path, step={"seconds": 60})
    port = str(31000 + os.getpid() % 1000)
    address = f"127.0.0.5:{port}"
    command = [
        "optimize",
        recipe,
        "--on",
        f"ray:{address}",
        "--store",
        tmp_path / "store",
        "--out",
        tmp_path / "out",
    ]
    with node("--head", "--address", "127.0.0.5", "--port", port, name="head") as head:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt", *command], stderr=subprocess.PIPE, text=True
        )
        try:
            running = await_marks(tmp_path, "step", 1)
            head.kill()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 3, err
    assert f"the Ray cluster at {address} cannot be used: its head at {address} is gone" in err
    assert "run again to resume" in err
    await_end(*running[:2])


def test_a_wrong_token_is_named(built_on: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token())
    with pytest.raises(CannotRunError, match=r"the Ray cluster at .* cannot be used: the token is wrong"):
        built_on(write_recipe(tmp_path, step={}))
