"""Faults around a cluster: its store fails, commands meet, a node is slow or has another clock."""

import contextlib
import json
import random
import subprocess
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgeopt.recipe.plan import Built
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.executors.choice import executing
from edgeopt.run.store import Store, open_store
from in_process import Edgeopt
from toy_cluster import NAMESPACE, await_marks, digests, lines, marks, node, write_recipe
from toy_objects import FileServer

pytest.importorskip("ray", reason="the extra cluster is not installed")
pytestmark = pytest.mark.slow

OTHER = "127.0.0.4"
MEBIBYTE = 1 << 20
HOUR = 3600
KINDS = ("stage", "worker")
CLOCK = f"""
import datetime, time
def ahead(clock, more):
    return lambda: clock() + more
time.time, time.time_ns = ahead(time.time, {HOUR}), ahead(time.time_ns, {HOUR} * 10**9)
"""
"""A module that Python runs at its start."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A store that all nodes share; this machine has a folder of its own in front of it."""
    monkeypatch.setenv("EDGEOPT_STORE_CACHE", str(tmp_path / "mine"))
    running = FileServer(tmp_path / "objects")
    yield running
    running.stop()


def built(recipe: Path, place: str | Path, watch: Callable[[Event], None]) -> list[Built]:
    return build(make_plan(load_recipe(recipe)), open_store(place), watch)


def failures(builds: list[Built]) -> list[str]:
    return [each.failure for each in builds if each.failure]


def test_a_store_that_fails_costs_time_or_is_named(cluster: str, server: FileServer, tmp_path: Path) -> None:
    """Away for ten seconds, forbidden, full, and garbage: in turn, by one command."""
    events: list[Event] = []
    with executing(f"ray:{cluster}", server.url, events.append):

        def run(name: str) -> list[Built]:
            return built(write_recipe(tmp_path, **{name: {"seconds": 1}}), server.url, events.append)

        away = threading.Thread(target=_away, args=(server, tmp_path))
        away.start()
        assert len(digests(run("away"))) == 2
        away.join()
        assert len(marks(tmp_path, "away")) == 1

        for method, status in (("PUT", 403), ("PUT", 507), ("GET", 403)):
            name = f"{method.lower()}{status}"
            server.refuse = {method: status}
            failed = run(name)
            (failure,) = failures(failed)
            assert [each.failure for each in failed if each.lost] == [failure]
            assert f"{server.url} answers {method}" in failure and f"with {status}" in failure, failure
            server.refuse = {}
            ran = len(marks(tmp_path, name))
            assert len(digests(run(name))) == 2
            assert len(marks(tmp_path, name)) == ran, "the node has its result, and sends it"

        server.garble = 1
        assert len(digests(run("garbage"))) == 2
        assert "but it was damaged on the way: it runs again" in lines(events)
        assert len(marks(tmp_path, "garbage")) == 1


def _away(server: FileServer, folder: Path) -> None:
    """Stop a server for ten seconds, while a step runs that needs it at its end."""
    await_marks(folder, "away", 1)
    server.stop()
    time.sleep(10)
    server.start()


def test_a_node_whose_disk_is_full_is_named(
    cluster: str, server: FileServer, edgeopt: Edgeopt, tmp_path: Path
) -> None:
    """The node and its folder; nothing half-written stays there, and the next command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        [*NAMESPACE, 'mount -t tmpfs none "$0"', disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine allows no mount namespaces")
    steps = {f"step{number}": {"seconds": 2, "ballast": 8 * MEBIBYTE} for number in range(5)}
    recipe = write_recipe(tmp_path, **steps)
    command = ("optimize", recipe, "--on", f"ray:{cluster}", "--store", server.url, "--keep-going")
    (tmp_path / "theirs").mkdir()
    own = {"EDGEOPT_STORE_CACHE": str(disk / "store")}
    joining = node(cluster, "--address", OTHER, "--cpus", "2", name="small", without=disk, size="4m", **own)
    with joining as small:
        said = edgeopt(*command, "--out", tmp_path / "out")
        inside = Path(f"/proc/{small.process.pid}/root", *disk.parts[1:], "store")
        assert [each.name for each in (inside / "scratch").iterdir()] == []
        assert not any(path.name == "ballast" for path in inside.rglob("*"))
    assert said.code == 3, said.err
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    failed = {row["variant"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert failed, "the other nodes have four slots"
    for reason in failed.values():
        assert f"no space left for the store in {disk / 'store'}; completed steps are kept" in reason
        assert "(on small)" in reason
    with executing(f"ray:{cluster}", server.url, print):
        assert len(digests(built(recipe, server.url, print))) == 6
    assert {name: len(marks(tmp_path, name)) for name in steps} == {
        name: 1 + (name in failed) for name in steps
    }


def test_two_commands_with_one_recipe(cluster: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, first={"seconds": 2}, second={"seconds": 2})
    found: list[dict[str, list[str]]] = []

    def run() -> None:
        with executing(f"ray:{cluster}", str(tmp_path / "store"), print):
            found.append(digests(built(recipe, tmp_path / "store", print)))

    Store(tmp_path / "store")
    commands = [threading.Thread(target=run) for _ in range(2)]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    assert len(found) == 2 and found[0] == found[1] and len(found[0]) == 3


def test_a_slow_node_with_another_clock_starves_nobody(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    recipe = write_recipe(tmp_path, **{f"step{number}": {"seconds": 1} for number in range(12)})
    events: list[Event] = []
    odd = {"PYTHONPATH": str(tmp_path / "clock"), "SLOW_STEPS": "15"}
    joining = node(cluster, "--address", OTHER, "--cpus", "1", name="slow", **odd)
    with joining, executing(f"ray:{cluster}", str(tmp_path / "store"), events.append):
        builds = built(recipe, tmp_path / "store", events.append)
        assert len(digests(builds)) == 13
        again = built(recipe, tmp_path / "store", events.append)
    assert digests(again) == digests(builds)
    ran = [marks(tmp_path, f"step{number}") for number in range(12)]
    assert [len(each) for each in ran] == [1] * 12
    ahead = [moment - time.time() > HOUR / 2 for ((_, _, moment),) in ran]
    assert sum(ahead) == lines(events).splitlines().count("on slow") == 1
    assert max(event.seconds for event in events) < HOUR / 2


def test_fifty_random_kills_change_no_digest(cluster: str, tmp_path: Path) -> None:
    """Processes of stages, and the workers that start them; commands go on until all is there."""
    recipe = write_recipe(tmp_path, length=2, **{f"step{number}": {"seconds": 0.2} for number in range(4)})
    wanted = digests(built(recipe, tmp_path / "one", lambda event: None))
    draw, killed, ended = random.Random(0), Counter[str](), threading.Event()

    def kill() -> None:
        while not ended.wait(draw.uniform(0.1, 0.4)):
            kind = draw.choice(KINDS)
            with contextlib.suppress(psutil.Error, IndexError):  # it has just ended; none runs
                draw.choice([process for each, process in victims() if each == kind]).kill()
                killed[kind] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    rounds = 0
    try:
        while killed.total() < 50:
            rounds += 1
            place = tmp_path / f"store{rounds}"
            with executing(f"ray:{cluster}", str(place), lambda event: None):
                found = built(recipe, place, lambda event: None)
                while failures(found):
                    assert all(each.lost for each in found if each.failure), failures(found)
                    found = built(recipe, place, lambda event: None)
            assert digests(found) == wanted
    finally:
        ended.set()
        killer.join()
    assert min(killed[kind] for kind in KINDS) > 10, killed


def victims() -> Iterator[tuple[str, psutil.Process]]:
    """Processes of stages, and workers of Ray, below this one."""
    for worker in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if worker.name().startswith("ray::_work"):
                yield "worker", worker
                yield from (
                    ("stage", each) for each in worker.children() if "spawn_main" in " ".join(each.cmdline())
                )


def test_large_files_pass_in_pieces(cluster: str, server: FileServer, tmp_path: Path) -> None:
    """A node and this machine have less memory than the file has bytes."""
    size, limit = 256 * MEBIBYTE, 224
    recipe = write_recipe(tmp_path, large={"ballast": size}, next={})
    recipe.write_text(f"{recipe.read_text()}limits: {{stage_memory: {limit} MiB}}\n")
    events: list[Event] = []
    tracemalloc.start()
    try:
        with executing(f"ray:{cluster}", server.url, events.append):
            builds = built(recipe, server.url, events.append)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(digests(builds)) == 3
    (large,) = [each for each in builds if each.branch.variant == "large"]
    assert (large.steps[-1].model.path.parent / "ballast").stat().st_size == size
    assert server.received > size and server.sent > size
    assert peak < size / 4  # of this process, and of the server, which is in it
