"""Whether what was measured came about on the device itself, or on another processor in its place."""

from pathlib import Path

from edgeopt.devices.device import load_device
from edgeopt.errors import UsageError
from edgeopt.results import EMULATED, Report


def emulated(device: str, report: Report) -> bool:
    """Whether what is known of a device came about on another processor: its results say so, or its file."""
    if any(EMULATED in row.notes for row in report.results if row.device == device):
        return True
    try:
        return load_device(device, (Path("devices"),)).emulated
    except UsageError:
        return False  # described elsewhere, and its results say nothing of the kind


def named(device: str, report: Report) -> str:
    """A device as people should read it."""
    return f"{device} (emulated)" if emulated(device, report) else device
