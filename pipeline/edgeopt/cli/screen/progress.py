"""Progress on stderr: a live tree on a terminal, plain lines in CI and in the log."""

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from edgeopt.cli.process import interruption
from edgeopt.config.files import write_text, writing
from edgeopt.results import Event

if TYPE_CHECKING:
    from rich.live import Live

    from edgeopt.cli.screen.live import Work

MARKS = {"done": "✓", "shared": "✓", "cached": "=", "failed": "✗", "note": "·"}
REFRESHES_PER_SECOND = 4


def plain_output() -> bool:
    """Whether to print plain lines: stderr is not a terminal, or the environment requests plain text."""
    plain = os.environ.get("CI") or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return bool(plain) or not sys.stderr.isatty()


class Progress:
    """Receives the progress events of a run and shows them as a tree or as lines."""

    def __init__(self, *, quiet: bool = False, kept: bool = True, verbose: bool = False) -> None:
        """``kept``: whether the results of steps remain after the command ends.

        ``verbose``: plain lines, also when a step starts, with whole messages.
        """
        self.quiet = quiet
        self.verbose = verbose
        self.kept = kept
        self.lines: list[str] = []
        self.start_times: dict[tuple[str, str], float] = {}
        self.work: Work | None = None
        self.live: Live | None = None

    def __enter__(self) -> "Progress":
        if not self.quiet and not self.verbose and not plain_output():
            from rich.console import Console
            from rich.live import Live

            from edgeopt.cli.screen.live import Work

            self.work = Work()
            self.live = Live(
                self.work,
                console=Console(stderr=True),
                refresh_per_second=REFRESHES_PER_SECOND,
                redirect_stdout=False,
                vertical_overflow="crop",
            )
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.work is not None:
            aborted = "interrupted" if kind is not None and issubclass(kind, KeyboardInterrupt) else "stopped"
            self.work.outcome = "finished" if kind is None else aborted
        if self.live is not None:
            # Draws the final state, unless nothing was ever shown, and restores the cursor.
            self.live.transient = self.work is None or not self.work.branches
            self.live.__exit__(kind, error, trace)
            self.live = None

    def say(self, text: str) -> None:
        """Show a message about the whole run."""
        self.lines.append(text)
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            typer.echo(text, err=True)

    def __call__(self, event: Event) -> None:
        if not event.branch:
            self.say(event.message)
            return
        if self.work is not None:
            self.work.update(event)
        if event.status == "planned":
            return
        key = (event.branch, event.step)
        if self.kept and event.status in ("done", "shared", "cached"):
            interruption.keep_step(*key)
        if event.status == "started":
            self.start_times[key] = time.monotonic()
            if self.verbose:
                self._show(f"▸  started  {event.branch:<24} {event.step}")
            return
        started_at = self.start_times.get(key)
        if event.status != "note":
            self.start_times.pop(key, None)
        seconds = event.seconds or (time.monotonic() - started_at if started_at is not None else 0.0)
        column = f"{seconds:6.1f} s" if event.status in ("done", "failed") else f"{event.status:>8}"
        line = f"{MARKS[event.status]} {column}  {event.branch:<24} {event.step}"
        if event.message and event.status in ("failed", "note", "shared"):
            first, *others = event.message.splitlines()
            line += f": {first.removeprefix(event.step + ': ')}"
            line = "\n    ".join([line, *others]) if self.verbose else line
        self._show(line)

    def _show(self, line: str) -> None:
        self.lines.append(line)
        if self.live is None and not self.quiet:
            typer.echo(line, err=True)

    def write_log(self, path: Path) -> None:
        """Write all lines that were shown to a file.

        Raises:
            UsageError: the file is not writable.
            CannotRunError: the disk is full.
        """
        with writing(path, "choose another folder with --out DIR"):
            write_text(path, "\n".join(self.lines) + "\n")
