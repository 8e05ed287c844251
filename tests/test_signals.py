"""Signals, standard streams, full disks and encodings: exit codes, messages, and what is left behind."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeopt.cli import main
from edgeopt.cli.process import interruption, streams
from edgeopt.config.files import replacing, writing
from edgeopt.config.scratch import PREFIX, lasting_temporary_folder, scratch_folder, sweep, temporary_files
from edgeopt.errors import CannotRunError, StoreError
from edgeopt.run.store import Store

EDGEOPT = [sys.executable, "-m", "edgeopt"]
LINE = re.compile(r"interrupted; \d+ steps are kept, run the same command again\n")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FULL = Path("/dev/full")
Write = Callable[..., Path]

HANG = """
import sys, tempfile, threading, time
from pathlib import Path
from edgeopt.cli import app, main
from edgeopt.cli.process import interruption
from edgeopt.config.scratch import scratch_folder
from edgeopt.model import Model, TensorSpec
from edgeopt.run.executors.executor import Task
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.executors.worker import StageInputs, run_stage
from edgeopt.testing.toys import Hang


@app.command("hang")
def hang(out: Path) -> None:
    tempfile.mkdtemp()
    interruption.keep_step("float", "first")
    interruption.keep_step("float", "second")
    with scratch_folder(out, "scratch-") as folder, LocalExecutor() as executor:
        model = Model(format="toy", path=out, inputs=(TensorSpec(name="x", shape=(1,), dtype="float32"),))
        arguments = (Hang(), model, StageInputs(), folder)
        executor.submit(Task("hang", run_stage, arguments, "plain", 10.0, ""))
        while not any(running.started for running in executor._running.values()):
            executor.wait(0.05)
        print("ready", flush=True)
        executor.wait(60)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a command that waits for a hanging stage, and return when it does."""
    (tmp_path / "script.py").write_text(HANG)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    processes = []

    def start(before: Callable[[], object] = lambda: None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), "hang", str(tmp_path / "out")],
            env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "TEST_SIGNALS": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def default_signals() -> None:
    """A shell starts background jobs with some signals ignored; tests may run in one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def family(folder: Path) -> list[str]:
    """The living processes of a test, except itself."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"TEST_SIGNALS={folder}".encode() in (place / "environ").read_bytes().split(b"\0")
            if marked and "zombie" not in (place / "status").read_text():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has just ended, or belongs to another user
    return found


def gone(folder: Path, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while family(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not family(folder)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_with_130_and_one_line(
    hanging: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, number: signal.Signals
) -> None:
    process = hanging(default_signals)
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # impatient CI runners send another one
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (
        130,
        "interrupted; 2 steps are kept, run the same command again\n",
    )
    assert gone(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "out").iterdir()) == []


def test_signals_that_the_parent_ignores_stay_ignored_and_kills_are_cleaned_up_by_the_next(
    hanging: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    def nohup() -> None:
        default_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = hanging(nohup)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    process.communicate()
    assert gone(tmp_path)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    done = subprocess.run(
        [*EDGEOPT, "--version"], env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, check=False
    )
    assert done.returncode == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_signal_during_the_imports_is_no_traceback(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "class Importing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Importing())\n"
        "from edgeopt.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert LINE.fullmatch(done.stderr)


def test_a_signal_inside_exec_of_a_text_ends_with_130(tmp_path: Path) -> None:
    script = (
        "import signal\n"
        "from edgeopt.cli import main\n"
        "import edgeopt.cli.root as root\n"
        "def command(): exec('signal.raise_signal(signal.SIGTERM)', {'signal': signal})\n"
        "root.app = command\n"
        "main()\n"
    )
    (tmp_path / "module.py").write_text(script)
    command = [sys.executable, "-m", "module"]  # with -c, CPython does not look at its own record
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, bool(LINE.fullmatch(done.stderr))) == (130, True)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run 'edgeopt plan' in this process, with another function in place of its work."""

    def call(work: Callable[..., object]) -> tuple[int, str]:
        monkeypatch.setattr("edgeopt.commands.start.load_recipe", work)
        monkeypatch.setattr(sys, "argv", ["edgeopt", "plan", "recipe.yaml"])
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

    return call


Run = Callable[[Callable[..., object]], tuple[int, str]]


def raising(error: BaseException) -> Callable[..., object]:
    def work(*_: object, **__: object) -> None:
        raise error

    return work


def test_an_interruption_that_a_library_turns_into_another_error_is_one(run: Run) -> None:
    def work(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("cannot release un-acquired lock") from None

    code, err = run(work)
    assert code == 130
    assert LINE.fullmatch(err)


def test_an_interruption_inside_a_finalizer_is_raised_again(run: Run) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work(*_: object, **__: object) -> None:
        Finalized()
        time.sleep(10)

    start = time.monotonic()
    code, err = run(work)
    assert code == 130
    assert LINE.fullmatch(err)
    assert time.monotonic() - start < 5


def test_a_clean_up_that_hangs_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(interruption, "CLEANUP_SECONDS", 0.05)
    monkeypatch.setattr(os, "_exit", end)
    ended = []

    def work(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            try:
                time.sleep(10)
            except Ended as end:
                ended.append(end.args)

    assert run(work)[0] == 130
    assert ended == [(130,)]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 3, "cannot write temporary files in .*TMPDIR"),
        (OSError("32 requested and 16 written"), 3, "cannot write temporary files in .*TMPDIR"),  # numpy
        (OSError(errno.EROFS, "Read-only file system", "/out/x"), 3, "/out/x: Read-only file system"),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), 3, "Broken pipe"),  # of a connection
        (EOFError("in a pickle"), 70, "bug: EOFError: in a pickle"),
        (KeyboardInterrupt(), 130, "interrupted; 0 steps are kept"),
        (SystemExit("a message"), 3, "code of the recipe ended the command: .*a message"),
        (SystemExit(0), 3, "code of the recipe ended the command"),
    ],
)
def test_only_checks_end_with_1(run: Run, error: BaseException, code: int, words: str) -> None:
    ended, err = run(raising(error))
    assert ended == code
    assert re.search(words, err, re.DOTALL)
    assert "Traceback" not in err


def test_a_command_without_steps_says_what_has_ended(run: Run) -> None:
    def node(*_: object, **__: object) -> None:
        interruption.ends_with("the node has left the cluster")
        raise KeyboardInterrupt

    assert run(node) == (130, "the node has left the cluster\n")
    assert run(raising(KeyboardInterrupt())) == (
        130,
        "interrupted; 0 steps are kept, run the same command again\n",
    )


def test_a_bug_whose_traceback_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", full)
    code, err = run(raising(RuntimeError("a surprise")))
    assert code == 70
    assert "bug: RuntimeError: a surprise" in err
    assert "the traceback could not be written: No space left on device" in err


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("{edgeopt} schema report >&-", 0, ""),
        ("{edgeopt} schema report <&- >&- 2>&-", 0, ""),
        (
            "{edgeopt} schema report 2>&1 >/dev/full",
            3,
            "to stdout: No space left on device",
        ),
        (
            "(ulimit -f 0; {edgeopt} schema report >out) 2>&1",
            3,
            "to stdout: File too large",
        ),
        ("{edgeopt} plan nothing 2>/dev/full", 2, ""),
        ("{edgeopt} schema report 2>&1 | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{edgeopt} lint bad.tflite --device cortex-m 2>&1 | true; exit ${{PIPESTATUS[0]}}", 1, ""),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path: Path, line: str, code: int, words: str) -> None:
    from toy_operators import operator, write

    write(tmp_path / "bad.tflite", operator("TOPK_V2"), shape=(1, 4, 4, 2), types=("int8", "int8"))
    done = subprocess.run(
        ["bash", "-c", line.format(edgeopt=" ".join(EDGEOPT))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert words in done.stdout
    assert bool(words) == bool(done.stdout)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_encodings_without_the_characters_of_a_plan(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "größe.yaml").write_text("version: 1\nname: größe ✓\nmodel: {path: fehlt.keras}\n", "utf-8")
    command = [*EDGEOPT, "plan", "größe.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"fehlt.keras" in done.stderr
    assert b"Traceback" not in done.stderr


def test_characters_that_an_encoding_lacks_are_readable() -> None:
    streams.open_all()
    assert "✓ ÷ größe \udcff".encode("latin-1", streams.READABLE) == b"+ \xf7 gr\xf6\xdfe \\udcff"
    assert "✗ ÷ 5 µs".encode("ascii", streams.READABLE) == b"x / 5 us"


def test_a_pipe_that_is_full_for_a_moment_is_waited_for() -> None:
    reading, writing_end = os.pipe()
    os.set_blocking(writing_end, False)
    received: list[bytes] = []

    def read() -> None:
        time.sleep(0.2)
        while sum(map(len, received)) < 1_000_000:
            received.append(os.read(reading, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    with io.BufferedWriter(streams._Output(writing_end, "wb")) as stream:
        stream.write(b"x" * 1_000_000)
    reader.join(10)
    os.close(reading)
    assert sum(map(len, received)) == 1_000_000


def test_only_abandoned_scratch_folders_are_swept(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(outside)
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / f"{PREFIX}abandoned" / "inner").mkdir(parents=True)
    with scratch_folder(tmp_path, PREFIX) as living:
        sweep(tmp_path, PREFIX)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"outside", f"{PREFIX}link", f"{PREFIX}file", "other", living.name}
    assert (outside / "file").exists()
    assert not living.exists()


def test_temporary_files_of_a_run_are_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / f"{PREFIX}abandoned").mkdir()
    with temporary_files():
        (folder,) = tmp_path.iterdir()
        assert Path(tempfile.mkdtemp()).parent == folder == Path(os.environ["TMPDIR"])
        assert lasting_temporary_folder() == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert Path(tempfile.gettempdir()) == tmp_path


def test_a_killed_writer_leaves_nothing_beside_the_next_file(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from edgeopt.config.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as scratch:\n"
        "    scratch.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "report.json"
    subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(target) as scratch:
        scratch.write_text("whole")
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "whole"


def test_a_full_disk_names_the_file_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "models" / "int8.tflite"
    with pytest.raises(CannotRunError) as caught, writing(target, "choose another"), FULL.open("w") as file:
        file.write("x")
        file.flush()
    assert str(caught.value) == f"cannot write {target}: no space left\n  free space there, or choose another"
    assert caught.value.exit_code == 3

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StoreError, match="no space left for the store") as refused:
        Store(tmp_path / "store")
    assert refused.value.exit_code == 3


def test_a_run_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    from edgeopt.commands.optimize import run_folder

    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path / "given", whole=False):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path / "runs" / "default", whole=True) as folder:
        (folder / "models").mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".gitignore"]
    assert not (tmp_path / "given").exists()
    with run_folder(tmp_path / "runs" / "default", whole=True) as folder:
        (folder / "report.json").touch()
    assert [path.name for path in (tmp_path / "runs" / "default").iterdir()] == ["report.json"]
