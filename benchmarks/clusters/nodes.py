"""A cluster on loopback, and builds on it."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from edgeopt.recipe.plan import Built
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.selection import Selection
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.executors.choice import executing
from edgeopt.run.store import open_store

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import toy_cluster  # noqa: E402 - it is beside the tests that use it

Builds: TypeAlias = list[Built]
Moment: TypeAlias = tuple[float, Event]
PORT = 26479


def built(
    recipe: Path, on: str, place: Path | str, formats: tuple[str, ...] = ()
) -> tuple[Builds, list[Moment]]:
    """Build a recipe; returns its branches, and its events with their times."""
    moments: list[Moment] = []
    plan = make_plan(load_recipe(recipe, selection=Selection(formats=formats)))

    def watch(event: Event) -> None:
        moments.append((time.monotonic(), event))

    with executing(on, str(place), watch):
        return build(plan, open_store(place), watch), moments


@contextlib.contextmanager
def cluster(*names: str, devices: int = 0, **variables: str) -> Iterator[str]:
    """The address of a cluster with nodes of these names, of two stages each.

    Args:
        devices: of each node, called ``board1`` and so on.
        variables: of the environment of its nodes.
    """
    os.environ["RAY_AUTH_TOKEN"] = toy_cluster.token()
    os.environ.pop("RAY_ADDRESS", None)
    head = f"127.0.0.2:{PORT}"
    with contextlib.ExitStack() as cleanup:
        for number, name in enumerate(names):
            joining = [head] if number else ["--head", "--port", str(PORT)]
            options = ["--address", f"127.0.0.{number + 2}", "--cpus", "2"]
            for board in range(number * devices, (number + 1) * devices):
                options += ["--device", f"board{board + 1}"]
            cleanup.enter_context(toy_cluster.node(*joining, *options, name=name, **variables))
        yield f"ray:{head}"
