"""Progress of a run on a terminal, and its plain form elsewhere."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from edgeopt.cli.screen.live import Work, duration_text
from edgeopt.cli.screen.progress import Progress
from edgeopt.results import Event, Report

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
RUN = """
import sys, time
from edgeopt.cli.screen.progress import Progress
from edgeopt.results import Event

branches = int(sys.argv[1])
with Progress() as progress:
    def tell(branch, step, status, **more):
        progress(Event(branch=f"v{branch}.tflite", step=step, status=status, **more))
    for branch in range(branches):
        for step in ("convert", "quantize_tflite", "measure on host"):
            tell(branch, step, "planned")
    tell(0, "convert", "cached")
    tell(1, "convert", "started")
    tell(1, "convert", "done", seconds=2.0)
    tell(2, "convert", "started")
    tell(2, "convert", "failed", seconds=1.0, message="convert: no kernel for EXP\\ntraceback")
    tell(1, "quantize_tflite", "started")
    tell(1, "quantize_tflite", "note", message="trial 3 of 20: drop 0.5 %")
    print("shown", file=sys.stdout, flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Screen:
    """The parts of a terminal that rich needs: lines, a cursor, and erasing."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.tallest = 0

    def feed(self, text: str) -> None:
        for code, plain in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z])|([^\x1b]+)", text):
            if code:
                self._do(code)
            for sign in plain:
                self._put(sign)

    def _do(self, code: str) -> None:
        number, letter = code[2:-1], code[-1]
        if letter == "A":
            self.row -= int(number or 1)
            # Lines above the screen cannot be redrawn: a tree that is too tall would leave its head behind.
            assert self.row >= 0
        elif letter == "K":
            self.lines[self.row] = ""

    def _put(self, sign: str) -> None:
        if sign == "\r":
            self.column = 0
        elif sign == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
            self.tallest = max(self.tallest, self.row + 1)
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + sign + line[self.column + 1 :]
            self.column += 1

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""A shell starts what runs in its background with Ctrl-C ignored, and that is inherited."""


@contextmanager
def terminal(
    arguments: list[str], rows: int = 24, columns: int = 100, **more: str
) -> Iterator[tuple["subprocess.Popen[str]", Callable[[], str]]]:
    """A process whose stderr is a terminal, and a function that returns its output there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *arguments],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env=clean | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | more,
    )
    os.close(slave)
    written: list[bytes] = []

    def read() -> str:
        """All output until the process ends."""
        try:
            while piece := os.read(master, 65536):
                written.append(piece)
        except OSError:
            pass  # Linux reports the end of a terminal like this
        return b"".join(written).decode()

    try:
        yield process, read
    finally:
        process.kill()
        process.communicate()
        os.close(master)


def test_a_terminal_shows_a_tree() -> None:
    with terminal(["-c", RUN, "4", "0.6"]) as (process, read):
        written = read()
        assert process.wait() == 0
    screen = Screen()
    screen.feed(written.replace(SHOW, "").replace(HIDE, ""))
    lines = screen.text.splitlines()
    assert lines[0].startswith("3 of 12 steps, 1 cached, 1 failed, ")
    assert lines[0].endswith("finished")
    assert "├── · v0.tflite  =··" in lines
    assert "├── ▸ v1.tflite  ✓▸·  2 s" in lines
    running = next(line for line in lines if "quantize_tflite" in line)
    assert "━━━━━━━━━━━━" in running
    assert running.endswith("trial 3 of 20: drop 0.5 %")
    assert any(line.endswith("convert: no kernel for EXP") for line in lines)
    assert lines[-1].endswith("· v3.tflite  ···")
    # Drawn several times, at the same place.
    assert written.count("12 steps") >= 3
    assert screen.tallest <= len(lines) + 1
    assert written.rindex(HIDE) < written.rindex(SHOW)
    assert "\x1b[1;31m" in written or "\x1b[31m" in written


def test_a_small_screen_shows_what_is_under_way() -> None:
    with terminal(["-c", RUN, "120", "0.6"], rows=12, columns=60) as (process, read):
        written = read()
        assert process.wait() == 0
    screen = Screen()
    screen.feed(written.replace(SHOW, "").replace(HIDE, ""))
    assert screen.tallest <= 12
    lines = screen.text.splitlines()
    assert max(map(len, lines)) <= 60
    assert any("▸ v1.tflite" in line for line in lines)
    assert any("✗ v2.tflite" in line for line in lines)
    assert lines[-1].endswith("118 waiting")


def test_an_interrupted_run_gives_the_cursor_back() -> None:
    with terminal(["-c", RUN, "4", "30"]) as (process, read):
        assert process.stdout is not None
        assert process.stdout.readline() == "shown\n"
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        written = read()
        assert process.wait() != 0
    assert written.rindex(HIDE) < written.rindex(SHOW)
    assert "interrupted" in written


@pytest.mark.parametrize("wish", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}])
def test_plain_lines_where_they_are_wanted(wish: dict[str, str]) -> None:
    with terminal(["-c", RUN, "4", "0"], **wish) as (process, read):
        written = read().replace("\r\n", "\n")
        assert process.wait() == 0
    assert "\x1b" not in written
    assert written.splitlines() == [
        "=   cached  v0.tflite                convert",
        "✓    2.0 s  v1.tflite                convert",
        "✗    1.0 s  v2.tflite                convert: no kernel for EXP",
        "·     note  v1.tflite                quantize_tflite: trial 3 of 20: drop 0.5 %",
    ]


def test_plain_lines_where_there_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", RUN, "4", "0"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 4


@pytest.mark.slow
def test_a_real_run_on_a_terminal(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(optimize="{int8: {quantize: int8}}", latency="{min_runs: 5, min_seconds: 0}")
    command = ["-m", "edgeopt", "optimize", str(recipe), "--store", str(tmp_path / "store")]
    for number, cached in enumerate((False, True)):
        out = tmp_path / str(number)
        with terminal([*command, "--out", str(out)], columns=120) as (process, read):
            written = read()
            assert process.wait() == 0
            assert process.stdout is not None
            told = process.stdout.read()
        screen = Screen()
        screen.feed(written.replace(SHOW, "").replace(HIDE, ""))
        assert screen.lines[0].startswith("7 of 7 steps, 6 cached, " if cached else "7 of 7 steps, ")
        assert ("= int8.tflite   ====  cached" in screen.text) == cached
        assert "report: " in told
        assert "✓" not in told
        assert "int8.tflite" in (out / "run.log").read_text()
        report = Report.model_validate_json((out / "report.json").read_bytes())
        for row in report.results:
            assert row.artifact is not None
            assert row.artifact.breakdown is not None
            assert sum(row.artifact.breakdown.parts.values()) == row.artifact.size_bytes
            assert row.artifact.breakdown.layers[0].size_bytes > 100
            assert sum(one.n for one in row.classes) == 100
            right = sum(one.after for one in row.classes)
            assert right == round(100 * row.measurements["top1"].value)
        found = [found for row in report.results for found in row.findings]
        assert set(report.thumbnails) == {change.sample for each in found for change in each.samples}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_told_from_what_took_how_long() -> None:
    clock = Clock()
    work = Work(clock)

    def tell(branch: str, step: str, status: str, seconds: float = 0.0, message: str = "") -> None:
        told = {"branch": branch, "step": step, "status": status, "seconds": seconds, "message": message}
        work.update(Event.model_validate(told))

    for branch in "abcd":
        tell(branch, "convert", "planned")
        tell(branch, "measure", "planned")
    for branch in "abc":
        assert work.seconds_left() is None
        tell(branch, "convert", "done", seconds=10.0)
    # One conversion of usual duration, and four measurements as long as the longest step so far.
    assert work.seconds_left() == pytest.approx(50.0)
    tell("a", "measure", "done", seconds=2.0)
    assert work.seconds_left() == pytest.approx(10.0 + 3 * 2.0)
    clock.now = 100.0
    tell("b", "measure", "started")
    clock.now = 101.5
    assert work.seconds_left() == pytest.approx(10.0 + 2 * 2.0 + 0.5)
    tell("b", "measure", "note", message="epoch 1 of 4: loss 3")
    assert work.seconds_left() == pytest.approx(10.0 + 2 * 2.0 + 4.5)
    tell("b", "measure", "failed", message="no")
    tell("c", "measure", "failed", message="no")
    tell("d", "convert", "failed", message="no")
    assert work.seconds_left() is None


def test_names_are_text_and_control_nothing() -> None:
    work = Work()
    work.update(Event(branch="[red]a\x1b[2J\x07", step="s[/]\x1b[31m", status="started"))
    console = Console(width=80, force_terminal=False)
    with console.capture() as caught:
        console.print(work)
    assert "[red]a�[2J�" in caught.get()
    assert "s[/]�[31m" in caught.get()


def test_durations_as_text() -> None:
    assert [duration_text(seconds) for seconds in (0.4, 59.4, 61, 3700)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 01 min",
    ]
    assert [duration_text(seconds, rough=True) for seconds in (1, 43, 61, 100)] == [
        "5 s",
        "45 s",
        "1 min",
        "2 min",
    ]


def test_verbose_progress_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(verbose=True) as progress:
        progress(Event(branch="", step="", status="note", message="about the run"))
        progress(Event(branch="int8.onnx", step="quantize", status="started"))
        progress(Event(branch="int8.onnx", step="quantize", status="failed", message="quantize: no\nbecause"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "about the run"
    assert said[1].split() == ["▸", "started", "int8.onnx", "quantize"]
    assert said[2].startswith("✗") and said[2].endswith("quantize: no")
    assert said[3] == "    because"
