"""One Ray cluster on loopback for all tests that need one: two nodes, each at an address of its own."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgeopt.recipe.plan import Built
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.selection import Selection
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.executors.choice import executing
from edgeopt.run.store import Store
from toy_cluster import node, token

HEAD, SECOND = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address and the token of a cluster with the nodes a and b, of two stages each."""
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    port = str(20000 + os.getpid() % 10000)
    with ExitStack() as cleanup:
        secret, home = token(), str(tmp_path_factory.getbasetemp() / "home")
        own = {"RAY_AUTH_TOKEN": secret, "EDGEOPT_HOME": home}
        head = ("--head", "--address", HEAD, "--port", port)
        cleanup.enter_context(node(*head, "--cpus", "2", name="a", **own))
        cleanup.enter_context(node(f"{HEAD}:{port}", "--address", SECOND, "--cpus", "2", name="b", **own))
        yield f"{HEAD}:{port}", secret


@pytest.fixture
def cluster(nodes: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the cluster, whose token is set."""
    address, secret = nodes
    monkeypatch.setenv("RAY_AUTH_TOKEN", secret)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return address


@pytest.fixture
def built_on(cluster: str, tmp_path: Path) -> Callable[..., tuple[list[Built], list[Event]]]:
    """Build a recipe on the cluster; returns the branches and the events."""

    def run(
        recipe: Path, on: str = f"ray:{cluster}", formats: tuple[str, ...] = ()
    ) -> tuple[list[Built], list[Event]]:
        events: list[Event] = []
        plan = make_plan(load_recipe(recipe, selection=Selection(formats=formats)))
        store = tmp_path / on.partition(":")[0]
        with executing(on, str(store), events.append):
            return build(plan, Store(store), events.append), events

    return run
