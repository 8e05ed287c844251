"""What the nodes of a Ray cluster are: their names, the stages that each runs at a time, and its devices."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from edgeopt.run.cluster.messages import Offers
from edgeopt.run.cluster.node import describe
from edgeopt.run.cluster.ray_settings import DEVICE
from edgeopt.run.executors.executor import Board, Machine

DESCRIBE_SECONDS = 30.0

Node = dict[str, Any]
"""A node as Ray describes it."""


class Cluster:
    """The nodes, of which each may come and go."""

    def __init__(self, ray: Any) -> None:
        """``ray``: the module, connected."""
        self._ray = ray
        self._names: dict[str, str] = {}

    def alive(self) -> list[Node]:
        """The nodes that are there."""
        return [node for node in self._ray.nodes() if node["Alive"]]

    def name(self, node: str) -> str:
        """The name of a node: as it was started, else its host, or its address if several are on that."""
        if node not in self._names:
            nodes = self._ray.nodes()
            hosts = Counter(each["NodeManagerHostname"] for each in nodes if each["Alive"])
            for each in nodes:
                address, host = each["NodeManagerAddress"], each["NodeManagerHostname"]
                name = each.get("NodeName") or address
                unnamed = host if hosts[host] == 1 else address
                self._names[each["NodeID"]] = unnamed if name == address else name
        return self._names.get(node, node)

    def offers(self) -> Offers:
        """What all nodes together offer."""
        alive = self.alive()
        devices = frozenset(name for node in alive for name in devices_of(node))
        return Offers(int(sum(map(slots, alive))), devices)

    def holding(self, board: Board) -> list[Node]:
        """The nodes that hold a device: the one that its file names, else those that offer it."""
        if board.node:
            return [node for node in self.alive() if self.name(node["NodeID"]) == board.node]
        return [node for node in self.alive() if board.device in devices_of(node)]

    def able(self, board: Board | None) -> list[Node]:
        """The nodes that hold a device; without one, those that run stages."""
        return self.holding(board) if board is not None else [node for node in self.alive() if slots(node)]

    def options(self, board: Board, nodes: list[Node]) -> dict[str, Any]:
        """How Ray schedules a job of a device that ``nodes`` hold: one at a time where it was offered."""
        offered = all(board.device in devices_of(node) for node in nodes)
        ids = ",".join(sorted(node["NodeID"] for node in nodes))
        return {
            # A device that is the node itself is timed while no stage runs there.
            "num_cpus": min(map(slots, nodes)) if board.alone else 0,
            "resources": {f"{DEVICE}{board.device}": 1} if offered else {},
            "label_selector": {"ray.io/node-id": f"in({ids})"},
        }

    def describe(self, packages: tuple[str, ...]) -> Iterator[Machine]:
        """Every node; one that is busy or does not answer is described by what the cluster knows of it."""
        work = self._ray.remote(num_cpus=0, max_retries=0)(describe)
        nodes = self.alive()
        answers = [
            work.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote(packages) for node in nodes
        ]
        self._ray.wait(answers, num_returns=len(answers), timeout=DESCRIBE_SECONDS)
        for node, answer in zip(nodes, answers, strict=True):
            about: dict[str, Any] = {}
            with suppress(self._ray.exceptions.RayError):
                about = self._ray.get(answer, timeout=0)
            name, devices = self.name(node["NodeID"]), tuple(sorted(devices_of(node)))
            yield Machine(name, slots(node), about, devices, gpus(node))


def slots(node: Node) -> float:
    """Stages that a node runs at a time."""
    return float(node["Resources"].get("CPU", 0.0))


def gpus(node: Node) -> int:
    """GPUs of a node that it trains on."""
    return int(node["Resources"].get("GPU", 0))


def devices_of(node: Node) -> Iterator[str]:
    """The devices that a node offers."""
    return (name.removeprefix(DEVICE) for name in node["Resources"] if name.startswith(DEVICE))
