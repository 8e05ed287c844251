"""Progress on stderr: a live line on a terminal, plain lines in CI and in the log."""

import sys
import time
from pathlib import Path
from types import TracebackType

import typer

from edgeopt.results import Event

MARKS = {"done": "✓", "cached": "=", "failed": "✗", "note": "·"}


class Progress:
    """Watches a run. On a terminal, one line shows what is under way and for how long."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet
        self.lines: list[str] = []
        self.under_way: dict[tuple[str, str], float] = {}
        self.status: object | None = None

    def __enter__(self) -> "Progress":
        if self.live:
            from rich.console import Console

            self.status = Console(stderr=True).status("starting")
            self.status.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status is not None:
            self.status.__exit__(kind, error, trace)  # type: ignore[attr-defined]
            self.status = None

    def __call__(self, event: Event) -> None:
        key = (event.branch, event.step)
        if event.status == "started":
            self.under_way[key] = time.monotonic()
            self._show_under_way()
            return
        began = self.under_way.pop(key, None)
        seconds = event.seconds or (time.monotonic() - began if began is not None else 0.0)
        took = f"{seconds:6.1f} s" if event.status in ("done", "failed") else f"{event.status:>8}"
        line = f"{MARKS[event.status]} {took}  {event.branch:<24} {event.step}"
        if event.message and event.status in ("failed", "note"):
            line += f": {event.message.splitlines()[0].removeprefix(event.step + ': ')}"
        self.lines.append(line)
        if not self.quiet:
            self._print(line)
        self._show_under_way()

    def write_log(self, path: Path) -> None:
        """Keep everything that was shown."""
        path.write_text("\n".join(self.lines) + "\n", "utf-8")

    def _print(self, line: str) -> None:
        if self.status is not None:
            self.status.console.print(line, markup=False, highlight=False)  # type: ignore[attr-defined]
        else:
            typer.echo(line, err=True)

    def _show_under_way(self) -> None:
        if self.status is not None:
            what = ", ".join(f"{branch}: {step}" for branch, step in self.under_way)
            self.status.update(what or "working")  # type: ignore[attr-defined]
