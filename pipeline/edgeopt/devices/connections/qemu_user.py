"""Another processor emulated on this machine: a Python for arm64 that runs under qemu."""

from collections.abc import Callable, Sequence

from pydantic import Field

from edgeopt.devices.connections._local_link import LocalLink, foreign_environment
from edgeopt.devices.connections._sysroot import MIRROR, find_sysroot, setup_sysroot
from edgeopt.devices.environments import NAME
from edgeopt.plugin import Connection, Link


class QemuUser(Connection):
    """Run jobs as processes on this machine, under qemu's user-mode emulation of arm64."""

    environment: str = Field(pattern=NAME, description="a system created by 'edgeopt devices setup'")
    cpu: str = Field(
        default="cortex-a72",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="the processor that qemu emulates; it determines which kernels a runtime selects",
    )
    mirror: str = Field(default=MIRROR, description="Debian mirror that the setup downloads packages from")

    def open(self) -> Link:
        """Create a temporary job folder.

        Raises:
            DeviceError: the system is not set up.
        """
        sysroot = find_sysroot(self.environment)
        return LocalLink(sysroot.command, foreign_environment() | sysroot.environment(self.cpu))

    def check_local(self) -> None:
        """Look for the system and the emulator; raises as ``open``."""
        find_sysroot(self.environment)

    def machine(self) -> str:
        """This machine."""
        return ""

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Download and unpack the system and its wheels; this machine is not changed.

        Raises:
            UsageError: the mirror's address is invalid.
            DeviceError: the packages cannot be downloaded or unpacked.
        """
        setup_sysroot(self.environment, requirements, self.mirror, say)
