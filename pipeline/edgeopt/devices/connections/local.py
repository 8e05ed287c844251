"""This machine: the running interpreter, another one, or a separate environment."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence

from pydantic import Field, model_validator

from edgeopt.devices.connections._local_link import LocalLink, foreign_environment, own_environment
from edgeopt.devices.environments import NAME, environment_python, setup_environment
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection, Link


class Local(Connection):
    """Run jobs as processes on this machine."""

    python: str | None = Field(
        default=None, description="another interpreter: a path, or a command on the PATH"
    )
    environment: str | None = Field(
        default=None, pattern=NAME, description="an environment created by 'edgeopt devices setup'"
    )

    @model_validator(mode="after")
    def _only_one(self) -> "Local":
        if self.python is not None and self.environment is not None:
            raise ValueError("give either 'python' or 'environment', not both")
        return self

    def open(self) -> Link:
        """Create a temporary job folder.

        Raises:
            DeviceError: the interpreter or the environment does not exist.
        """
        own = self.python is None and self.environment is None
        return LocalLink([self._interpreter()], own_environment() if own else foreign_environment())

    def check_local(self) -> None:
        """Look for the interpreter or the environment; raises as ``open``."""
        self._interpreter()

    def machine(self) -> str:
        """This machine."""
        return ""

    def programs(self) -> list[str]:
        """The interpreter, if the option names one."""
        return [] if self.python is None else [self.python]

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Create the environment that the option names.

        Raises:
            UsageError: the option is not set: there is nothing to create.
            DeviceError: the environment cannot be created; includes pip's last line of output.
        """
        if self.environment is None:
            super().setup(requirements, say)
        else:
            setup_environment(self.environment, requirements, say)

    def _interpreter(self) -> str:
        if self.environment is not None:
            return str(environment_python(self.environment))
        if self.python is None:
            return sys.executable
        path = shutil.which(os.path.expanduser(self.python))
        if path is None:
            raise DeviceError(
                f"no Python interpreter {self.python!r} on this machine",
                fix="correct the option 'python' of the device's connection",
            )
        return os.path.abspath(path)
