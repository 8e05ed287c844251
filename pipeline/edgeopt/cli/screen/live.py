"""What a run has done, does and has yet to do, as a tree that a terminal shows while it works."""

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
FEW = 3
"""Steps that must have taken their time before it is said how much is left."""
BAR = 12
SPARE = 2
"""Lines of the screen that are left free, so that the tree never scrolls."""
_PART = re.compile(r"\b(\d+) of (\d+)\b")


@dataclass
class Step:
    """One stage of a branch, or one measurement of it."""

    name: str
    status: str = "planned"
    began: float = 0.0
    seconds: float = 0.0
    said: str = ""

    def share(self) -> float | None:
        """How far it is, where the last thing it said tells: 'epoch 3 of 60'."""
        found = _PART.search(self.said)
        if found is None or not int(found[2]):
            return None
        return min(1.0, int(found[1]) / int(found[2]))


@dataclass
class Branch:
    """One artifact on its way."""

    name: str
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def status(self) -> str:
        found = {step.status for step in self.steps.values()}
        for status in ("failed", "started"):
            if status in found:
                return status
        if "planned" in found:
            return "planned"
        return "cached" if found == {"cached"} else "done"

    @property
    def running(self) -> list[Step]:
        return [step for step in self.steps.values() if step.status == "started"]

    @property
    def left(self) -> list[Step]:
        """What is still to be done; nothing after a failure."""
        if self.status == "failed":
            return []
        return [step for step in self.steps.values() if step.status in ("planned", "started")]


class Work:
    """All branches of a run. Told by one thread, drawn by another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        self.branches: dict[str, Branch] = {}
        self.over = ""
        """Set at the end: how it ended."""
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Take note of a piece of progress."""
        with self._lock:
            branch = self.branches.setdefault(event.branch, Branch(event.branch))
            step = branch.steps.setdefault(event.step, Step(event.step))
            if event.status == "note":
                step.said = event.message
                return
            if event.status == "started":
                step.began = self.clock()
            elif event.status in ("done", "failed"):
                step.seconds = event.seconds or (self.clock() - step.began if step.began else 0.0)
            if event.status == "failed":
                step.said = event.message
            step.status = event.status

    def seconds_left(self) -> float | None:
        """A guess: a step takes as long as those of its name took. None before that can be said."""
        steps = [step for branch in self.branches.values() for step in branch.steps.values()]
        taken: dict[str, list[float]] = {}
        for step in steps:
            if step.status == "done":
                taken.setdefault(step.name, []).append(step.seconds)
        known = [seconds for several in taken.values() for seconds in several]
        to_come = [step for branch in self.branches.values() for step in branch.left]
        if len(known) < FEW or not to_come:
            return None
        usual = {name: sum(several) / len(several) for name, several in taken.items()}
        total = sum(self._left_of(step, usual.get(step.name, sum(known) / len(known))) for step in to_come)
        return total / max(1, sum(step.status == "started" for step in to_come))

    def _left_of(self, step: Step, usual: float) -> float:
        if step.status != "started":
            return usual
        elapsed, share = self.clock() - step.began, step.share()
        return elapsed * (1 - share) / share if share else max(0.0, usual - elapsed)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield self.tree(options.max_height if options.max_height else console.height)

    def tree(self, height: int) -> Tree:
        """The tree, with as many branches as a screen of ``height`` lines holds: those under way first."""
        room = max(1, height - SPARE - 1)
        tree = Tree(self._summary(), guide_style="dim")
        everything = list(self.branches.values())
        shown = everything
        if sum(map(_lines, everything)) > room:
            busy = [branch for branch in everything if branch.status == "started"]
            failed = [branch for branch in everything if branch.status == "failed"]
            shown = []
            for branch in [*busy, *reversed(failed)]:
                if sum(map(_lines, shown)) + _lines(branch) < room:
                    shown.append(branch)
        width = max((len(printable(branch.name)) for branch in shown), default=0)
        for branch in shown:
            node = tree.add(_branch(branch, width))
            for text in self._details(branch):
                node.add(text)
        if len(shown) < len(everything):
            tree.add(Text(_counted([b for b in everything if b not in shown]), "dim", no_wrap=True))
        return tree

    def _summary(self) -> Text:
        steps = [step for branch in self.branches.values() for step in branch.steps.values()]
        finished = sum(step.status in ("done", "shared", "cached", "failed") for step in steps)
        parts = [f"{finished} of {len(steps)} steps" if steps else "starting"]
        for status, word in (("cached", "cached"), ("failed", "failed")):
            if number := sum(step.status == status for step in steps):
                parts.append(f"{number} {word}")
        parts.append(f"{spoken(self.clock() - self.began)}")
        left = None if self.over else self.seconds_left()
        if left is not None:
            parts.append(f"about {spoken(left, rough=True)} left")
        return Text(", ".join([*parts, *([self.over] if self.over else [])]), "bold", no_wrap=True)

    def _details(self, branch: Branch) -> Iterator[Text]:
        for step in branch.steps.values():
            if step.status == "started":
                elapsed = self.clock() - step.began
                line = Text(f"{printable(step.name)}  {spoken(elapsed)}", no_wrap=True, overflow="ellipsis")
                share = step.share()
                if share is not None:
                    full = round(share * BAR)
                    line.append("  ").append("━" * full, "cyan").append("━" * (BAR - full), "dim")
                    if share and elapsed > FEW:
                        line.append(f"  about {spoken(elapsed * (1 - share) / share, rough=True)} left")
                if step.said:
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
        line.append(f"  {spoken(seconds)}", "dim")
    return line


def _counted(branches: list[Branch]) -> str:
    """How many are how far, of the branches that there is no room for."""
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
    first = step.said.splitlines()[0] if step.said else ""
    return printable(first.removeprefix(f"{step.name}: "))


def spoken(seconds: float, *, rough: bool = False) -> str:
    """A time as people say it; ``rough``: of a guess, whose last digits mean nothing."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s" if rough else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{round(seconds / 60)} min" if rough else f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
