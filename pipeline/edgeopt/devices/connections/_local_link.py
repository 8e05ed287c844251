"""A temporary job folder on this machine, and processes that run in it."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgeopt.config.code_folders import python_path
from edgeopt.errors import DeviceError
from edgeopt.plugin import Link

INTERPRETER_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Settings of the running interpreter that would break another one."""
MAX_OUTPUT = 4 << 20
"""Bytes of a job's output that are kept, its end."""


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded here: a forked process must not load a library


def foreign_environment() -> dict[str, str]:
    """Environment variables for an interpreter other than the running one."""
    return {name: value for name, value in os.environ.items() if name not in INTERPRETER_VARIABLES}


def own_environment() -> dict[str, str]:
    """Environment variables for the running interpreter in another folder: PYTHONPATH may be relative."""
    path = os.pathsep.join(map(str, python_path()))
    return dict(os.environ) | ({"PYTHONPATH": path} if path else {})


class LocalLink(Link):
    """A temporary job folder, and processes that run in it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """``command`` starts the interpreter, with the variables ``environment``."""
        self.command = tuple(command)
        self.environment = dict(environment)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="edgeopt-job-")).resolve()
        except OSError as error:
            raise DeviceError(
                f"cannot create a job folder: {error}", fix="free space, or set TMPDIR"
            ) from error

    def put(self, source: Path, name: str) -> None:
        """Copy a file, or all files of a folder, to ``name``.

        Raises:
            DeviceError: the source cannot be read, or the disk is full.
        """
        target = self._inside(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_copy, dirs_exist_ok=True)
            else:
                _copy(source, target)
        except (OSError, shutil.Error) as error:
            raise DeviceError(f"cannot copy {source} to {self.folder}: {error}") from error

    def python(self, arguments: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        command = [*self.command, *arguments]
        # Files, not pipes: a process that the job leaves in the background would keep a pipe open.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
            except OSError as error:
                raise DeviceError(f"cannot start {self.command[0]}: {error}") from error
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise DeviceError(
                    f"the job did not finish within {timeout:g} s on this machine and was killed",
                    fix="raise the time limit, or measure with fewer samples",
                ) from error
            finally:
                # The job's own child processes, too, however it ended. Also after a keyboard interrupt.
                _kill_group(process)
            return subprocess.CompletedProcess(command, process.returncode, _text(stdout), _text(stderr))

    def get(self, name: str, target: Path) -> None:
        """Copy a file of the job folder.

        Raises:
            DeviceError: the job did not write the file, or the target cannot be written.
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
            raise DeviceError(f"{name!r} is outside the job folder")
        return path


def _die_with_parent() -> None:
    """Run in a new process: the kernel kills it when this one dies, even by SIGKILL (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _copy(source: str | Path, target: str | Path) -> None:
    # No link: ONNX refuses weights in a file that has several, and what a job writes would change the source.
    Path(target).unlink(missing_ok=True)
    shutil.copyfile(source, target)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: all have exited
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _text(output: IO[bytes]) -> str:
    """The end of a job's output."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - MAX_OUTPUT))
    return output.read().decode("utf-8", "replace")
