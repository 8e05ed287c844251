"""The live progress tree of a run: finished, running and planned steps."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from rich.tree import Tree

from edgeopt.reports.plain import printable
from edgeopt.results import Event

MARKS = {"planned": "·", "started": "▸", "done": "✓", "shared": "✓", "cached": "=", "failed": "✗"}
STYLES = {
    "planned": "dim",
    "started": "cyan",
    "done": "green",
    "shared": "green",
    "cached": "dim",
    "failed": "red",
}
MIN_TIMED_STEPS = 3
"""Finished steps required for an estimate of the remaining time."""
MIN_TIMED_SECONDS = 3
"""Elapsed time of a step required for an estimate of its remaining time."""
BAR_WIDTH = 12
SPARE_LINES = 2
"""Screen lines left free, so that the tree never scrolls."""
_COUNT = re.compile(r"\b(\d+) of (\d+)\b")


@dataclass
class Step:
    """One stage or measurement of a branch."""

    name: str
    status: str = "planned"
    started_at: float = 0.0
    seconds: float = 0.0
    message: str = ""

    def share(self) -> float | None:
        """Completed fraction, if its last message contains a count such as 'epoch 3 of 60'."""
        match = _COUNT.search(self.message)
        if match is None or not int(match[2]):
            return None
        return min(1.0, int(match[1]) / int(match[2]))


@dataclass
class Branch:
    """The steps of one artifact."""

    name: str
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def status(self) -> str:
        statuses = {step.status for step in self.steps.values()}
        for status in ("failed", "started"):
            if status in statuses:
                return status
        if "planned" in statuses:
            return "planned"
        return "cached" if statuses == {"cached"} else "done"

    @property
    def running(self) -> list[Step]:
        return [step for step in self.steps.values() if step.status == "started"]

    @property
    def remaining(self) -> list[Step]:
        """Planned and running steps; none after a failure."""
        if self.status == "failed":
            return []
        return [step for step in self.steps.values() if step.status in ("planned", "started")]


class Work:
    """All branches of a run; updated by one thread, drawn by another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started_at = clock()
        self.branches: dict[str, Branch] = {}
        self.outcome = ""
        """Set when the run ends."""
        self._lock = threading.Lock()

    def update(self, event: Event) -> None:
        """Apply one progress event."""
        with self._lock:
            branch = self.branches.setdefault(event.branch, Branch(event.branch))
            step = branch.steps.setdefault(event.step, Step(event.step))
            if event.status == "note":
                step.message = event.message
                return
            if event.status == "started":
                step.started_at = self.clock()
            elif event.status in ("done", "failed"):
                step.seconds = event.seconds or (self.clock() - step.started_at if step.started_at else 0.0)
            if event.status == "failed":
                step.message = event.message
            step.status = event.status

    def seconds_left(self) -> float | None:
        """Estimate from the mean duration of finished steps by name; None while too few are known."""
        steps = [step for branch in self.branches.values() for step in branch.steps.values()]
        durations: dict[str, list[float]] = {}
        for step in steps:
            if step.status == "done":
                durations.setdefault(step.name, []).append(step.seconds)
        known = [seconds for several in durations.values() for seconds in several]
        remaining = [step for branch in self.branches.values() for step in branch.remaining]
        if len(known) < MIN_TIMED_STEPS or not remaining:
            return None
        means = {name: sum(several) / len(several) for name, several in durations.items()}
        mean = sum(known) / len(known)
        total = sum(self._seconds_left_of(step, means.get(step.name, mean)) for step in remaining)
        return total / max(1, sum(step.status == "started" for step in remaining))

    def _seconds_left_of(self, step: Step, mean: float) -> float:
        if step.status != "started":
            return mean
        elapsed, share = self.clock() - step.started_at, step.share()
        return elapsed * (1 - share) / share if share else max(0.0, mean - elapsed)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield self.tree(options.max_height if options.max_height else console.height)

    def tree(self, height: int) -> Tree:
        """The tree, cut to a screen of ``height`` lines: running branches first, then failed ones."""
        room = max(1, height - SPARE_LINES - 1)
        tree = Tree(self._summary(), guide_style="dim")
        branches = list(self.branches.values())
        shown = branches
        if sum(map(_lines, branches)) > room:
            running = [branch for branch in branches if branch.status == "started"]
            failed = [branch for branch in branches if branch.status == "failed"]
            shown = []
            for branch in [*running, *reversed(failed)]:
                if sum(map(_lines, shown)) + _lines(branch) < room:
                    shown.append(branch)
        width = max((len(printable(branch.name)) for branch in shown), default=0)
        for branch in shown:
            node = tree.add(_branch(branch, width))
            for text in self._details(branch):
                node.add(text)
        if len(shown) < len(branches):
            tree.add(Text(_counts([b for b in branches if b not in shown]), "dim", no_wrap=True))
        return tree

    def _summary(self) -> Text:
        steps = [step for branch in self.branches.values() for step in branch.steps.values()]
        finished = sum(step.status in ("done", "shared", "cached", "failed") for step in steps)
        parts = [f"{finished} of {len(steps)} steps" if steps else "starting"]
        for status in ("cached", "failed"):
            if number := sum(step.status == status for step in steps):
                parts.append(f"{number} {status}")
        parts.append(duration_text(self.clock() - self.started_at))
        left = None if self.outcome else self.seconds_left()
        if left is not None:
            parts.append(f"about {duration_text(left, rough=True)} left")
        return Text(", ".join([*parts, *([self.outcome] if self.outcome else [])]), "bold", no_wrap=True)

    def _details(self, branch: Branch) -> Iterator[Text]:
        for step in branch.steps.values():
            if step.status == "started":
                elapsed = self.clock() - step.started_at
                title = f"{printable(step.name)}  {duration_text(elapsed)}"
                line = Text(title, no_wrap=True, overflow="ellipsis")
                share = step.share()
                if share is not None:
                    full = round(share * BAR_WIDTH)
                    line.append("  ").append("━" * full, "cyan").append("━" * (BAR_WIDTH - full), "dim")
                    if share and elapsed > MIN_TIMED_SECONDS:
                        left = duration_text(elapsed * (1 - share) / share, rough=True)
                        line.append(f"  about {left} left")
                if step.message:
                    line.append(f"  {_one_line(step)}", "dim")
                yield line
            elif step.status == "failed":
                yield Text(
                    f"{printable(step.name)}: {_one_line(step)}", "red", no_wrap=True, overflow="ellipsis"
                )


def _lines(branch: Branch) -> int:
    return 1 + sum(step.status in ("started", "failed") for step in branch.steps.values())


def _branch(branch: Branch, width: int) -> Text:
    status = branch.status
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{MARKS[status]} ", STYLES[status]).append(printable(branch.name).ljust(width))
    line.append("  ")
    for step in branch.steps.values():
        line.append(MARKS[step.status], STYLES[step.status])
    seconds = sum(step.seconds for step in branch.steps.values())
    if status == "cached":
        line.append("  cached", "dim")
    elif seconds:
        line.append(f"  {duration_text(seconds)}", "dim")
    return line


def _counts(branches: list[Branch]) -> str:
    """The number of hidden branches by status."""
    words = {
        "started": "more under way",
        "planned": "waiting",
        "done": "done",
        "cached": "cached",
        "failed": "failed",
    }
    counts = {status: sum(branch.status == status for branch in branches) for status in words}
    return ", ".join(f"{number} {words[status]}" for status, number in counts.items() if number)


def _one_line(step: Step) -> str:
    first = step.message.splitlines()[0] if step.message else ""
    return printable(first.removeprefix(f"{step.name}: "))


def duration_text(seconds: float, *, rough: bool = False) -> str:
    """A duration as text; ``rough`` rounds it, for estimates."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s" if rough else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{round(seconds / 60)} min" if rough else f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
