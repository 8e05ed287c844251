"""Jobs of a device that a node of a cluster holds: the node does what this machine does otherwise.

The lock of the device is the node's, so commands of that machine wait, too. It ends with the process of the
job, and that with the command, or with the node.
"""

import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt.config.references import Code
from edgeopt.devices.device import Device, connection_of, machine_of
from edgeopt.errors import DeviceError, DeviceLostError
from edgeopt.plugin import Connection
from edgeopt.run.executors.choice import holder_of
from edgeopt.run.executors.executor import Board, Elsewhere, Say, Task, TaskResult
from edgeopt.run.measuring.jobs import JobFiles, run_job
from edgeopt.run.measuring.outcome import read_outcome
from edgeopt.run.measuring.probe import probe_text
from edgeopt.run.measuring.protocol import Job, Probe, read_probe

DAY_MINUTES = 24 * 60.0
"""Limit of a job with its wait for the device; the run itself has limits of its own."""
OF_STAGES = ("CUDA_VISIBLE_DEVICES", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
"""Variables that workers set for stages; a device is measured without them."""


class Remote:
    """A device at a node; ``where`` is the node, once it has run a job."""

    def __init__(self, device: Device, call: Callable[[Task], TaskResult]) -> None:
        self._device, self._call = device, call
        self.where = ""

    @classmethod
    def of(cls, device: Device) -> "Remote | None":
        """The device if a node of the running command's cluster holds it.

        Raises:
            DeviceError: a node holds it, and the running command uses no cluster.
        """
        call = holder_of(_board(device))
        return None if call is None else cls(device, call)

    def probe(self, agent: Path) -> Probe:
        """What the device says of itself.

        Raises:
            DeviceError: it is unreachable, or no node has it.
        """
        key = f"probe of {self._device.name} {secrets.token_hex(8)}"
        arguments = (self._device, connection_of(self._device), agent)
        return read_probe(self._run(key, _probe, arguments, Path()), self._device.name)

    def run(self, key: str, request: Job, files: JobFiles, folder: Path, code: Code | None) -> None:
        """Run a job, and store its results under ``key``; ``folder`` is a scratch folder of the store.

        Raises:
            DeviceError: the device is unreachable, or the job has failed.
        """
        arguments = (self._device, connection_of(self._device), request, files, folder)
        entry = partial(_entry, self._device.name)
        self._run(key, _measure, arguments, folder, entry, code)

    def _run(
        self,
        key: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        folder: Path,
        entry: Callable[[Any, Path, float], dict[str, Any]] | None = None,
        code: Code | None = None,
    ) -> str:
        title = f"job on {self._device.name}"
        elsewhere = Elsewhere(title, folder, entry, {}, code, _board(self._device))
        task = Task(key, function, arguments, "plain", DAY_MINUTES, "the device does not answer", elsewhere)
        result = self._call(task)
        self.where = result.where or self.where
        if result.failure:
            raise (DeviceLostError if result.lost else DeviceError)(result.failure)
        return str(result.value)


def _board(device: Device) -> Board:
    return Board(device.name, device.on or "", alone=machine_of(device) == "")


def _probe(say: Say, device: Device, connection: Connection, agent: Path) -> str:
    """On the node."""
    _as_from_a_shell()
    return probe_text(device, agent, connection=connection)


def _measure(
    say: Say, device: Device, connection: Connection, request: Job, files: JobFiles, folder: Path
) -> None:
    """On the node; what fails there is not stored, as here."""
    _as_from_a_shell()
    run_job(device, request, files, folder, connection=connection)
    outcome = read_outcome(request["runtime"], folder, files.model, device.name, cached=False)
    if outcome.error:
        raise DeviceError(outcome.error)


def _entry(device: str, value: None, folder: Path, seconds: float) -> dict[str, Any]:
    return {"measurement": device}


def _as_from_a_shell() -> None:
    for name in OF_STAGES:
        os.environ.pop(name, None)
