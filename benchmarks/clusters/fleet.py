"""A simulated fleet: many recipes, nodes and devices, with times and sizes that are measured here first.

Discrete events: a command submits the first steps of its branches, a step takes a slot of a node, fetches
what the node lacks, runs, and stores its result, which the command fetches. When all branches are built, each
device runs their jobs, one at a time. The store is one link, which passes one file at a time.
"""

import heapq
import itertools
import os
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import edgeopt
from clusters.nodes import built
from edgeopt.recipe.resolve import find_recipe
from edgeopt.run.store import Store

RECIPE = "digits-keras"
RECIPES, VARIANTS, DEVICES = 1000, 8, 20
COMMANDS = 50
"""Commands that run at a time."""
SLOTS = 2
"""Stages that a node runs at a time."""
OVERHEAD = 0.026
"""Seconds of a stage beyond a local one, as the part ``overhead`` measures."""
LINK = 125e6
"""Bytes per second of the store: 1 Gbit/s. An assumption, as is the number of commands."""
JOB_SECONDS = 5.0
"""Of a job on a board: an assumption, as in the part ``devices``."""


class Step(NamedTuple):
    """A stage: its key within the recipe, and what was measured."""

    key: str
    seconds: float
    size: int


class Measured(NamedTuple):
    """The branches of a recipe, and a job on a device."""

    branches: list[list[Step]]
    job_size: int


class Fleet(NamedTuple):
    """What the recipes run on."""

    nodes: int
    boards: int = 1
    """Of each device."""
    larger: int = 1
    """How many times as large as measured the files are."""


FLEETS = (Fleet(1), Fleet(4), Fleet(16), Fleet(16, 4), Fleet(64, 16), Fleet(64, 16, 1000))


class Clock:
    """Simulated time, and processes: generators of seconds to wait, or of what to wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), call))

    def go(self, process: "Process") -> None:
        """Run a process up to where it has to wait."""
        for need in process:
            if isinstance(need, float):
                self.after(need, partial(self.go, process))
                return
            if not need.take(partial(self.go, process)):
                return

    def run(self) -> None:
        """Run until nothing happens any more."""
        while self._events:
            self.now, _, call = heapq.heappop(self._events)
            call()


class Resource:
    """Something that ``count`` processes can have at a time, in the order in which they ask."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock, self.count, self.free = clock, count, count
        self.busy = 0.0
        """Seconds, of all together."""
        self._waiting: deque[Callable[[], None]] = deque()
        self._since = 0.0

    def take(self, resume: Callable[[], None]) -> bool:
        """Whether it is free; otherwise, the process is resumed when it has it."""
        self._account()
        if self.free:
            self.free -= 1
            return True
        self._waiting.append(resume)
        return False

    def release(self) -> None:
        """Give it to the next one."""
        self._account()
        if self._waiting:
            self.clock.after(0.0, self._waiting.popleft())
        else:
            self.free += 1

    def _account(self) -> None:
        self.busy += (self.count - self.free) * (self.clock.now - self._since)
        self._since = self.clock.now


class Moment:
    """Something that happens after ``arrivals``; processes wait for it."""

    def __init__(self, clock: Clock, arrivals: int = 1) -> None:
        self.clock, self.missing = clock, arrivals
        self._waiting: list[Callable[[], None]] = []

    def take(self, resume: Callable[[], None]) -> bool:
        """Whether it has happened; otherwise, the process is resumed then."""
        if self.missing:
            self._waiting.append(resume)
        return not self.missing

    def arrive(self) -> None:
        """One of the arrivals."""
        self.missing -= 1
        for resume in self._waiting if not self.missing else ():
            self.clock.after(0.0, resume)


Process = Iterator[float | Resource | Moment]


class Simulation:
    """All recipes on a fleet."""

    def __init__(self, measured: Measured, fleet: Fleet) -> None:
        self.measured = measured
        self.clock = Clock()
        self.slots = Resource(self.clock, fleet.nodes * SLOTS)
        self.commands = Resource(self.clock, COMMANDS)
        self.link = Resource(self.clock, 1)
        self.devices = [Resource(self.clock, fleet.boards) for _ in range(DEVICES)]
        self.bytes = 0
        self._nodes = itertools.cycle(range(fleet.nodes))
        self._has: dict[int, set[tuple[int, str]]] = defaultdict(set)
        """The entries that each node has."""
        branches = itertools.islice(itertools.cycle(measured.branches), VARIANTS)
        # The variants beyond those that were measured are like them, but share only the loading of the model.
        self.branches = [
            [
                Step(f"{step.key} {number if place else 0}", step.seconds, step.size * fleet.larger)
                for place, step in enumerate(branch)
            ]
            for number, branch in enumerate(branches)
        ]

    def run(self) -> float:
        """Seconds until everything is measured."""
        for number in range(RECIPES):
            self.clock.go(self.command(number))
        self.clock.run()
        return self.clock.now

    def command(self, number: int) -> Process:
        """Build all branches, then measure on all devices."""
        yield self.commands
        built, made = Moment(self.clock, len(self.branches)), dict[str, Moment]()
        for branch in self.branches:
            self.clock.go(self.branch(number, branch, made, built))
        yield built
        measured = Moment(self.clock, len(self.devices))
        for device in self.devices:
            self.clock.go(self.jobs(device, measured))
        yield measured
        self.commands.release()

    def branch(self, number: int, branch: list[Step], made: dict[str, Moment], built: Moment) -> Process:
        """Make the steps of a branch that no other one of the recipe makes."""
        before: Step | None = None
        for step in branch:
            if step.key in made:
                yield made[step.key]
            else:
                made[step.key] = Moment(self.clock)
                yield self.slots
                node = next(self._nodes)
                if before is not None and (number, before.key) not in self._has[node]:
                    self._has[node].add((number, before.key))
                    yield from self.transfer(before.size)
                yield step.seconds + OVERHEAD
                self._has[node].add((number, step.key))
                yield from self.transfer(step.size)
                self.slots.release()
                yield from self.transfer(step.size)  # to the command
                made[step.key].arrive()
            before = step
        built.arrive()

    def jobs(self, device: Resource, measured: Moment) -> Process:
        """Measure all branches on a device, one after the other; their files go to its node."""
        for branch in self.branches:
            yield device
            yield from self.transfer(branch[-1].size)
            yield JOB_SECONDS
            device.release()
            yield from self.transfer(2 * self.measured.job_size)
        measured.arrive()

    def transfer(self, size: int) -> Process:
        """A file on its way to or from the store."""
        self.bytes += size
        yield self.link
        yield size / LINK
        self.link.release()


def measure(folder: Path) -> Measured:
    """Build and measure a recipe on this machine, from an empty store."""
    place = folder / "of-fleet"
    builds, _ = built(find_recipe(RECIPE), "local", place)
    entries = {entry.key: entry for entry in Store(place).entries()}
    branches = []
    for each in builds:
        keys = [
            step.model.path.relative_to(place / "objects").parts[1] for step in each.steps if each.complete
        ]
        found = [entries[key] for key in keys]
        branches.append([Step(entry.key, entry.meta["seconds"], entry.size_bytes) for entry in found])
    edgeopt.optimize(find_recipe(RECIPE), out=folder / "fleet", store=place)
    jobs = [entry.size_bytes for entry in Store(place).entries() if "measurement" in entry.meta]
    return Measured([branch for branch in branches if branch], int(statistics.median(jobs)))


def report(folder: Path) -> None:
    """Print the times that were measured, and what becomes of them."""
    measured = measure(folder)
    steps = {step.key: step for branch in measured.branches for step in branch}
    print(
        f"{RECIPE}, measured here at a load of {os.getloadavg()[0]:.0f}: {len(measured.branches)} branches "
        f"of {len(steps)} steps, {sum(step.seconds for step in steps.values()):.0f} s and "
        f"{sum(step.size for step in steps.values()):,} B"
    )
    print(
        f"{RECIPES:,} recipes x {VARIANTS} variants x {DEVICES} devices, {COMMANDS} commands at a time, "
        f"{SLOTS} stages on a node, {JOB_SECONDS:g} s for a job (simulated):"
    )
    for fleet in FLEETS:
        simulation = Simulation(measured, fleet)
        seconds = simulation.run()
        busy = {
            "slots": simulation.slots.busy / seconds / simulation.slots.count,
            "boards": sum(each.busy for each in simulation.devices) / seconds / DEVICES / fleet.boards,
            "store": simulation.link.busy / seconds,
        }
        shares = ", ".join(f"{name} {share:.0%}" for name, share in busy.items())
        print(
            f"  {fleet.nodes:3} nodes, {fleet.boards:2} boards of each device, files x {fleet.larger}: "
            f"{seconds / 3600:.1f} h; "
            f"busy: {shares}; {simulation.bytes / 1e9:.1f} GB through the store, "
            f"{simulation.bytes / seconds / 1e6:.2f} MB/s",
            flush=True,
        )
