"""Several machines in one run: devices measured in parallel, a store that is shared, stages on a cluster.

    python benchmarks/cluster.py [devices] [store] [trials] [overhead] [digests] [--seconds N] [--kills N]

``devices``: eight simulated boards, each of which takes five seconds for a job; goal: 8 s for all, one job at
a time on each. ``store``: an unchanged run with a store on a server, which is on this machine, against one
with the folder alone, in turns; goal: 1.5. The third figure is of a machine whose folder is empty.

The rest starts a Ray cluster of two nodes on loopback, which share the processors of this machine.
``trials``: 16 independent stages that sleep, two at a time on a node; goal: 1.8 times the throughput of one.
``overhead``: seconds of a stage that does nothing, in a row of them, beyond those of a local one; goal: 0.15.
``digests``: a recipe is built again and again while processes of its stages and their workers are killed at
random; goal: the digests of one machine.
"""

import argparse
import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, TypeAlias

import psutil

from edgeopt.recipe.planner import Built, make_plan
from edgeopt.recipe.resolve import find_recipe, load_recipe
from edgeopt.recipe.selection import Selection
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.executors.choice import executing
from edgeopt.run.store import Store

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import toy_cluster  # noqa: E402 - it is beside the tests that use it

Builds: TypeAlias = list[Built]
Moment: TypeAlias = tuple[float, Event]
OPTIONS = argparse.Namespace()
PORT = 26479
TRIALS, LENGTH = 16, 30
RESUMES = 10
KILL_SECONDS = 1.0, 6.0
"""Shortest and longest time between two kills."""
BOARDS, SECONDS = 8, 5.0
RUNS = 3

BOARD = f"""
import sys, time
from edgeopt.devices.connections._local_link import LocalLink, own_environment
from edgeopt.plugin import Connection

class Board(Connection):
    def open(self):
        return Slow([sys.executable], own_environment())

class Slow(LocalLink):
    def python(self, arguments, timeout):
        if "run" in arguments:
            time.sleep({SECONDS})
        return super().python(arguments, timeout)
"""
MODEL = """
import numpy as np
from onnx import TensorProto, helper, save
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "net.onnx")
np.savez("data.npz", x=np.eye(4, dtype=np.float32))
"""
RECIPE = """
version: 1
name: boards
model: {path: net.onnx}
formats: [onnx]
data: {calibration: {uses: npz, with: {path: data.npz, label: null}}}
latency: {min_runs: 2, min_seconds: 0}
"""
MEASURE = """
import time
from pathlib import Path
import edgeopt
moments = []
def watch(event):
    if event.step.startswith("measure on board") and event.status in ("started", "done"):
        moments.append(time.monotonic())
report = edgeopt.optimize("recipe.yaml", out=Path("out"), store=Path("store"), watch=watch)
assert all(row.status == "ok" for row in report.results), report.results
print(moments[-1] - moments[0])
"""


def devices() -> None:
    """Seconds from the first job on a board to the end of the last one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "boards.py").write_text(BOARD)
        (folder / "devices").mkdir()
        names = [f"board{number}" for number in range(1, BOARDS + 1)]
        for each in names:
            text = "connection: {uses: 'boards:Board'}\nruntimes: {onnx: onnxruntime}\n"
            (folder / "devices" / f"{each}.yaml").write_text(text)
        subprocess.run([sys.executable, "-c", MODEL], cwd=folder, check=True)
        (folder / "recipe.yaml").write_text(f"{RECIPE}devices: [{', '.join(names)}]\n")
        done = subprocess.run(
            [sys.executable, "-c", MEASURE],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    print(f"{BOARDS} boards of {SECONDS:g} s each: {float(done.stdout):.1f} s (goal: 8)")


class Objects(BaseHTTPRequestHandler):
    """A server of objects in memory."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer GET, HEAD and PUT."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT":
            self.objects[self.path] = body
        found = self.objects.get(self.path)
        shown = b"" if self.command == "PUT" else found or b""
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(shown)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(shown)

    do_HEAD = do_PUT = do_GET


def store() -> None:
    """Seconds of an unchanged run of digits-torch."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/cache"
    with tempfile.TemporaryDirectory() as name:

        def run(place: str, cache: str) -> float:
            started = time.monotonic()
            command = [sys.executable, "-m", "edgeopt", "optimize", str(ROOT / "recipes/digits-torch.yaml")]
            variables = {
                "EDGEOPT_STORE": place,
                "EDGEOPT_STORE_CACHE": f"{name}/{cache}",
                "EDGEOPT_HOME": f"{name}/home",  # no wait for others that measure on this machine
            }
            subprocess.run(
                [*command, "--quiet", "--out", f"{name}/out"],
                env={**os.environ, **variables},
                check=True,
                capture_output=True,
            )
            return time.monotonic() - started

        first = run(url, "full")
        times: dict[str, list[float]] = {"local": [], "shared": [], "empty": []}
        for number in range(RUNS):  # in turns
            times["local"].append(run(f"{name}/full", ""))
            times["shared"].append(run(url, "full"))
            times["empty"].append(run(url, f"empty{number}"))
    local, shared, empty = (statistics.median(times[each]) for each in ("local", "shared", "empty"))
    print(f"digits-torch, first run: {first:.1f} s; unchanged, medians of {RUNS}:")
    print(f"  local store {local:.2f} s")
    print(f"  shared, in the folder of this machine {shared:.2f} s, {shared / local:.2f} x (goal: 1.5)")
    print(f"  shared, nothing in the folder of this machine {empty:.2f} s, {empty / local:.2f} x")
    print(f"  on the server: {len(Objects.objects)} objects, {sum(map(len, Objects.objects.values())):,} B")


def built(recipe: Path, on: str, place: Path, formats: tuple[str, ...] = ()) -> tuple[Builds, list[Moment]]:
    """Build a recipe; returns its branches, and its events with their times."""
    moments: list[Moment] = []
    plan = make_plan(load_recipe(recipe, selection=Selection(formats=formats)))

    def watch(event: Event) -> None:
        moments.append((time.monotonic(), event))

    with executing(on, str(place), watch):
        return build(plan, Store(place), watch), moments


@contextlib.contextmanager
def cluster(*names: str) -> Iterator[str]:
    """The address of a cluster with nodes of these names, of two stages each."""
    os.environ["RAY_AUTH_TOKEN"] = toy_cluster.token()
    os.environ.pop("RAY_ADDRESS", None)
    head = f"127.0.0.2:{PORT}"
    with contextlib.ExitStack() as cleanup:
        for number, name in enumerate(names, 2):
            joining = [head] if number > 2 else ["--head", "--port", str(PORT)]
            options = ["--address", f"127.0.0.{number}", "--cpus", "2"]
            cleanup.enter_context(toy_cluster.node(*joining, *options, name=name))
        yield f"ray:{head}"


def trials() -> None:
    """Seconds of independent stages that sleep, on one and on two nodes, from the first start to the end."""
    seconds: dict[int, float] = {}
    for names in (("a",), ("a", "b")):
        with cluster(*names) as on:
            steps = {f"trial{number}": {"seconds": OPTIONS.seconds} for number in range(TRIALS)}
            _, moments = built(
                toy_cluster.write_recipe(OPTIONS.folder, **steps), on, OPTIONS.folder / f"trials{len(names)}"
            )
            begun = [moment for moment, event in moments if event.message.startswith("on ")]
            seconds[len(names)] = moments[-1][0] - begun[0]
    print(f"{TRIALS} stages of {OPTIONS.seconds:g} s, two at a time on each node:")
    print(
        f"  one node {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {seconds[1] / seconds[2]:.2f} x (goal: 1.8)"
    )


def overhead() -> None:
    """Seconds from the end of a stage to that of the next one, which does nothing, with warm processes."""
    medians: dict[str, float] = {}
    with cluster("a", "b") as ray:
        for on in ("local", ray):
            recipe = toy_cluster.write_recipe(OPTIONS.folder, LENGTH, chain={})
            _, moments = built(recipe, on, OPTIONS.folder / on.partition(":")[0])
            ends = [moment for moment, event in moments if event.status == "done"]
            gaps = [after - before for before, after in itertools.pairwise(ends)]
            # Each node starts a process with the first stages that it gets.
            medians[on] = statistics.median(gaps[LENGTH // 3 :])
    local, remote = medians.values()
    print(f"a stage that does nothing, median of {LENGTH} in a row:")
    more = (remote - local) * 1000
    print(f"  local {local * 1000:.0f} ms, cluster {remote * 1000:.0f} ms, {more:+.0f} ms (goal: 150)")


def digests() -> None:
    """Builds of a recipe under random kills, each from an empty store, until all kills are done."""
    recipe, formats = find_recipe("digits-keras"), ("tflite", "onnx")
    done = {"stage": 0, "worker": 0}
    lost = runs = different = 0
    with cluster("a", "b") as on:
        wanted = _digests(built(recipe, "local", OPTIONS.folder / "digests", formats)[0])
        while sum(done.values()) < OPTIONS.kills:
            runs += 1
            ended = threading.Event()
            killer = threading.Thread(target=_kill, args=(done, ended))
            killer.start()
            for _ in range(RESUMES):  # a stage that is lost three times has failed, until the next command
                builds, moments = built(recipe, on, OPTIONS.folder / f"digests{runs}", formats)
                lost += sum("it runs again" in event.message and not event.branch for _, event in moments)
                if not any(each.failure for each in builds):
                    break
            ended.set()
            killer.join()
            different += _digests(builds) != wanted
    print(f"digits-keras as {' and '.join(formats)}, built {runs} times on two nodes:")
    print(
        f"  {done['stage']} processes of stages and {done['worker']} workers killed, {lost} stages repeated"
    )
    print(f"  {different} of {runs} builds differ from one machine (goal: 0)")


def _digests(builds: Builds) -> dict[str, list[str]]:
    return {each.branch.name: [*(step.digest for step in each.steps), each.failure] for each in builds}


def _kill(done: dict[str, int], ended: threading.Event) -> None:
    """Kill a random process of a stage, or its worker, every few seconds."""
    draw = random.Random(sum(done.values()))
    while sum(done.values()) < OPTIONS.kills and not ended.wait(draw.uniform(*KILL_SECONDS)):
        kind = draw.choice([*done])
        with contextlib.suppress(psutil.Error, IndexError):  # it has just ended; none runs
            draw.choice([*_victims(kind)]).kill()
            done[kind] += 1


def _victims(kind: str) -> Iterator[psutil.Process]:
    for worker in psutil.Process().children(recursive=True):
        if worker.name().startswith("ray::_work"):
            stages = (each for each in worker.children() if "spawn_main" in " ".join(each.cmdline()))
            yield from stages if kind == "stage" else [worker]


PARTS = {
    "devices": devices,
    "store": store,
    "trials": trials,
    "overhead": overhead,
    "digests": digests,
}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--seconds", type=float, default=20, help="of each of the trials")
    parser.add_argument("--kills", type=int, default=50, help="for digests")
    parser.parse_args(namespace=OPTIONS)
    with tempfile.TemporaryDirectory(prefix="edgeopt-benchmark-") as name:
        OPTIONS.folder = Path(name)
        for part in OPTIONS.parts or PARTS:
            PARTS[part]()


if __name__ == "__main__":
    main()
