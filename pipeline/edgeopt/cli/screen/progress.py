"""Progress on stderr: a live tree on a terminal, plain lines in CI and in the log."""

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from edgeopt.results import Event

if TYPE_CHECKING:
    from rich.live import Live

    from edgeopt.cli.screen.live import Work

MARKS = {"done": "✓", "shared": "✓", "cached": "=", "failed": "✗", "note": "·"}
TIMES_A_SECOND = 4


def wants_lines() -> bool:
    """Whether plain lines are wanted: no terminal reads stderr, or whoever reads it asked for plain text."""
    plain = os.environ.get("CI") or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return bool(plain) or not sys.stderr.isatty()


class Progress:
    """Watches a run, and shows it as a tree or as lines."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.lines: list[str] = []
        self.under_way: dict[tuple[str, str], float] = {}
        self.work: Work | None = None
        self.live: Live | None = None

    def __enter__(self) -> "Progress":
        if not self.quiet and not wants_lines():
            from rich.console import Console
            from rich.live import Live

            from edgeopt.cli.screen.live import Work

            self.work = Work()
            self.live = Live(
                self.work,
                console=Console(stderr=True),
                refresh_per_second=TIMES_A_SECOND,
                redirect_stdout=False,
                vertical_overflow="crop",
            )
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.work is not None:
            stopped = "interrupted" if kind is KeyboardInterrupt else "stopped"
            self.work.over = "finished" if kind is None else stopped
        if self.live is not None:
            # Draws the last state, if there ever was one, and gives the terminal its cursor back.
            self.live.transient = self.work is None or not self.work.branches
            self.live.__exit__(kind, error, trace)
            self.live = None

    def __call__(self, event: Event) -> None:
        if self.work is not None:
            self.work.tell(event)
        if event.status == "planned":
            return
        key = (event.branch, event.step)
        if event.status == "started":
            self.under_way[key] = time.monotonic()
            return
        began = self.under_way.get(key)
        if event.status != "note":
            self.under_way.pop(key, None)
        seconds = event.seconds or (time.monotonic() - began if began is not None else 0.0)
        took = f"{seconds:6.1f} s" if event.status in ("done", "failed") else f"{event.status:>8}"
        line = f"{MARKS[event.status]} {took}  {event.branch:<24} {event.step}"
        if event.message and event.status in ("failed", "note", "shared"):
            line += f": {event.message.splitlines()[0].removeprefix(event.step + ': ')}"
        self.lines.append(line)
        if self.live is None and not self.quiet:
            typer.echo(line, err=True)

    def write_log(self, path: Path) -> None:
        """Keep everything that was shown."""
        path.write_text("\n".join(self.lines) + "\n", "utf-8")
