"""What a command, its driver and the nodes of a cluster say to each other: keys, options and small values."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from edgeopt.plugin import Worker
from edgeopt.run.cluster.portable import Absent
from edgeopt.run.executors.executor import Board, Machine


class Request(NamedTuple):
    """A task on its way to a node."""

    key: str
    title: str
    payload: bytes
    """Function, arguments and function of the metadata; see `edgeopt.run.cluster.portable`."""
    worker: Worker
    minutes: float
    too_long: str
    memory_limit: int | None
    versions: Mapping[str, str]
    store: str
    threads: Mapping[str, str]
    """Settings of the command that decide the number of threads."""
    board: Board | None
    """The device that it needs."""
    patience: float
    """Seconds to wait for a node that has the device."""
    gpu: bool
    """Whether it computes on a GPU, if a node has one."""


# From a node, about a task.


class Started(NamedTuple):
    """It runs."""


class Line(NamedTuple):
    """Its progress."""

    seconds: float
    text: str


class Refused(NamedTuple):
    """The node has other versions: by package, the one that is needed, and the one that is there or ''."""

    versions: Mapping[str, tuple[str, str]]


class Lacking(NamedTuple):
    """The node lacks files of it."""

    absent: tuple[Absent, ...]
    notes: tuple[str, ...]
    """What its store says of it."""


class Ended(NamedTuple):
    """It has ended: its result is in the store or in ``value``, or ``failure`` is the reason."""

    failure: str
    seconds: float = 0.0
    killed: bool = False
    value: str | None = None
    lost: bool = False
    """Whether the reason is not the task; see `TaskResult`."""


Message: TypeAlias = Started | Line | Refused | Lacking | Ended

# From the command to its driver.


class Submit(NamedTuple):
    """Run a task."""

    request: Request


class Cancel(NamedTuple):
    """End a task."""

    key: str


class Describe(NamedTuple):
    """Describe the nodes: the versions of these packages there, and the machines."""

    packages: tuple[str, ...]


class Survey(NamedTuple):
    """Say what the nodes offer."""


class Close(NamedTuple):
    """Disconnect, and end."""


Command: TypeAlias = Submit | Cancel | Describe | Survey | Close

# From the driver to its command.


class Ready(NamedTuple):
    """It is connected."""


class Said(NamedTuple):
    """What a node said about a task."""

    key: str
    node: str
    message: Message


class Notice(NamedTuple):
    """One line for the user, about a task or, without a key, about the cluster."""

    key: str
    line: str


class Unreachable(NamedTuple):
    """There is no cluster, or no longer; the driver ends."""

    reason: str


class Nodes(NamedTuple):
    """The nodes of the cluster."""

    nodes: tuple[Machine, ...]


class Offers(NamedTuple):
    """What the nodes offer now: stages at a time, and devices."""

    slots: int
    devices: frozenset[str]


Reply: TypeAlias = Ready | Said | Notice | Unreachable | Nodes | Offers
