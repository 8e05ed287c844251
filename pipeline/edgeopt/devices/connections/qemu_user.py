"""Another processor on this one: a Python for arm64, carried out instruction by instruction by qemu."""

from collections.abc import Callable, Sequence

from pydantic import Field

from edgeopt.devices.connections._local_link import LocalLink, foreign_environment
from edgeopt.devices.connections._sysroot import MIRROR, find_sysroot, setup_sysroot
from edgeopt.plugin import Connection, Link


class QemuUser(Connection):
    """Run jobs in processes of this machine, under qemu's user-mode emulation of arm64."""

    environment: str = Field(description="a system made by 'edgeopt devices setup'")
    cpu: str = Field(
        default="cortex-a72",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="the processor that qemu plays; it decides which kernels a runtime takes",
    )
    mirror: str = Field(default=MIRROR, description="where the setup takes Debian's packages from")

    def open(self) -> Link:
        """Make a job folder among the temporary files.

        Raises:
            DeviceError: the system has not been set up.
        """
        sysroot = find_sysroot(self.environment)
        return LocalLink(sysroot.command, foreign_environment() | sysroot.environment(self.cpu))

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Download and unpack the system and its wheels; this machine is not changed.

        Raises:
            UsageError: the mirror's address is wrong.
            DeviceError: the packages cannot be had.
        """
        setup_sysroot(self.environment, requirements, self.mirror, say)
