"""Connections: how a device is reached."""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from edgeopt.config.registry import Kind
from edgeopt.errors import DeviceError, UsageError
from edgeopt.plugin.base import Plugin


class Connection(Plugin):
    """How a device is reached. Local, ssh, adb and emulator differ in nothing else.

    Remote names are relative to a job folder of its own, which ``open`` makes and ``close`` removes.
    """

    plugin_kind: ClassVar[Kind] = "connections"

    @abstractmethod
    def open(self) -> "Link":
        """Reach the device and make a fresh job folder there.

        Raises:
            DeviceError: when the device cannot be reached, with what to do about it.
        """

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Make what the device's runtimes live in, with ``requirements`` of Python; ``say`` tells each step.

        Only the command ``edgeopt devices setup`` calls this.

        Raises:
            UsageError: this way to a device needs no setting up.
            DeviceError: it cannot be made.
        """
        raise UsageError(
            "this device needs no setting up", fix="see what is there: edgeopt devices check NAME"
        )


class ConnectionCutError(DeviceError):
    """The device was there and then was not: worth another try, with a new link and all files sent again."""


class Link(ABC):
    """An open connection to one job folder on a device; use it as a context manager.

    Every method may raise ``ConnectionCutError``; the link is of no use then, only ``close`` is.
    """

    @abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Copy a local file to ``name`` in the job folder."""

    @abstractmethod
    def python(self, arguments: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        """Run the device's Python with ``arguments`` in the job folder; captures stdout and stderr.

        Raises:
            DeviceError: when the device is lost or the time is up.
        """

    @abstractmethod
    def get(self, name: str, target: Path) -> None:
        """Copy ``name`` from the job folder to a local file."""

    @abstractmethod
    def close(self) -> None:
        """Remove the job folder and let go of the device."""

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
