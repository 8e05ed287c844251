"""Whether measurements come from the device itself or from another processor in its place."""

from edgeopt.devices.device import load_device
from edgeopt.errors import UsageError
from edgeopt.results import EMULATED, Report


def emulated(device: str, report: Report) -> bool:
    """Whether a device is emulated, according to its results or its device file."""
    if any(EMULATED in row.notes for row in report.results if row.device == device):
        return True
    try:
        return load_device(device).emulated
    except UsageError:
        return False  # no device file, and its results do not declare emulation


def named(device: str, report: Report) -> str:
    """The display name of a device."""
    return f"{device} (emulated)" if emulated(device, report) else device
