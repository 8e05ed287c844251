"""Devices that nodes of a cluster hold: measured there, one job at a time, whatever is lost meanwhile."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.devices.device import read_device
from edgeopt.errors import DeviceError
from edgeopt.run.executors import ray as ray_executor
from edgeopt.run.executors.choice import executing, holder_of
from edgeopt.run.executors.executor import Board
from in_process import Edgeopt
from toy_cluster import node, write_recipe

pytest.importorskip("ray", reason="the extra cluster is not installed")
pytestmark = pytest.mark.slow

SHELF = "127.0.0.6"
BOARDS = """
import os, sys, time
from pathlib import Path
from edgeopt.devices.connections._local_link import LocalLink, own_environment
from edgeopt.plugin import Connection

class Board(Connection):
    journal: str
    seconds: float

    def open(self):
        return Slow(self)

class Slow(LocalLink):
    def __init__(self, board):
        super().__init__([sys.executable], own_environment())
        self.board = board

    def note(self, text):
        with Path(self.board.journal).open("a") as stream:
            stream.write(f"{text} {os.getpid()}\\n")

    def python(self, arguments, timeout):
        if "run" not in arguments:
            return super().python(arguments, timeout)
        self.note("begins")
        time.sleep(self.board.seconds)
        try:
            return super().python(arguments, timeout)
        finally:
            self.note("ends")
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a recipe for devices, each with the seconds that a job takes and lines of its file."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "boards.py").write_text(BOARDS)
    (tmp_path / "devices").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.eye(4, dtype=np.float32))

    def write(steps: int, **devices: tuple[float, str]) -> Path:
        for name, (seconds, more) in devices.items():
            options = {"journal": str(tmp_path / f"{name}.journal"), "seconds": seconds}
            (tmp_path / "devices" / f"{name}.yaml").write_text(
                f"connection: {{uses: 'boards:Board', with: {json.dumps(options)}}}\n"
                f"runtimes: {{onnx: onnxruntime}}\n{more}"
            )
        recipe = write_recipe(tmp_path, **{f"step{number}": {} for number in range(steps)})
        text = recipe.read_text().removesuffix("optimize:\n")
        recipe.write_text(
            f"{text}devices: [{', '.join(devices)}]\nlatency: {{min_runs: 2, min_seconds: 0}}\n"
            "data: {calibration: {uses: npz, with: {path: data.npz, label: null}}}\n"
        )
        return Path(recipe)

    return write


def jobs(folder: Path, device: str) -> list[list[str]]:
    """What a board has noted: ``begins`` or ``ends``, and the process."""
    file = folder / f"{device}.journal"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def await_jobs(folder: Path, device: str, count: int, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while len(jobs(folder, device)) < count:
        assert time.monotonic() < deadline, jobs(folder, device)
        time.sleep(0.05)


def rows(out: Path) -> dict[tuple[str, str], tuple[str, str]]:
    report = json.loads((out / "report.json").read_text())
    return {
        (row["variant"], row["device"]): (row["status"], row.get("reason") or "") for row in report["results"]
    }


def test_two_commands_measure_on_the_devices_of_a_node(
    edgeopt: Edgeopt, cluster: str, tmp_path: Path, shelf: Callable[..., Path]
) -> None:
    """One of them is killed in the middle; the other one, which waits, gets the devices."""
    recipe = shelf(1, one=(2, ""), two=(2, ""), named=(0, "on: shelf\n"))
    on = ["--on", f"ray:{cluster}"]
    offering = ["--cpus", "0", "--device", "one", "--device", "two"]
    with node(cluster, "--address", SHELF, *offering, name="shelf"):
        assert "shelf: 0 stages at a time" in (shown := edgeopt("doctor", *on).out)
        assert "device one, device two" in shown
        command: list[str | Path] = [sys.executable, "-m", "edgeopt", "optimize", recipe, *on]
        command += ["--store", tmp_path / "first", "--out", tmp_path / "none"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
            await_jobs(tmp_path, "one", 1)
            killed.kill()
        said = edgeopt("optimize", recipe, *on, "--store", tmp_path / "second", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert rows(tmp_path / "out") == {
        (variant, device): ("ok", "") for variant in ("float", "step0") for device in ("one", "two", "named")
    }
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["run"]["notes"]
    assert {f"{name} was measured at the node shelf" for name in ("one", "two", "named")} <= set(notes)
    for device in ("one", "two"):
        # One job at a time: each ends before the next one begins, but for the one that was killed.
        noted = jobs(tmp_path, device)
        lost = noted.pop(0)[1] if noted[0][1] != noted[1][1] else ""
        assert [text for text, _ in noted] == ["begins", "ends"] * 2, (lost, noted)
    assert jobs(tmp_path, "one")[0][1] not in {process for _, process in jobs(tmp_path, "one")[1:]}


def test_a_board_that_vanishes_is_waited_for(
    edgeopt: Edgeopt,
    cluster: str,
    tmp_path: Path,
    shelf: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node is lost while it measures, and comes back; another one never does."""
    monkeypatch.setattr(ray_executor, "BOARD_SECONDS", 60.0)
    recipe = shelf(0, board=(2, ""))
    offering = (cluster, "--address", SHELF, "--cpus", "0", "--device", "board")

    def restart() -> None:
        with node(*offering, name="shelf") as lost:
            started.set()
            await_jobs(tmp_path, "board", 1)
            lost.kill()
        with node(*offering, name="shelf"):
            done.wait(120)

    started, done = threading.Event(), threading.Event()
    machine = threading.Thread(target=restart)
    machine.start()
    started.wait(120)
    arguments = ["--on", f"ray:{cluster}", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    said = edgeopt("optimize", recipe, *arguments)
    done.set()
    machine.join()
    assert said.code == 0, said.err
    assert rows(tmp_path / "out") == {("float", "board"): ("ok", "")}
    assert "job on board: a node was lost on shelf: it runs again (1 of 2)" in said.err
    assert [text for text, _ in jobs(tmp_path, "board")] == ["begins", "begins", "ends"]

    monkeypatch.setattr(ray_executor, "BOARD_SECONDS", 1.0)
    monkeypatch.chdir(tmp_path)
    said = edgeopt("optimize", shelf(0, board=(0, ""), gone=(0, "on: nowhere\n")), *arguments)
    missing = "the node nowhere, which has the device gone, is not in the cluster"
    assert f"job on gone: {missing}: waiting for it, 1 s" in said.err
    status, reason = rows(tmp_path / "out")["float", "gone"]
    assert status == "skipped" and reason.startswith(f"{missing}, for 1 s"), reason


def test_without_a_cluster_a_device_of_a_node_is_skipped_by_name(
    edgeopt: Edgeopt, tmp_path: Path, shelf: Callable[..., Path]
) -> None:
    recipe = shelf(0, board=(0, "on: shelf\n"))
    edgeopt("optimize", recipe, "--store", tmp_path / "store", "--out", tmp_path / "out")
    status, reason = rows(tmp_path / "out")["float", "board"]
    assert status == "skipped"
    assert re.match(r"device board is at the node shelf of a cluster\n.*--on ray:HOST:PORT", reason), reason
    assert read_device(tmp_path / "devices" / "board.yaml").on == "shelf"
    with executing("local", "store", print), pytest.raises(DeviceError, match="at the node shelf"):
        holder_of(Board("board", "shelf"))
    with executing("local", "store", print):
        assert holder_of(Board("board")) is None


def test_a_node_offers_devices_by_name(edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("host", "a b", "pi4,pi5"):
        said = edgeopt("node", "127.0.0.2:1024", "--device", name)
        assert said.code == 2
        assert f"a node cannot offer the device {name!r}" in said.err
