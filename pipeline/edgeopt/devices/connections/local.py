"""This machine itself: the running interpreter, another one, or an environment of its own."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence

from pydantic import Field, model_validator

from edgeopt.devices.connections._local_link import LocalLink, foreign_environment
from edgeopt.devices.environments import environment_python, setup_environment
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection, Link


class Local(Connection):
    """Run jobs in processes of this machine."""

    python: str | None = Field(
        default=None, description="another interpreter: a path, or a command on the PATH"
    )
    environment: str | None = Field(
        default=None, description="an environment made by 'edgeopt devices setup'"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "Local":
        if self.python is not None and self.environment is not None:
            raise ValueError("give either 'python' or 'environment', not both")
        return self

    def open(self) -> Link:
        """Make a job folder among the temporary files.

        Raises:
            DeviceError: the interpreter or the environment is not there.
        """
        own = self.python is None and self.environment is None
        return LocalLink([self._interpreter()], dict(os.environ) if own else foreign_environment())

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Make the environment, where one is named.

        Raises:
            UsageError: none is named: there is nothing to make.
            DeviceError: it cannot be made, with pip's last words.
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
        found = shutil.which(os.path.expanduser(self.python))
        if found is None:
            raise DeviceError(
                f"no Python interpreter {self.python!r} on this machine",
                fix="correct the option 'python' of the device's connection",
            )
        return os.path.abspath(found)
