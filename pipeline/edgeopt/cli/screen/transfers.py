"""Progress of uploads and downloads on stderr."""

import sys
import time
from types import TracebackType

import typer


def size_text(size: int) -> str:
    """A number of bytes as text."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


class Transfer:
    """A progress bar on a terminal; elsewhere a line at the start and one at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.total = 0
        self.done = 0
        self.started_at = time.monotonic()
        self.live = sys.stderr.isatty()
        self.bar: object | None = None
        self.task: object | None = None

    def __enter__(self) -> "Transfer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()  # type: ignore[attr-defined]
        elif self.total and error is None:
            seconds = time.monotonic() - self.started_at
            typer.echo(f"  {size_text(self.done)} in {seconds:.1f} s", err=True)

    def say(self, text: str) -> None:
        """Print one line of progress."""
        typer.echo(f"  {text}", err=True)

    def begin(self, title: str, total: int) -> None:
        """Start a transfer of ``total`` bytes."""
        self.total, self.started_at = total, time.monotonic()
        if not self.live:
            typer.echo(f"{title}: {size_text(total)}", err=True)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        bar.start()
        self.bar, self.task = bar, bar.add_task(title, total=total)

    def advance(self, count: int) -> None:
        """Record ``count`` more transferred bytes; a negative count takes bytes of a failed attempt back."""
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, advance=count)  # type: ignore[attr-defined]
