"""Several machines in one run: devices measured in parallel, a store that is shared, stages on a cluster.

    python benchmarks/cluster.py [PART ...] [--seconds N] [--kills N] [--of digits kws search]

``devices``: eight simulated boards, each of which takes five seconds for a job, attached here and to the two
nodes of a cluster; goal: 8 s for all, one job at a time on each. ``store``: an unchanged run with a store on
a server, which is on this machine, against one with the folder alone, in turns; goal: 1.5. The third figure
is of a machine whose folder is empty.

The rest starts a Ray cluster of two nodes on loopback, which share the processors of this machine.
``trials``: 16 independent stages that sleep, two at a time on a node; goal: 1.8 times the throughput of one.
``overhead``: seconds of a stage that does nothing, in a row of them, beyond those of a local one; goal: 0.15.
``artifacts``: the memory of all processes while a file of two gigabytes passes the store; goal: that for a
small one. ``digests``: recipes and a search run again and again while processes of their stages and the
workers are killed at random; goal: the digests of one machine. The recipe ``mlperf-tiny-kws`` needs
``EDGEOPT_DATA``. ``scale``: a fleet that is simulated, with the times of the stages of a recipe as measured
here: 1,000 recipes of 8 variants on 20 devices.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
from clusters import fleet, kills
from clusters.nodes import built, cluster, toy_cluster

from toy_objects import FileServer

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = argparse.Namespace()
TRIALS, LENGTH = 16, 30
ARTIFACT = 2 << 30
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
import sys, time
from pathlib import Path
import edgeopt
moments = []
def watch(event):
    if event.step.startswith("measure on board") and event.status in ("started", "done"):
        moments.append(time.monotonic())
on = sys.argv[1]
report = edgeopt.optimize("recipe.yaml", out=Path("out"), store=Path("store-" + on[:3]), on=on, watch=watch)
assert all(row.status == "ok" for row in report.results), report.results
print(moments[-1] - moments[0])
"""


def devices() -> None:
    """Seconds from the first job on a board to the end of the last one, attached here, and to two nodes."""
    (folder := OPTIONS.folder / "boards").mkdir()
    (folder / "boards.py").write_text(BOARD)
    (folder / "devices").mkdir()
    names = [f"board{number}" for number in range(1, BOARDS + 1)]
    for each in names:
        text = "connection: {uses: 'boards:Board'}\nruntimes: {onnx: onnxruntime}\n"
        (folder / "devices" / f"{each}.yaml").write_text(text)
    subprocess.run([sys.executable, "-c", MODEL], cwd=folder, check=True)
    (folder / "recipe.yaml").write_text(f"{RECIPE}devices: [{', '.join(names)}]\n")

    def seconds(on: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, on],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return float(done.stdout)

    print(f"{BOARDS} boards of {SECONDS:g} s each: {seconds('local'):.1f} s here (goal: 8)", flush=True)
    with cluster("a", "b", devices=BOARDS // 2) as on:
        print(f"  {seconds(on):.1f} s at two nodes of a cluster")


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
            variables = {"EDGEOPT_STORE": place, "EDGEOPT_STORE_CACHE": f"{name}/{cache}"}
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


def artifacts() -> None:
    """Memory of the processes that pass an artifact through the store, beside that for one of a mebibyte."""
    server = FileServer(OPTIONS.folder / "objects")
    peaks: dict[int, tuple[int, int, float]] = {}
    os.environ["EDGEOPT_STORE_CACHE"] = str(OPTIONS.folder / "mine")
    with cluster("a", "b", EDGEOPT_STORE_CACHE=str(OPTIONS.folder / "theirs")) as on:
        for size in (1 << 20, ARTIFACT):
            recipe = toy_cluster.write_recipe(OPTIONS.folder, **{f"size{size}": {"ballast": size}})
            with _peaks() as peak:
                started = time.monotonic()
                builds, _ = built(recipe, on, server.url)
                seconds = time.monotonic() - started
            assert not any(each.failure for each in builds), builds
            peaks[size] = (*peak, seconds)
    server.stop()
    print("an artifact from a node to this machine, through a server:")
    for size, (here, there, seconds) in peaks.items():
        print(
            f"  {size / 2**20:7,.0f} MiB in {seconds:.1f} s: {here / 2**20:.0f} MiB of memory here, with the "
            f"server, {there / 2**20:.0f} MiB in the largest process of a node"
        )
    print(f"  on the way: {server.received:,} B to the server, {server.sent:,} B from it")


@contextlib.contextmanager
def _peaks() -> Iterator[list[int]]:
    """The largest memory of this process, and of one that runs stages, while the block runs."""
    peak, ended = [0, 0], threading.Event()

    def look() -> None:
        me = psutil.Process()
        while not ended.wait(0.05):
            peak[0] = max(peak[0], me.memory_info().rss)
            for each in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if each.name().startswith("ray::_work") or "spawn_main" in " ".join(each.cmdline()):
                        peak[1] = max(peak[1], each.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        ended.set()
        looking.join()


def digests() -> None:
    """A recipe of digits, one of keyword spotting, and a search, under random kills."""
    for name in OPTIONS.of or kills.CASES:
        kills.compare(name, OPTIONS.kills, OPTIONS.folder)


def scale() -> None:
    """A fleet that is simulated, with the times of stages as they are measured here."""
    fleet.report(OPTIONS.folder)


PARTS = {
    "devices": devices,
    "store": store,
    "trials": trials,
    "overhead": overhead,
    "artifacts": artifacts,
    "digests": digests,
    "scale": scale,
}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--seconds", type=float, default=20, help="of each of the trials")
    parser.add_argument("--kills", type=int, default=50, help="for each case of digests")
    parser.add_argument("--of", nargs="*", choices=[*kills.CASES], help="cases of digests; all by default")
    parser.parse_args(namespace=OPTIONS)
    with tempfile.TemporaryDirectory(prefix="edgeopt-benchmark-") as name:
        OPTIONS.folder = Path(name)
        os.environ["EDGEOPT_HOME"] = f"{name}/home"  # no wait for others that measure on this machine
        for part in OPTIONS.parts or PARTS:
            PARTS[part]()


if __name__ == "__main__":
    main()
