"""Connections to devices, and what a device says of itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from edgeopt.config import absent
from edgeopt.config.chatter import without_chatter
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import Device, connection_of
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError, DeviceLostError, install
from edgeopt.plugin import Connection, ConnectionCutError, Link
from edgeopt.run.measuring.protocol import Probe, read_probe

VOLATILE_FIELDS = ("load", "memory_available_bytes", "temperature_c")
"""Fields of a probe that do not identify the device."""

P = ParamSpec("P")
T = TypeVar("T")


def retried(job: Callable[P, T]) -> Callable[P, T]:
    """Retry a job once if the connection is cut."""

    @wraps(job)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return job(*args, **kwargs)
        except ConnectionCutError:
            pass
        try:
            return job(*args, **kwargs)
        except ConnectionCutError as error:
            raise DeviceLostError(f"{error.message}, and again after a retry", fix=error.fix) from error

    return wrapper


@contextmanager
def connect(device: Device, *, shared: bool = False, connection: Connection | None = None) -> Iterator[Link]:
    """Open a connection to a device and lock the device against other runs on this machine.

    Args:
        device: the device.
        shared: do not lock it: for jobs in which nothing is timed.
        connection: its connection, where the code of that cannot be found by name.

    Raises:
        DeviceLostError: the device is unreachable.
    """
    lock = nullcontext() if shared else device_lock(device.name, device.connection)
    with lock:
        try:
            opened = (connection or connection_of(device)).open()
        except ConnectionCutError:
            raise
        except DeviceError as error:
            raise DeviceLostError(error.message, fix=error.fix) from error
        with opened as link:
            yield link


def fetch_probe(device: Device, agent: Path, *, shared: bool = False) -> Probe:
    """Run the agent's probe on a device: processor, memory, system, runtimes and their versions.

    Raises:
        DeviceError: the device is unreachable, or its response is malformed.
    """
    return read_probe(probe_text(device, agent, shared=shared), device.name)


@retried
def probe_text(
    device: Device, agent: Path, *, shared: bool = False, connection: Connection | None = None
) -> str:
    """What the agent says of a device; see `fetch_probe`.

    Raises:
        DeviceError: the device is unreachable.
    """
    with connect(device, shared=shared, connection=connection) as link:
        link.put(agent, "agent.pyz")
        process = link.python(["agent.pyz", "probe"], timeout=60)
    if process.returncode != 0:
        raise DeviceError(f"device {device.name}: the agent failed: {last_line(process.stderr)}")
    return process.stdout


def check_requirements(device: Device, probe: Probe) -> None:
    """Check that a device has what jobs need: numpy, and the hardware that its file requires (``needs``).

    Raises:
        DeviceError: it is missing.
    """
    if probe["numpy"] is None:
        own = f"edgeopt devices setup {device.name}" if device.setup.python else "install it on the device"
        raise DeviceError(
            f"the Python {probe['python']} of device {device.name} has no numpy: nothing is measured there",
            fix=own if absent.installed() else install("numerics"),
        )
    if "gpu" in device.needs and not probe["gpus"]:
        raise DeviceError(
            f"device {device.name} has no NVIDIA GPU: nvidia-smi is not on its PATH, or lists none",
            fix="install the NVIDIA driver on it, or set its connection to a machine with a GPU",
        )


def stable_fields(probe: Probe | None) -> dict[str, Any]:
    """The fields of a probe that identify the device: those that do not change over time."""
    return {name: value for name, value in (probe or {}).items() if name not in VOLATILE_FIELDS}


def probe_device(device: Device, folder: Path) -> Probe:
    """Build the agent in ``folder`` and run its probe on a device."""
    return fetch_probe(device, build_agent(folder / "agent.pyz"))


def last_line(text: str) -> str:
    """The last line of an output that is not blank, shortened."""
    lines = without_chatter(text.splitlines())
    return lines[-1][:300] if lines else "no message"
