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

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device, read_device
from edgeopt.errors import DeviceError
from edgeopt.run.executors import ray as ray_executor
from edgeopt.run.executors.choice import executing, holder_of
from edgeopt.run.executors.executor import Board
from edgeopt.run.measuring.remote import Remote
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
    '''Its first job takes some seconds.'''

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
            self.note("probe")
            return super().python(arguments, timeout)
        first = "begins" not in Path(self.board.journal).read_text()
        self.note("begins")
        time.sleep(self.board.seconds if first else 0)
        try:
            return super().python(arguments, timeout)
        finally:
            self.note("ends")
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a recipe for devices, each with the seconds that a job takes and lines of its file."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "boards_of_nodes.py").write_text(BOARDS)
    (tmp_path / "devices").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.eye(4, dtype=np.float32))

    def write(steps: int, **devices: tuple[float, str]) -> Path:
        for name, (seconds, more) in devices.items():
            options = {"journal": str(tmp_path / f"{name}.journal"), "seconds": seconds}
            (tmp_path / "devices" / f"{name}.yaml").write_text(
                f"connection: {{uses: 'boards_of_nodes:Board', with: {json.dumps(options)}}}\n"
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


def jobs(folder: Path, device: str) -> list[str]:
    """What a board has noted: a probe, and when a job begins or ends."""
    file = folder / f"{device}.journal"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def await_jobs(folder: Path, device: str, noted: str, count: int = 1, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while jobs(folder, device).count(noted) < count:
        assert time.monotonic() < deadline, jobs(folder, device)
        time.sleep(0.05)


def rows(out: Path) -> dict[tuple[str, str], tuple[str, str]]:
    report = json.loads((out / "report.json").read_text())
    return {
        (row["variant"], row["device"]): (row["status"], row.get("reason") or "") for row in report["results"]
    }


def test_a_device_serves_one_command_at_a_time(
    edgeopt: Edgeopt,
    cluster: str,
    tmp_path: Path,
    shelf: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that has it is killed, and the other one gets it; a device that no node has is skipped."""
    monkeypatch.setattr(ray_executor, "BOARD_SECONDS", 1.0)
    recipe = shelf(0, board=(120, ""), named=(0, "on: shelf\n"))
    on = ["--on", f"ray:{cluster}"]
    command: list[str | Path] = [sys.executable, "-m", "edgeopt", "optimize", recipe, *on]
    command += ["--store", tmp_path / "first", "--out", tmp_path / "none"]

    def kill() -> None:
        await_jobs(tmp_path, "named", "probe", 2)
        time.sleep(1)  # the second command asks for both devices at the same time
        with (tmp_path / "board.journal").open("a") as stream:
            stream.write("killed\n")
        first.kill()

    holding = node(cluster, "--address", SHELF, "--cpus", "0", "--device", "board", name="shelf")
    with holding, subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        await_jobs(tmp_path, "board", "begins")
        recipe = shelf(0, board=(120, ""), named=(0, "on: shelf\n"), gone=(0, "on: nowhere\n"))
        killer = threading.Thread(target=kill)
        killer.start()
        out = tmp_path / "out"
        said = edgeopt("optimize", recipe, *on, "--store", tmp_path / "second", "--out", out)
        killer.join()
    missing = "the node nowhere, which has the device gone, is not in the cluster"
    assert f"job on gone: {missing}: waiting for it, 1 s" in said.err
    found = rows(out)
    status, reason = found.pop(("float", "gone"))
    assert status == "skipped" and reason.startswith(f"{missing}, for 1 s"), reason
    assert found == {("float", device): ("ok", "") for device in ("board", "named")}
    assert jobs(tmp_path, "board") == ["probe", "begins", "killed", "probe", "begins", "ends"]
    notes = json.loads((out / "report.json").read_text())["run"]["notes"]
    assert {f"{name} was measured at the node shelf" for name in ("board", "named")} <= set(notes)


def test_a_board_that_vanishes_is_waited_for(
    edgeopt: Edgeopt,
    cluster: str,
    tmp_path: Path,
    shelf: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node is lost while it measures for one command and another one waits, and comes back."""
    monkeypatch.setattr(ray_executor, "BOARD_SECONDS", 300.0)
    recipe = shelf(0, board=(60, ""))
    offering = (cluster, "--address", SHELF, "--cpus", "0", "--device", "board")
    started, queued, done = threading.Event(), threading.Event(), threading.Event()
    probes: list[str] = []

    def wait_for_it() -> None:
        with executing(f"ray:{cluster}", str(tmp_path / "store"), print):
            remote = Remote.of(load_device("board"))
            assert remote is not None
            queued.set()
            probes.append(remote.probe(build_agent(tmp_path / "agent.pyz"))["os"])

    def restart() -> None:
        with node(*offering, name="shelf") as lost:
            started.set()
            await_jobs(tmp_path, "board", "begins")
            other.start()
            queued.wait(300)
            time.sleep(1)  # it is in the queue, or else it waits for the node
            lost.kill()
        with node(*offering, name="shelf"):
            done.wait(300)

    machine, other = threading.Thread(target=restart), threading.Thread(target=wait_for_it)
    machine.start()
    started.wait(300)
    arguments = ["--on", f"ray:{cluster}", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    said = edgeopt("optimize", recipe, *arguments)
    other.join()
    done.set()
    machine.join()
    assert len(probes) == 1
    assert said.code == 0, said.err
    assert rows(tmp_path / "out") == {("float", "board"): ("ok", "")}
    assert "job on board: a node was lost on shelf: it runs again (1 of 2)" in said.err
    assert sorted(jobs(tmp_path, "board")) == ["begins", "begins", "ends", "probe", "probe"]


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
