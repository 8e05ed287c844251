"""Several machines in one run: devices that are measured in parallel, and a store that is shared.

    python benchmarks/cluster.py [devices] [store]

``devices``: eight simulated boards, each of which takes five seconds for a job; goal: 8 s for all, one job at
a time on each. ``store``: an unchanged run with a store on a server, which is on this machine, against one
with the folder alone, in turns; goal: 1.5. The third figure is of a machine whose folder is empty.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parent.parent
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


PARTS = {"devices": devices, "store": store}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
