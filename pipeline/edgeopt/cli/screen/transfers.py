"""Progress of bytes that come or go, on stderr."""

import sys
import time
from types import TracebackType

import typer


def shown(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


class Transfer:
    """A bar on a terminal; elsewhere one line at the beginning and one at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.total = 0
        self.done = 0
        self.began = time.monotonic()
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
            seconds = time.monotonic() - self.began
            typer.echo(f"  {shown(self.done)} in {seconds:.1f} s", err=True)

    def say(self, text: str) -> None:
        """One line about what is going on."""
        typer.echo(f"  {text}", err=True)

    def begin(self, title: str, total: int) -> None:
        """From now on ``total`` bytes move."""
        self.total, self.began = total, time.monotonic()
        if not self.live:
            typer.echo(f"{title}: {shown(total)}", err=True)
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
        """``count`` more bytes have moved."""
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, advance=count)  # type: ignore[attr-defined]
