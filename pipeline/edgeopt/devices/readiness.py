"""Whether a device can be used at once, as far as that is known without connecting to it."""

import shutil
from typing import Literal, NamedTuple

from edgeopt.devices.device import Device, connection_of
from edgeopt.errors import EdgeoptError


class Readiness(NamedTuple):
    """The state of a device; the reason and the next command if it is not ready."""

    state: Literal["ready", "not ready", "unknown"]
    reason: str = ""

    def __str__(self) -> str:
        return self.state + (f": {self.reason}" if self.reason else "")


def readiness(device: Device) -> Readiness:
    """Look for the environment, the emulator and the programs of a device on this machine."""
    connection = connection_of(device)
    check = f"edgeopt devices check {device.name}"
    try:
        connection.check_local()
    except EdgeoptError as error:
        return Readiness("not ready", error.fix or error.message)
    tools = {str(options["adb"]) for options in device.options.values() if "adb" in options}
    if "gpu" in device.needs and not connection.elsewhere:
        tools.add("nvidia-smi")
    if missing := sorted(tool for tool in tools if shutil.which(tool) is None):
        return Readiness("not ready", f"needs {', '.join(missing)} on the PATH")
    return Readiness("unknown", check) if connection.elsewhere or tools else Readiness("ready")
