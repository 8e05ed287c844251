"""Connections: transports to devices."""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from edgeopt.config.registry import Kind
from edgeopt.errors import DeviceLostError, UsageError
from edgeopt.plugin.base import Plugin


class Connection(Plugin):
    """The transport to a device: local, ssh, adb or an emulator.

    Remote names are relative to a job folder, which ``open`` creates and ``close`` removes.
    """

    plugin_kind: ClassVar[Kind] = "connections"
    elsewhere: ClassVar[bool] = False
    """Whether the device is another machine, whose state is unknown until it is reached."""

    @abstractmethod
    def open(self) -> "Link":
        """Connect to the device and create a new job folder there.

        Raises:
            DeviceError: the device is unreachable; the error contains a fix.
        """

    def check_local(self) -> None:
        """Check what this machine needs to open the connection, without opening it.

        Raises:
            DeviceError: something is missing; the error contains a fix.
        """

    def machine(self) -> str | None:
        """What identifies the machine: jobs of devices on the same one run one after the other.

        Empty for this machine, where latencies are measured while nothing else runs; None if each device is
        a machine of its own.
        """
        return None

    def programs(self) -> list[str]:
        """The programs of this machine that its options name: reported if nobody named the device file."""
        return []

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Create the environment of the device's runtimes with the Python ``requirements``.

        Only ``edgeopt devices setup`` calls this. ``say`` receives one line per step.

        Raises:
            UsageError: the connection needs no setup.
            DeviceError: the environment cannot be created.
        """
        raise UsageError(
            "this device needs no setup", fix="check its runtimes with: edgeopt devices check NAME"
        )


class ConnectionCutError(DeviceLostError):
    """The connection was lost during a job; a retry needs a new link and sends all files again."""


class Link(ABC):
    """An open connection to a job folder on a device; a context manager.

    Every method may raise ``ConnectionCutError``; the link is unusable afterwards, except for ``close``.
    """

    @abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Copy a local file to ``name`` in the job folder."""

    @abstractmethod
    def python(self, arguments: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        """Run the device's Python with ``arguments`` in the job folder, and capture stdout and stderr.

        Raises:
            DeviceError: the device was lost, or ``timeout`` (seconds) has passed.
        """

    @abstractmethod
    def get(self, name: str, target: Path) -> None:
        """Copy ``name`` from the job folder to a local file."""

    @abstractmethod
    def close(self) -> None:
        """Remove the job folder and disconnect."""

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
