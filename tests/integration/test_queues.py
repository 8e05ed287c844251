"""Different machines are measured in parallel, each with one job at a time, and this machine alone."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt.results import Event
from edgeopt.run.measuring.queues import run_queues

BOARDS = """
import os, time
from pathlib import Path
from edgeopt.devices.connections._local_link import LocalLink, own_environment
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection
import sys

class Board(Connection):
    who: str
    journal: str
    meets: int

    def open(self):
        return Meeting(self)

class Meeting(LocalLink):
    '''Its job waits until as many machines have one.'''

    def __init__(self, board):
        super().__init__([sys.executable], own_environment())
        self.board, self.journal = board, Path(board.journal)

    def note(self, text):
        with self.journal.open("a") as stream:
            stream.write(f"{self.board.who} {text}\\n")

    def python(self, arguments, timeout):
        if "run" not in arguments:
            return super().python(arguments, timeout)
        self.note("begins")
        end = time.monotonic() + 60
        while len({line.split()[0] for line in self.journal.read_text().splitlines()}) < self.board.meets:
            if time.monotonic() > end:
                raise DeviceError("no other machine has a job")
            time.sleep(0.02)
        try:
            return super().python(arguments, timeout)
        finally:
            self.note("ends")
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, and four devices on three machines."""
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "data.npz", x=np.eye(4, dtype=np.float32))
    (tmp_path / "boards_of_queues.py").write_text(BOARDS)
    (tmp_path / "devices").mkdir()
    for name, who in (("a", "a"), ("b", "b"), ("c1", "c"), ("c2", "c")):
        options = f"{{who: {who}, journal: {tmp_path / 'journal'}, meets: 3}}"
        (tmp_path / "devices" / f"{name}.yaml").write_text(
            f"connection: {{uses: 'boards_of_queues:Board', with: {options}}}\n"
            "runtimes: {onnx: onnxruntime}\n" + ("machine: c\n" if who == "c" else "")
        )
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: shelf\nmodel: {path: net.onnx}\nformats: [onnx]\n"
        "data: {calibration: {uses: npz, with: {path: data.npz, label: null}}}\n"
        "devices: [host, a, b, c1, c2]\nlatency: {min_runs: 2, min_seconds: 0}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_machines_in_parallel_and_the_host_alone(shelf: Path) -> None:
    events: list[Event] = []
    report = edgeopt.optimize("recipe.yaml", out=Path("out"), store=Path("store"), watch=events.append)
    assert {row.device: (row.status, row.reason) for row in report.results} == dict.fromkeys(
        ["host", "a", "b", "c1", "c2"], ("ok", "")
    )
    order = [line for line in (shelf / "journal").read_text().splitlines() if line.startswith("c ")]
    assert order == ["c begins", "c ends", "c begins", "c ends"]
    measured = [(event.step, event.status) for event in events if event.branch == "float.onnx"]
    others = [measured.index((f"measure on {name}", "done")) for name in ("a", "b", "c1", "c2")]
    assert max(others) < measured.index(("measure on host", "started"))


def test_queues_run_in_order_and_in_parallel() -> None:
    meeting, seen = threading.Barrier(2, timeout=60), list[str]()

    def job(name: str) -> Callable[[], None]:
        def run() -> None:
            meeting.wait()
            seen.append(name)

        return run

    run_queues([[job("a1"), job("a2")], [job("b1"), job("b2")]])
    assert sorted(seen[:2]) == ["a1", "b1"] and sorted(seen[2:]) == ["a2", "b2"]


def test_an_error_ends_all_queues() -> None:
    running, failed, seen = threading.Event(), threading.Event(), list[str]()

    def fail() -> None:
        running.wait(60)
        failed.set()
        raise ValueError("of the first queue")

    def slow() -> None:
        running.set()
        failed.wait(60)
        threading.Event().wait(0.2)
        seen.append("finished")

    with pytest.raises(ValueError, match="of the first queue"):
        run_queues([[fail, lambda: seen.append("first")], [slow, lambda: seen.append("second")]])
    assert seen == ["finished"]


INTERRUPTED = """
import signal, subprocess, sys, threading, time
from edgeopt.run.measuring.queues import run_queues

def stop(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, stop)
children = []
def job():
    children.append(subprocess.Popen(["sleep", "60"]))
    if len(children) == 2:
        print("ready", flush=True)
    children[-1].wait()
try:
    run_queues([[job, job], [job, job]])
except KeyboardInterrupt:
    print(len(children), all(child.poll() is not None for child in children), flush=True)
"""


def test_an_interrupt_ends_the_jobs_of_all_queues() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "2 True\n"
    assert process.returncode == 0
