"""The local connection, and the separate environments of runtimes."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgeopt.devices.connections.local import Local, LocalLink
from edgeopt.devices.device import Device
from edgeopt.devices.environments import environment_folder, environment_python, setup_environment
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError, UsageError
from edgeopt.run.measuring.probe import connect


def test_files_go_there_and_come_back(tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(b"\x00\x01")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "b.txt").write_text("b")
    with Local().open() as link:
        link.put(source, "models/a.bin")
        link.put(source, "models/a.bin")
        link.put(tmp_path / "tree", "tree")
        code = "text = open('tree/deep/b.txt').read(); open('out.txt', 'w').write(text * 2)"
        done = link.python(["-c", code], 30)
        assert done.returncode == 0, done.stderr
        link.get("out.txt", tmp_path / "new" / "out.txt")
        link.get("models/a.bin", tmp_path / "back.bin")
        assert isinstance(link, LocalLink)
        folder = link.folder
    assert (tmp_path / "new" / "out.txt").read_text() == "bb"
    assert (tmp_path / "back.bin").read_bytes() == source.read_bytes()
    assert not folder.exists()


def test_what_a_job_writes_stays_there_and_the_source_has_no_second_name(tmp_path: Path) -> None:
    """ONNX takes weights in a file of several names for an attack; a stage may read them meanwhile."""
    (tmp_path / "weights.bin").write_bytes(b"weights")
    with Local().open() as link:
        link.put(tmp_path / "weights.bin", "w.bin")
        link.put(tmp_path, "all")
        assert (tmp_path / "weights.bin").stat().st_nlink == 1
        script = "for name in ('w.bin', 'all/weights.bin'): open(name, 'r+').write('changed')"
        assert link.python(["-c", script], timeout=60).returncode == 0
    assert (tmp_path / "weights.bin").read_bytes() == b"weights"


def test_what_the_job_prints_and_how_it_ends_comes_back() -> None:
    with Local().open() as link:
        done = link.python(["-c", "import sys; print('o'); print('e', file=sys.stderr); sys.exit(7)"], 30)
    assert (done.returncode, done.stdout, done.stderr) == (7, "o\n", "e\n")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "."])
def test_names_stay_in_the_job_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text("")
    with Local().open() as link:
        with pytest.raises(DeviceError, match="is outside the job folder"):
            link.put(tmp_path / "x", name)
        with pytest.raises(DeviceError, match="is outside the job folder"):
            link.get(name, tmp_path / "y")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with Local().open() as link:
        with pytest.raises(DeviceError, match=r"no file 'result\.json'"):
            link.get("result.json", tmp_path / "r")
        with pytest.raises(DeviceError, match="gone"):
            link.put(tmp_path / "gone", "gone")


@pytest.mark.skipif(os.name != "posix", reason="process groups are posix")
def test_a_job_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    start = time.monotonic()
    with Local().open() as link, pytest.raises(DeviceError, match="did not finish within 2 s"):
        link.python(["-c", code], 2)
    assert time.monotonic() - start < 20
    child = int(note.read_text())
    for _ in range(100):
        if not _alive(child):
            break
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_another_interpreter_does_not_inherit_our_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    show = ["-c", "import os; print(os.environ.get('PYTHONPATH'))"]
    with Local().open() as link:
        assert link.python(show, 30).stdout == "/somewhere\n"
    with Local(python=sys.executable).open() as link:
        assert link.python(show, 30).stdout == "None\n"


def test_missing_interpreter_is_explained() -> None:
    with pytest.raises(DeviceError, match=r"no Python interpreter 'python9\.9'"):
        Local(python="python9.9").open()


def test_one_interpreter_only() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Local(python="python3", environment="x")


def test_environment_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path))
    with pytest.raises(DeviceError) as caught:
        Local(environment="host-tflite-runtime").open()
    assert caught.value.message == "device environment 'host-tflite-runtime' is not set up"
    assert caught.value.fix == "run: edgeopt devices setup host-tflite-runtime"
    assert caught.value.exit_code == 3


def test_environment_names_are_checked() -> None:
    for name in ("", "..", "a/b", ".hidden"):
        with pytest.raises(UsageError, match="is not a valid environment name"):
            environment_folder(name)


def test_environments_are_made_once_and_redone_when_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path))
    folder = environment_folder("small")
    assert folder == tmp_path / "environments" / "small"
    folder.mkdir(parents=True)
    (folder / "left-over").write_text("from an interrupted attempt")
    said: list[str] = []

    setup_environment("small", [], said.append)
    assert not (folder / "left-over").exists()
    assert json.loads((folder / "complete.json").read_text()) == {"requirements": []}
    assert "ready" in said[-1]

    marked = (folder / "complete.json").stat().st_mtime_ns
    setup_environment("small", [], said.append)
    assert "already set up" in said[-1] and (folder / "complete.json").stat().st_mtime_ns == marked

    with Local(environment="small").open() as link:
        prefix = link.python(["-c", "import sys; print(sys.prefix)"], 30).stdout.strip()
    assert Path(prefix) == folder

    (folder / "complete.json").unlink()
    with pytest.raises(DeviceError, match="not set up"):
        environment_python("small")


def test_environment_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="cannot create"):
        setup_environment("small", [], lambda line: None)


def test_a_job_that_is_not_timed_waits_for_nobody() -> None:
    device = Device(name="bench", runtimes={"null": "null"})
    done: list[bool] = []

    def use(shared: bool) -> None:
        with connect(device, shared=shared):
            done.append(shared)

    threads = [threading.Thread(target=use, args=(shared,)) for shared in (True, False)]
    with device_lock(device.name, device.connection):  # a measurement that takes long
        for thread in threads:
            thread.start()
        threads[0].join(5)
        assert done == [True]
    threads[1].join(5)
    assert done == [True, False]
