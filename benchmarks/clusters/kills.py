"""Builds and searches while processes of their stages and of the workers are killed at random."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from clusters.nodes import Builds, built, cluster
from edgeopt.commands.search import Found, search
from edgeopt.errors import CannotRunError
from edgeopt.recipe.resolve import find_recipe
from edgeopt.results import Event

RESUMES = 3
"""Commands after the last kill, until all is there: a stage that was lost three times has failed before."""


class Once(NamedTuple):
    """The outcome of a command: what must be as on one machine, whether it is whole, and stages repeated."""

    digests: Mapping[str, Any]
    whole: bool
    repeated: int


class Case(NamedTuple):
    """What is run, and the shortest and longest time between two kills, relative to a run on one machine."""

    title: str
    run: Callable[[str, Path], Once]
    pause: tuple[float, float]


def _recipe(name: str, *formats: str) -> Callable[[str, Path], Once]:
    def run(on: str, place: Path) -> Once:
        builds, moments = built(find_recipe(name), on, place, formats)
        repeated = _repeated([event for _, event in moments])
        return Once(_digests(builds), not any(each.failure for each in builds), len(repeated))

    return run


def _digests(builds: Builds) -> dict[str, list[str]]:
    return {each.branch.name: [*(step.digest for step in each.steps), each.failure] for each in builds}


def _search(on: str, place: Path) -> Once:
    events: list[Event] = []
    try:
        found = _found(on, place, events.append)
    except CannotRunError:  # a stage was lost three times: the journal has the trials before
        return Once({}, False, len(_repeated(events)))
    tried = {
        str(each.number): (each.status, each.options, each.objectives, each.place)
        for each in found.result.trials
    }
    artifacts = {
        f"{target} {row.variant}": row.artifact.digest
        for target, report in found.reports.items()
        for row in report.results
        if row.artifact is not None
    }
    # A row of its reports may be lost, which the next command builds; a trial that failed would stay.
    lost = any(row.status != "ok" for report in found.reports.values() for row in report.results)
    return Once(tried | artifacts, bool(artifacts) and not lost, len(_repeated(events)))


def _found(on: str, place: Path, watch: Callable[[Event], None]) -> Found:
    return search(
        "digits-keras",
        under=("top1 max_drop 2 %",),
        over=("bits=[4, 8]", "calibrator=[minmax, mse]", "per_channel=[true, false]"),
        minimize=("size_bytes",),
        formats=("tflite",),
        overrides=(
            "latency={min_runs: 2, min_seconds: 0, max_seconds: 1}",
            "data.validation={uses: digits, with: {part: train, limit: 256}}",
        ),
        trials=8,
        out=place / "search",
        store=place / "store",
        on=on,
        watch=watch,
    )


def _repeated(events: list[Event]) -> list[Event]:
    return [event for event in events if "it runs again" in event.message and not event.branch]


CASES = {
    "digits": Case("digits-keras as TFLite and ONNX", _recipe("digits-keras", "tflite", "onnx"), (0.02, 0.1)),
    "kws": Case(
        "mlperf-tiny-kws as TFLite and ONNX", _recipe("mlperf-tiny-kws", "tflite", "onnx"), (0.02, 0.1)
    ),
    "search": Case("a search of 8 trials from digits-keras", _search, (0.05, 0.2)),
}


def compare(name: str, kills: int, folder: Path) -> None:
    """Run a case again and again, each time from an empty store, until all kills are done."""
    case = CASES[name]
    done = {"stage": 0, "worker": 0}
    repeated = runs = commands = different = 0
    with cluster("a", "b") as on:
        started = time.monotonic()
        wanted = case.run("local", folder / f"{name}-local")
        seconds = time.monotonic() - started
        pause = (case.pause[0] * seconds, case.pause[1] * seconds)
        while sum(done.values()) < kills:
            runs += 1
            ended = threading.Event()
            killer = threading.Thread(target=_kill, args=(done, kills, pause, ended))
            killer.start()
            try:
                left = RESUMES
                while left:
                    left -= not killer.is_alive()
                    once = case.run(on, folder / f"{name}-{runs}")
                    repeated, commands = repeated + once.repeated, commands + 1
                    if once.whole:
                        break
            finally:
                ended.set()
                killer.join()
            different += once.digests != wanted.digests
            for each in wanted.digests.keys() | once.digests.keys():
                if (one := wanted.digests.get(each)) != (other := once.digests.get(each)):
                    print(f"  {each}: {one} here, {other} there")
    print(f"{case.title}, {runs} times on two nodes:")
    print(
        f"  {done['stage']} processes of stages and {done['worker']} workers killed, "
        f"{repeated} stages repeated, {commands - runs} commands resumed"
    )
    print(f"  {different} of {runs} differ from one machine (goal: 0)", flush=True)


def _kill(done: dict[str, int], kills: int, pause: tuple[float, float], ended: threading.Event) -> None:
    """Kill a random process of a stage, or its worker, every few seconds."""
    draw = random.Random(sum(done.values()))
    while sum(done.values()) < kills and not ended.wait(draw.uniform(*pause)):
        kind = draw.choice([*done])
        with contextlib.suppress(psutil.Error, IndexError):  # it has just ended; none runs
            draw.choice([*_victims(kind)]).kill()
            done[kind] += 1


def _victims(kind: str) -> Iterator[psutil.Process]:
    for worker in psutil.Process().children(recursive=True):
        if worker.name().startswith("ray::_work"):
            stages = (each for each in worker.children() if "spawn_main" in " ".join(each.cmdline()))
            yield from stages if kind == "stage" else [worker]
