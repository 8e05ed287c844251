"""An Android device connected through the ``adb`` client, and a program on it that measures a model.

Commands and states: https://developer.android.com/tools/adb.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Iterator

from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import ModelSession

FOLDER = "/data/local/tmp"
"""The only folder where adb may write and execute files on every Android version."""
SECONDS = 600.0
CLEANING_SECONDS = 30.0
VERSION_SECONDS = 10.0
STATUS = "edgeopt-exit-status="
NOT_FOUND, NOT_EXEC = 3, 4
HINTS = {
    "unauthorized": "unlock its screen and allow USB debugging for this computer",
    "offline": "reconnect it, or run 'adb reconnect'",
    "no permissions": "this user may not open the device: add udev rules for it, or join the group plugdev",
}


class Phone:
    """One Android device. ``seconds`` limits each command.

    Raises:
        AgentError: kind ``runtime``: no client, no device, an ambiguous choice, or a device not ready.
    """

    def __init__(self, adb: str, serial: str | None, seconds: float) -> None:
        client = shutil.which(os.path.expanduser(adb))
        if client is None:
            raise AgentError(
                "runtime",
                f"no adb client {adb!r} on this machine: install Android's platform-tools, "
                "or set the option 'adb' to its path",
            )
        self.client = client
        self.seconds = seconds
        self.serial = self._choose(serial or os.environ.get("ANDROID_SERIAL"))

    def shell(self, command: str, seconds: float | None = None) -> tuple[int, str]:
        """Run a command in the device's shell; returns its exit status and its output.

        Before Android 7, ``adb shell`` does not return the exit status, so the command prints it.

        Raises:
            AgentError: the time limit is exceeded, or the connection is lost.
        """
        line = f"({command}) 2>&1; s=$?; echo; echo {STATUS}$s"
        _, text = self._call(["-s", self.serial, "shell", line], seconds)
        output, marker, status = text.rpartition(STATUS)
        if not marker or not status.strip().isdigit():
            raise AgentError("runtime", f"the device {self.serial} did not respond: {last_line(text)}")
        return int(status), output

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the device.

        Raises:
            AgentError: the device's storage is full, or the connection is lost.
        """
        code, text = self._call(["-s", self.serial, "push", str(local), remote])
        if code != 0:
            raise AgentError("runtime", f"adb cannot copy the model to {self.serial}: {last_line(text)}")

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """A temporary folder on the device; on exit, a program still running in it is killed."""
        path = f"{FOLDER}/edgeopt-{secrets.token_hex(8)}"
        try:
            status, text = self.shell(f"mkdir {shlex.quote(path)}")
            if status != 0:
                raise AgentError("runtime", f"cannot create a folder on {self.serial}: {last_line(text)}")
            yield path
        except BaseException as error:
            try:
                self._remove(path)
            except AgentError as leftover:
                if isinstance(error, AgentError):
                    raise AgentError(error.kind, f"{error.message}; {leftover.message}") from error
            raise
        self._remove(path)

    def name(self) -> str:
        """The device's own description: model, Android version, serial number."""
        status, text = self.shell("getprop ro.product.model; getprop ro.build.version.release")
        properties = [line.strip() for line in text.splitlines() if line.strip()]
        if status != 0 or len(properties) != 2:
            return self.serial
        model, android = properties
        return f"{model} with Android {android} ({self.serial})"

    def _remove(self, path: str) -> None:
        folder, pid = shlex.quote(path), shlex.quote(f"{path}/pid")
        command = f"[ -f {pid} ] && kill -9 $(cat {pid}); rm -rf {folder}; [ ! -e {folder} ]"
        try:
            status, text = self.shell(command, CLEANING_SECONDS)
        except AgentError as error:
            raise AgentError("runtime", f"{path} may be left on {self.serial}") from error
        if status != 0:
            raise AgentError("runtime", f"{path} could not be removed from {self.serial}: {last_line(text)}")

    def _choose(self, serial: str | None) -> str:
        code, text = self._call(["devices"])
        if code != 0:
            raise AgentError("runtime", f"'adb devices' failed: {last_line(text)}")
        _, _, listed = text.partition("List of devices attached")
        rows = [line.split(None, 1) for line in listed.splitlines() if not line.startswith("*")]
        states = {row[0]: row[1].strip() for row in rows if len(row) == 2}
        devices = ", ".join(f"{name} ({state})" for name, state in states.items())
        if not states:
            raise AgentError(
                "runtime",
                "adb finds no device: connect one with USB debugging enabled, or start an emulator; "
                "'adb devices' must list it",
            )
        if serial is None and len(states) > 1:
            raise AgentError(
                "runtime", f"adb finds {len(states)} devices, select one with the option 'serial': {devices}"
            )
        chosen = serial if serial is not None else next(iter(states))
        if chosen not in states:
            raise AgentError("runtime", f"adb finds no device {chosen!r}; it finds: {devices}")
        state = states[chosen]
        if state != "device":
            hints = [hint for word, hint in HINTS.items() if state.startswith(word)]
            hint = hints[0] if hints else "start Android on it"
            raise AgentError("runtime", f"the device {chosen} is not ready, adb reports {state!r}: {hint}")
        return chosen

    def _call(self, arguments: list[str], seconds: float | None = None) -> tuple[int, str]:
        limit = self.seconds if seconds is None else seconds
        # A file, not a pipe: adb may start its server, which would keep a pipe open.
        with tempfile.TemporaryFile() as file:
            try:
                done = subprocess.run(
                    [self.client, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise AgentError(
                    "runtime",
                    f"'adb {_verb(arguments)}' did not finish within {limit:g} s: "
                    "raise the option 'seconds', or lower 'runs'",
                ) from error
            except OSError as error:
                raise AgentError("runtime", f"{self.client} cannot be started: {error.strerror}") from error
            file.seek(0)
            return done.returncode, file.read().decode("utf-8", "replace").replace("\r\n", "\n")


class PhoneSession(ModelSession):
    """A model measured by a program on an Android device; the agent runs on the adb client's machine.

    The program generates its own inputs and its outputs are not fetched, so accuracy is not measured. It runs
    when ``measurements`` is first called.
    """

    executes = False
    program: str
    """Name of the option for the path of the program on the device."""

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.path, self.threads, self.options = path, threads, options
        self.tool = str(options.get(self.program) or f"{FOLDER}/{self.default_tool()}")
        self.runs = int(positive(options, "runs", 50, 1))
        self.warmup_runs = int(positive(options, "warmup_runs", 1, 0))
        seconds = positive(options, "seconds", SECONDS, 1)
        self.phone = Phone(str(options.get("adb") or "adb"), options.get("serial"), seconds)
        self.values: dict[str, tuple[float, str]] | None = None
        self.device_name = self.phone.serial

    @classmethod
    def version(cls) -> str | None:
        """Version of the adb client on the PATH; the programs on the device do not report theirs."""
        client = shutil.which("adb")
        if client is None:
            return None
        try:
            done = subprocess.run(
                [client, "version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=VERSION_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        first = done.stdout.decode("utf-8", "replace").partition("\n")[0].split()
        return f"adb {first[-1]}" if done.returncode == 0 and first else None

    def default_tool(self) -> str:
        """File name of the program."""
        raise NotImplementedError

    def flags(self, model: str) -> list[str]:
        """Arguments of the program for a model file on the device."""
        raise NotImplementedError

    def read(self, text: str) -> dict[str, tuple[float, str]]:
        """Parse the program's output into measurements: name -> value and unit."""
        raise NotImplementedError

    def measurements(self) -> dict[str, Measured]:
        """Send the model, run the program once, and remove the files from the device."""
        if self.values is None:
            self.device_name = self.phone.name()
            self.values = self.read(self._run())
        return {name: {"value": value, "unit": unit} for name, (value, unit) in self.values.items()}

    def notes(self) -> list[str]:
        """Caveats of the measurements."""
        name = os.path.basename(self.tool)
        return [
            f"measured by {name} on {self.device_name}, on its own inputs: accuracy is not measured there"
        ]

    def _run(self) -> str:
        tool, name = shlex.quote(self.tool), os.path.basename(self.tool)
        status, text = self.phone.shell(
            f"[ -e {tool} ] || exit {NOT_FOUND}; [ -x {tool} ] || exit {NOT_EXEC}"
        )
        chmod = f"adb -s {self.phone.serial} shell chmod +x {tool}"
        if status == NOT_FOUND:
            push = f"adb -s {self.phone.serial} push {name} {tool} && {chmod}"
            raise AgentError("runtime", f"{self.tool} not found on {self.phone.serial}; run: {push}")
        if status != 0:
            raise AgentError("runtime", f"{self.tool} on {self.phone.serial} is not executable; run: {chmod}")
        with self.phone.folder() as folder:
            model = f"{folder}/model{self.path.suffix}"
            self.phone.push(self.path, model)
            command = " ".join(shlex.quote(part) for part in [self.tool, *self.flags(model)])
            # The pid is recorded: the process may outlive the connection.
            started = shlex.quote(f"echo $$ > pid; exec {command}")
            status, text = self.phone.shell(
                f"cd {shlex.quote(folder)} || exit; sh -c {started}; s=$?; rm -f pid; exit $s"
            )
        if status != 0:
            cause = (
                f"was killed by signal {status - 128}"
                if status > 128
                else f"failed with exit status {status}"
            )
            raise AgentError("model", f"{name} {cause} on {self.phone.serial}: {last_line(text)}")
        return text


def positive(options: dict[str, Any], name: str, default: float, least: float) -> float:
    """The value of a numeric option.

    Raises:
        AgentError: kind ``runtime``: the value is not a number, or is too small.
    """
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise AgentError("runtime", f"option {name!r} is {value!r}, but must be a number >= {least:g}")
    return value


def finite(values: dict[str, tuple[float, str]], program: str) -> dict[str, tuple[float, str]]:
    """Return ``values`` after checking that each is finite and non-negative.

    Raises:
        AgentError: kind ``runtime``: a value is not.
    """
    for name, (value, _) in values.items():
        if not math.isfinite(value) or value < 0:
            raise AgentError("runtime", f"{program} printed an invalid value: {name} is {value}")
    return values


def last_line(text: str) -> str:
    """The last line that mentions an error, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (errors or lines or ["no message"])[-1][:150]


def _verb(arguments: list[str]) -> str:
    return next(word for word in ("devices", "shell", "push") if word in arguments)
