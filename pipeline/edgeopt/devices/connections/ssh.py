"""Another machine, reached with the OpenSSH client: keys, aliases and jump hosts come from ssh_config."""

import os
import shlex
from typing import ClassVar

from pydantic import Field

from edgeopt.devices.connections._ssh_link import SshLink, Way
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection, Link

FORCED = (
    "BatchMode=yes",  # never prompts
    "StrictHostKeyChecking=yes",  # never accepts an unknown key
    "NoHostAuthenticationForLocalhost=no",
    "UpdateHostKeys=no",
    "ControlMaster=no",
    "ControlPath=none",  # a separate connection, whose host key has been verified
    "RemoteCommand=none",
    "RequestTTY=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
)
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:%-]*$"
USER = r"^[A-Za-z0-9_.][A-Za-z0-9_.@+-]*$"


class Ssh(Connection):
    """Run jobs over ssh on another machine with Python 3.8 or newer and numpy.

    Everything uses one connection. Host keys are always verified, and ssh never prompts.
    """

    elsewhere: ClassVar[bool] = True

    host: str = Field(pattern=NAME, description="name, address, or a Host of ~/.ssh/config")
    user: str | None = Field(default=None, pattern=USER, description="user name; default from ssh_config")
    port: int | None = Field(default=None, ge=1, le=65535, description="port; default from ssh_config")
    identity: str | None = Field(default=None, description="private key file; default from ssh_config")
    config: str | None = Field(default=None, description="an ssh_config file instead of ~/.ssh/config")
    python: str = Field(
        default="python3", min_length=1, description="Python on the device: a command or a path"
    )
    folder: str | None = Field(
        default=None, description="parent of the job folders; default: the device's temporary folder"
    )
    connect_timeout: int = Field(default=10, ge=1, le=3600, description="seconds to wait for a connection")

    def machine(self) -> str:
        """The host and its port."""
        return f"ssh {self.host}:{self.port or 22}"

    def open(self) -> Link:
        """Connect, and create a job folder that lasts as long as the connection.

        Raises:
            DeviceError: the device is unreachable, its host key changed, or it lacks Python or numpy.
        """
        for option, file in (("identity", self.identity), ("config", self.config)):
            if file is not None and not os.path.isfile(os.path.expanduser(file)):
                raise DeviceError(
                    f"no such file: {file}", fix=f"correct the option '{option}' of the device's connection"
                )
        return SshLink(
            Way(self.host, self.client(), self.by_hand(), self.python, self.folder, self.connect_timeout)
        )

    def programs(self) -> list[str]:
        """The ssh_config file, if the option names one: ssh runs the commands in it."""
        return [] if self.config is None else [self.config]

    def client(self) -> list[str]:
        """The command that connects to the device, up to its name."""
        return [*self._short(), *(f"-o{setting}" for setting in self._forced()), "--", self.host]

    def by_hand(self) -> str:
        """The command that connects to the device manually."""
        return shlex.join([*self._short(), self.host])

    def _short(self) -> list[str]:
        command = ["ssh"]
        for flag, value in (("-F", self.config), ("-i", self.identity)):
            if value is not None:
                command += [flag, os.path.expanduser(value)]
        for flag, name in (("-l", self.user), ("-p", self.port)):
            if name is not None:
                command += [flag, str(name)]
        return command

    def _forced(self) -> tuple[str, ...]:
        own = () if self.identity is None else ("IdentitiesOnly=yes",)
        return (*FORCED, *own, f"ConnectTimeout={self.connect_timeout}")
