"""This machine itself: the running interpreter, another one, or an environment of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from edgeopt.environments import environment_python
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection, Link

INTERPRETER_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Settings of the running interpreter that would mislead another one."""


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
        return LocalLink(self._interpreter(), own=self.python is None and self.environment is None)

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


class LocalLink(Link):
    """A job folder among the temporary files, and processes that run in it."""

    def __init__(self, interpreter: str, *, own: bool) -> None:
        self.interpreter = interpreter
        self.environment = dict(os.environ)
        if not own:
            for name in INTERPRETER_VARIABLES:
                self.environment.pop(name, None)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="edgeopt-job-")).resolve()
        except OSError as error:
            raise DeviceError(
                f"cannot make a job folder: {error}", fix="free space, or set TMPDIR"
            ) from error

    def put(self, source: Path, name: str) -> None:
        """Hard-link or copy a file, or all files of a folder, to ``name``.

        Raises:
            DeviceError: it cannot be read, or does not fit on the disk.
        """
        target = self._inside(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)
            else:
                _link_or_copy(source, target)
        except (OSError, shutil.Error) as error:
            raise DeviceError(f"cannot put {source} into {self.folder}: {error}") from error

    def python(self, arguments: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        command = [self.interpreter, *arguments]
        try:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"cannot start {self.interpreter}: {error}") from error
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"the job did not end within {timeout:g} s on this machine and was killed",
                fix="raise the time limit, or measure with fewer samples",
            ) from error
        finally:
            # Also what the job itself started, and also when the wait is interrupted from the keyboard.
            if process.poll() is None:
                _kill_group(process)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def get(self, name: str, target: Path) -> None:
        """Copy a file of the job folder.

        Raises:
            DeviceError: the job did not write it, or the target cannot be written.
        """
        source = self._inside(name)
        if not source.is_file():
            raise DeviceError(f"the job wrote no file {name!r}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise DeviceError(f"cannot copy {name!r} to {target}: {error}") from error

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _inside(self, name: str) -> Path:
        path = Path(os.path.normpath(self.folder / name))
        if path == self.folder or self.folder not in path.parents:
            raise DeviceError(f"{name!r} does not lie in the job folder")
        return path


def _link_or_copy(source: str | Path, target: str | Path) -> str | Path:
    real = os.path.realpath(source)
    Path(target).unlink(missing_ok=True)
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(real, target)
    return target


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.communicate()
