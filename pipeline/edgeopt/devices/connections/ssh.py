"""Another machine, reached with the OpenSSH client: keys, aliases and jump hosts are those of ssh_config."""

import base64
import hashlib
import json
import logging
import os
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NoReturn

from pydantic import Field

from edgeopt.devices.connections._openssh import (
    CHUNK,
    Stream,
    StreamCutError,
    explain,
    first_line,
    printable,
    settings_of,
)
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection, ConnectionCutError, Link

OLDEST_PYTHON = (3, 8)
TOO_OLD = "edgeopt needs a newer Python than"
MARKER = b"edgeopt-keeper "
NOISE = 1 << 16
"""Bytes that a login shell may print before the answer."""
START_SECONDS = 30.0
ANSWER_SECONDS = 60.0
GRACE_SECONDS = 30.0
WAIT_SECONDS = 7200.0
LARGEST_FILE = 1 << 32
LARGEST_OUTPUT = 1 << 24
FORCED = (
    "BatchMode=yes",  # never prompts
    "StrictHostKeyChecking=yes",  # never believes
    "NoHostAuthenticationForLocalhost=no",
    "UpdateHostKeys=no",
    "ControlMaster=no",
    "ControlPath=none",  # a connection of its own, whose host key has been looked at
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
_LOG = logging.getLogger("edgeopt")


class Ssh(Connection):
    """Run jobs on another machine with Python 3.8 or newer and numpy, over ssh.

    One connection carries everything. Host keys are always verified, and nothing is ever asked.
    """

    host: str = Field(pattern=NAME, description="name, address, or a Host of ~/.ssh/config")
    user: str | None = Field(default=None, pattern=USER, description="user there; else as ssh_config says")
    port: int | None = Field(default=None, ge=1, le=65535, description="port; else as ssh_config says")
    identity: str | None = Field(default=None, description="file of a private key; else as ssh_config says")
    config: str | None = Field(default=None, description="an ssh_config file instead of ~/.ssh/config")
    python: str = Field(
        default="python3", min_length=1, description="the Python of the device: a command or a path there"
    )
    folder: str | None = Field(
        default=None, description="where job folders are made; default the device's temporary folder"
    )
    connect_timeout: int = Field(default=10, ge=1, description="seconds until a device counts as unreachable")

    def open(self) -> Link:
        """Connect, and make a job folder that lasts as long as the connection.

        Raises:
            DeviceError: the device cannot be reached, is not who it was, or lacks Python or numpy.
        """
        for option, file in (("identity", self.identity), ("config", self.config)):
            if file is not None and not Path(file).expanduser().is_file():
                raise DeviceError(
                    f"no such file: {file}", fix=f"correct the option '{option}' of the device's connection"
                )
        return SshLink(self)

    def client(self) -> list[str]:
        """The command that reaches the device, up to its name."""
        return [*self._short(), *(f"-o{setting}" for setting in self._forced()), "--", self.host]

    def by_hand(self) -> str:
        """The command with which a person reaches the device."""
        return shlex.join([*self._short(), self.host])

    def _short(self) -> list[str]:
        command = ["ssh"]
        for flag, value in (("-F", self.config), ("-i", self.identity)):
            if value is not None:
                command += [flag, str(Path(value).expanduser())]
        for flag, name in (("-l", self.user), ("-p", self.port)):
            if name is not None:
                command += [flag, str(name)]
        return command

    def _forced(self) -> tuple[str, ...]:
        own = () if self.identity is None else ("IdentitiesOnly=yes",)
        return (*FORCED, *own, f"ConnectTimeout={self.connect_timeout}")


class SshLink(Link):
    """A job folder on the device, kept there by a small program that ends with the connection."""

    def __init__(self, way: Ssh) -> None:
        self.way = way
        self.folder = ""
        source = (resources.files("edgeopt.devices") / "agent" / "keeper.py").read_bytes()
        oldest = ",".join(map(str, OLDEST_PYTHON))
        # One line without exclamation marks: the login shell may be any. It also runs in Python 2, to say so.
        # The keeper is read without a buffer, which would also take what follows it.
        code = (
            f'import sys;sys.version_info<({oldest}) and sys.exit("{TOO_OLD} "+sys.version.split()[0]);'
            "import base64,zlib;"
            'exec(zlib.decompress(base64.b64decode(open(0,"rb",0,closefd=False).readline())))'
        )
        keeper = base64.b64encode(zlib.compress(source)) + b"\n"
        # A login shell starts in the home folder, and nothing is expanded between quotes.
        python = way.python.removeprefix("~/")
        self._stream = Stream([*way.client(), f"exec {shlex.quote(python)} -c {shlex.quote(code)}"])
        try:
            with self._watched("connecting"):
                self._stream.send(keeper + _line(folder=way.folder))
                self._begin(self._hello())
        except BaseException:
            self._stream.close()
            raise

    def put(self, source: Path, name: str) -> None:
        """Send a file, or all files of a folder, to ``name``.

        Raises:
            DeviceError: it cannot be read, or does not fit on the device.
            ConnectionCutError: the connection ended meanwhile.
        """
        name = _inside(name)
        if not source.is_dir():
            self._put_file(source, name)
            return
        self._make_folder(name)
        for place, folders, files in os.walk(source, followlinks=True):
            here = os.path.normpath(os.path.join(name, os.path.relpath(place, source)))
            for folder in sorted(folders):
                self._make_folder(f"{here}/{folder}")
            for file in sorted(files):
                self._put_file(Path(place, file), f"{here}/{file}")

    def _make_folder(self, name: str) -> None:
        with self._watched(f"making {name!r}"):
            self._stream.send(_line(do="folder", name=name))
            self._refused(self._answer(), name)

    def _put_file(self, source: Path, name: str) -> None:
        digest = hashlib.sha256()
        try:
            with source.open("rb") as file, self._watched(f"sending {name!r}"):
                size = left = os.fstat(file.fileno()).st_size
                self._stream.send(_line(do="put", name=name, size=size))
                while left:
                    part = file.read(min(CHUNK, left))
                    if not part:
                        self._stream.close(at_once=True)
                        raise DeviceError(f"{source} became shorter while it was sent")
                    digest.update(part)
                    self._stream.send(part)
                    left -= len(part)
                answer = self._answer()
        except OSError as error:
            raise DeviceError(f"cannot read {source}: {error.strerror}") from error
        self._refused(answer, name, f"{size:,} bytes")
        if answer.get("sha256") != digest.hexdigest():
            raise DeviceError(f"{name!r} is not on {self.way.host} what it was here: its sha256 differs")

    def python(self, arguments: Sequence[str], timeout: float) -> "CompletedProcess[str]":
        with self._watched("a job"):
            self._stream.send(_line(do="run", arguments=list(arguments), seconds=timeout))
            self._wait_for_its_turn()
            answer = self._answer(timeout + GRACE_SECONDS)
            if answer.get("expired"):
                raise DeviceError(
                    f"the job did not end within {timeout:g} s on {self.way.host} and was killed",
                    fix="raise the time limit, or measure with fewer samples",
                )
            self._refused(answer, "a job")
            code = self._number(answer, "returncode", -256, 256)
            sizes = [self._number(answer, name, 0, LARGEST_OUTPUT) for name in ("stdout", "stderr")]
            texts = [b"".join(self._stream.data(size)).decode("utf-8", "replace") for size in sizes]
        return CompletedProcess([self.way.python, *arguments], code, *map(printable, texts))

    def _wait_for_its_turn(self) -> None:
        """One job at a time on a device, whoever asks from wherever."""
        told = 0.0
        while True:
            answer = self._answer()
            if answer.get("started"):
                return
            if not answer.get("waiting"):
                self._rubbish(answer)
            if not told:
                _LOG.warning("%s is busy with another job: waiting for its end", self.way.host)
            told += 5.0
            if told > WAIT_SECONDS:
                raise DeviceError(f"{self.way.host} has been busy with other jobs for {told:g} s")

    def get(self, name: str, target: Path) -> None:
        """Fetch a file of the job folder; ``target`` is complete or as it was.

        Raises:
            DeviceError: the job did not write it, or the target cannot be written.
            ConnectionCutError: the connection ended meanwhile.
        """
        name = _inside(name)
        scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        with self._watched(f"fetching {name!r}"):
            self._stream.send(_line(do="get", name=name))
            answer = self._answer()
            if answer.get("errno") == "ENOENT":
                raise DeviceError(f"the job wrote no file {name!r}")
            self._refused(answer, name)
            size = self._number(answer, "size", 0, LARGEST_FILE)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with scratch.open("wb") as file:
                    for part in self._stream.data(size):
                        digest.update(part)
                        file.write(part)
                if self._answer().get("sha256") != digest.hexdigest():
                    raise DeviceError(
                        f"{name!r} is not here what it was on {self.way.host}: its sha256 differs"
                    )
                os.replace(scratch, target)
            except OSError as error:
                self._stream.close(at_once=True)  # the rest of the file is still on its way
                raise DeviceError(f"cannot copy {name!r} to {target}: {error}") from error
            finally:
                scratch.unlink(missing_ok=True)

    def close(self) -> None:
        self._stream.close()

    def _hello(self) -> dict[str, Any]:
        """The first answer, after whatever the login shell had to say."""
        noise = 0
        end = self.way.connect_timeout + START_SECONDS
        while noise < NOISE:
            line = self._stream.line(end)
            if line.startswith(MARKER):
                return self._parsed(line.removeprefix(MARKER))
            noise += len(line) + 1
        self._rubbish(f"{noise} bytes of something else")

    def _begin(self, hello: dict[str, Any]) -> None:
        host = self.way.host
        if "failure" in hello:
            raise DeviceError(
                f"cannot make a job folder on {host}: {first_line(str(hello['failure']))}",
                fix="free space there, or name a writable place with the option 'folder'",
            )
        if hello.get("numpy") is not True:
            python, version = (first_line(str(hello.get(name))) for name in ("executable", "python"))
            raise DeviceError(
                f"the Python {version} of {host} ({python}) has no numpy",
                fix=f"install it there: {self.way.by_hand()} {python} -m pip install numpy; "
                "or name another Python with the option 'python'",
            )
        self.folder = str(hello.get("folder"))

    def _answer(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        return self._parsed(self._stream.line(seconds))

    def _parsed(self, line: bytes) -> dict[str, Any]:
        answer = json.loads(line)
        if not isinstance(answer, dict):
            self._rubbish(answer)
        return answer

    def _number(self, answer: dict[str, Any], name: str, low: int, high: int) -> int:
        value = answer.get(name)
        if not isinstance(value, int) or not low <= value <= high:
            self._rubbish(answer)
        return value

    def _refused(self, answer: dict[str, Any], name: str, what: str = "") -> None:
        if "failure" not in answer:
            return
        if answer.get("errno") in ("ENOSPC", "EDQUOT", "EFBIG"):
            raise DeviceError(
                f"the disk of {self.way.host} is full: no room for {name!r} ({what or 'a folder'}) in "
                f"{printable(self.folder)}",
                fix="free space there, or name a larger place with the option 'folder'",
            )
        reason = first_line(str(answer["failure"]))
        raise DeviceError(f"{self.way.host} refused {name!r}: {reason}", fix=f"try: {self.way.by_hand()}")

    def _rubbish(self, answer: object) -> NoReturn:
        self._stream.close(at_once=True)
        shown = first_line(answer if isinstance(answer, str) else repr(answer))[:100]
        raise DeviceError(
            f"{self.way.host} answered rubbish: {shown}",
            fix=f"see that the option 'python' names a Python, and what it prints: {self.way.by_hand()} true",
        )

    @contextmanager
    def _watched(self, doing: str) -> Iterator[None]:
        """Tells why the stream ended, in words that help.

        Raises:
            DeviceError: the stream ended, or what came is no answer.
        """
        try:
            yield
        except StreamCutError as error:
            raise self._why(doing) from error
        except ValueError as error:
            self._stream.close(at_once=True)
            raise DeviceError(
                f"{self.way.host} answered rubbish: {error}",
                fix=f"see that the option 'python' names a Python; try: {self.way.by_hand()}",
            ) from error

    def _why(self, doing: str) -> DeviceError:
        code, said = self._stream.close()
        way, host = self.way, self.way.host
        if not self.folder:
            if TOO_OLD in said:
                version = first_line(said.partition(TOO_OLD)[2])
                wanted = ".".join(map(str, OLDEST_PYTHON))
                return DeviceError(
                    f"{way.python} on {host} is Python {version}; {wanted} is the oldest that will do",
                    fix="install a newer one, and name it with the option 'python'",
                )
            if code == 255:
                complaint = explain(said, host, settings_of(way.client()), way.by_hand())
                if complaint is not None:
                    return complaint
            if code in (126, 127):
                return DeviceError(
                    f"there is no Python {way.python!r} on {host}: {first_line(said)}",
                    fix="install Python there, or name it with the option 'python'",
                )
            if code < 0:
                return DeviceError(
                    f"{host} did not answer within {way.connect_timeout + START_SECONDS:g} s",
                    fix=f"try: {way.by_hand()}",
                )
            return DeviceError(
                f"{host} did not answer as a device does (exit code {code}): {first_line(said)}",
                fix=f"see that the option 'python' names a Python; try: {way.by_hand()}",
            )
        detail = f": {first_line(said)}" if said.strip() else ""
        return ConnectionCutError(
            f"the connection to {host} was cut during {doing}{detail}",
            fix=f"look at the network and at the power of the device; try: {way.by_hand()}",
        )


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _inside(name: str) -> str:
    """A normal relative name; what leaves the job folder is refused."""
    path = os.path.normpath(name)
    if not name or path in (".", "..") or path.startswith(("/", "../")) or "\0" in name:
        raise DeviceError(f"{name!r} does not lie in the job folder")
    return path
