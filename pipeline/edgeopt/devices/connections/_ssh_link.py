"""The job folder of a machine reached over ssh: files and jobs, as lines of JSON and bytes in one stream."""

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
from typing import Any, NamedTuple, NoReturn

from edgeopt.config.files import replacing
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
from edgeopt.plugin import ConnectionCutError, Link

OLDEST_PYTHON = (3, 8)
TOO_OLD = "edgeopt needs a newer Python than"
MARKER = b"edgeopt-keeper "
NOISE = 1 << 16
"""Bytes that a login shell may print before the first response."""
START_SECONDS = 30.0
RESPONSE_SECONDS = 60.0
GRACE_SECONDS = 30.0
WAIT_SECONDS = 7200.0
MAX_FILE_BYTES = 1 << 32
MAX_OUTPUT_BYTES = 1 << 24
_LOG = logging.getLogger("edgeopt")


class Way(NamedTuple):
    """How to reach a machine, and where to work there."""

    host: str
    command: Sequence[str]
    """Connects, and runs the words that follow on the machine."""
    by_hand: str
    """The command for a person to try."""
    python: str
    folder: str | None
    """Parent of the job folders; None: the machine's temporary folder."""
    connect_timeout: int
    """In seconds."""


class SshLink(Link):
    """A job folder on the device, managed by a small program that ends with the connection."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.folder = ""
        source = (resources.files("edgeopt") / "devices" / "agent" / "keeper.py").read_bytes()
        oldest = ",".join(map(str, OLDEST_PYTHON))
        # One line without exclamation marks: any login shell must accept it. It also runs in Python 2, to
        # report the version. The keeper is read unbuffered: a buffer would swallow the requests after it.
        code = (
            f'import sys;sys.version_info<({oldest}) and sys.exit("{TOO_OLD} "+sys.version.split()[0]);'
            "import base64,zlib;"
            'exec(zlib.decompress(base64.b64decode(open(0,"rb",0,closefd=False).readline())))'
        )
        keeper = base64.b64encode(zlib.compress(source)) + b"\n"
        # A login shell starts in the home folder, and does not expand '~' between quotes.
        python = way.python.removeprefix("~/")
        self._stream = Stream([*way.command, f"exec {shlex.quote(python)} -c {shlex.quote(code)}"])
        try:
            with self._explained("connecting"):
                self._stream.send(keeper + _line(folder=way.folder))
                self._begin(self._hello())
        except BaseException:
            self._stream.close()
            raise

    def put(self, source: Path, name: str) -> None:
        """Send a file, or all files of a folder, to ``name``.

        Raises:
            DeviceError: the source cannot be read, or the device's disk is full.
            ConnectionCutError: the connection was cut.
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
        with self._explained(f"creating {name!r}"):
            self._stream.send(_line(do="folder", name=name))
            self._raise_failure(self._response(), name)

    def _put_file(self, source: Path, name: str) -> None:
        digest = hashlib.sha256()
        try:
            with source.open("rb") as file, self._explained(f"sending {name!r}"):
                size = left = os.fstat(file.fileno()).st_size
                self._stream.send(_line(do="put", name=name, size=size))
                while left:
                    part = file.read(min(CHUNK, left))
                    if not part:
                        self._stream.close(at_once=True)
                        raise DeviceError(f"{source} was truncated while it was sent")
                    digest.update(part)
                    self._stream.send(part)
                    left -= len(part)
                response = self._response()
        except OSError as error:
            raise DeviceError(f"cannot read {source}: {error.strerror}") from error
        self._raise_failure(response, name, f"{size:,} bytes")
        if response.get("sha256") != digest.hexdigest():
            raise DeviceError(f"{name!r} was corrupted on its way to {self.way.host}: its sha256 differs")

    def python(self, arguments: Sequence[str], timeout: float) -> "CompletedProcess[str]":
        with self._explained("a job"):
            self._stream.send(_line(do="run", arguments=list(arguments), seconds=timeout))
            self._wait_for_turn()
            response = self._response(timeout + GRACE_SECONDS)
            if response.get("expired"):
                raise DeviceError(
                    f"the job did not finish within {timeout:g} s on {self.way.host} and was killed",
                    fix="raise the time limit, or measure with fewer samples",
                )
            self._raise_failure(response, "a job")
            code = self._number(response, "returncode", -256, 256)
            sizes = [self._number(response, name, 0, MAX_OUTPUT_BYTES) for name in ("stdout", "stderr")]
            texts = [b"".join(self._stream.data(size)).decode("utf-8", "replace") for size in sizes]
        return CompletedProcess([self.way.python, *arguments], code, *map(printable, texts))

    def _wait_for_turn(self) -> None:
        """Wait until the device runs no other job, from any client."""
        waited = 0.0
        while True:
            response = self._response()
            if response.get("started"):
                return
            if not response.get("waiting"):
                self._reject(response)
            if not waited:
                _LOG.warning("%s is busy with another job: waiting for it to finish", self.way.host)
            waited += 5.0
            if waited > WAIT_SECONDS:
                raise DeviceError(f"{self.way.host} has been busy with other jobs for {waited:g} s")

    def get(self, name: str, target: Path) -> None:
        """Fetch a file of the job folder; ``target`` is replaced only by the complete file.

        Raises:
            DeviceError: the job did not write the file, or the target cannot be written.
            ConnectionCutError: the connection was cut.
        """
        name = _inside(name)
        digest = hashlib.sha256()
        with self._explained(f"fetching {name!r}"):
            self._stream.send(_line(do="get", name=name))
            response = self._response()
            if response.get("errno") == "ENOENT":
                raise DeviceError(f"the job wrote no file {name!r}")
            self._raise_failure(response, name)
            size = self._number(response, "size", 0, MAX_FILE_BYTES)
            try:
                with replacing(target) as scratch:
                    with scratch.open("wb") as file:
                        for part in self._stream.data(size):
                            digest.update(part)
                            file.write(part)
                    if self._response().get("sha256") != digest.hexdigest():
                        raise DeviceError(
                            f"{name!r} was corrupted on its way from {self.way.host}: its sha256 differs"
                        )
            except OSError as error:
                self._stream.close(at_once=True)  # the rest of the file is still being sent
                raise DeviceError(f"cannot copy {name!r} to {target}: {error}") from error

    def close(self) -> None:
        self._stream.close()

    def _hello(self) -> dict[str, Any]:
        """The first response, after any output of the login shell."""
        noise = 0
        end = self.way.connect_timeout + START_SECONDS
        while noise < NOISE:
            line = self._stream.line(end)
            if line.startswith(MARKER):
                return self._parsed(line.removeprefix(MARKER))
            noise += len(line) + 1
        self._reject(f"{noise} bytes of other output")

    def _begin(self, hello: dict[str, Any]) -> None:
        host = self.way.host
        if "failure" in hello:
            raise DeviceError(
                f"cannot create a job folder on {host}: {first_line(str(hello['failure']))}",
                fix="free space on it, or set the option 'folder' to a writable folder",
            )
        if hello.get("numpy") is not True:
            python, version = (first_line(str(hello.get(name))) for name in ("executable", "python"))
            raise DeviceError(
                f"the Python {version} of {host} ({python}) has no numpy",
                fix=f"run: {self.way.by_hand} {python} -m pip install numpy; "
                "or set the option 'python' to another Python",
            )
        self.folder = str(hello.get("folder"))

    def _response(self, seconds: float = RESPONSE_SECONDS) -> dict[str, Any]:
        return self._parsed(self._stream.line(seconds))

    def _parsed(self, line: bytes) -> dict[str, Any]:
        response = json.loads(line)
        if not isinstance(response, dict):
            self._reject(response)
        return response

    def _number(self, response: dict[str, Any], name: str, low: int, high: int) -> int:
        value = response.get(name)
        if not isinstance(value, int) or not low <= value <= high:
            self._reject(response)
        return value

    def _raise_failure(self, response: dict[str, Any], name: str, what: str = "") -> None:
        if "failure" not in response:
            return
        if response.get("errno") in ("ENOSPC", "EDQUOT", "EFBIG"):
            raise DeviceError(
                f"the disk of {self.way.host} is full: no space for {name!r} ({what or 'a folder'}) in "
                f"{printable(self.folder)}",
                fix="free space on it, or set the option 'folder' to a folder on a larger disk",
            )
        reason = first_line(str(response["failure"]))
        raise DeviceError(f"{self.way.host} refused {name!r}: {reason}", fix=f"try: {self.way.by_hand}")

    def _reject(self, response: object) -> NoReturn:
        self._stream.close(at_once=True)
        shown = first_line(response if isinstance(response, str) else repr(response))[:100]
        raise DeviceError(
            f"{self.way.host} returned a malformed response: {shown}",
            fix="check that the option 'python' names a Python, and what the login shell prints: "
            f"{self.way.by_hand} true",
        )

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn errors of the stream into errors with a cause and a fix.

        Raises:
            DeviceError: the stream ended, or a response is malformed.
        """
        try:
            yield
        except StreamCutError as error:
            raise self._cause(doing) from error
        except ValueError as error:
            self._stream.close(at_once=True)
            raise DeviceError(
                f"{self.way.host} returned a malformed response: {error}",
                fix=f"check that the option 'python' names a Python; try: {self.way.by_hand}",
            ) from error

    def _cause(self, doing: str) -> DeviceError:
        code, stderr = self._stream.close()
        way, host = self.way, self.way.host
        if not self.folder:
            if TOO_OLD in stderr:
                version = first_line(stderr.partition(TOO_OLD)[2])
                oldest = ".".join(map(str, OLDEST_PYTHON))
                return DeviceError(
                    f"{way.python} on {host} is Python {version}, but {oldest} or newer is required",
                    fix="install a newer Python, and set the option 'python' to it",
                )
            if code == 255:
                explanation = explain(stderr, host, settings_of(way.command), way.by_hand)
                if explanation is not None:
                    return explanation
            if code in (126, 127):
                return DeviceError(
                    f"no Python {way.python!r} on {host}: {first_line(stderr)}",
                    fix="install Python on it, or set the option 'python' to its path",
                )
            if code < 0:
                return DeviceError(
                    f"{host} did not respond within {way.connect_timeout + START_SECONDS:g} s",
                    fix=f"try: {way.by_hand}",
                )
            return DeviceError(
                f"{host} returned no valid response (exit code {code}): {first_line(stderr)}",
                fix=f"check that the option 'python' names a Python; try: {way.by_hand}",
            )
        detail = f": {first_line(stderr)}" if stderr.strip() else ""
        return ConnectionCutError(
            f"the connection to {host} was cut during {doing}{detail}",
            fix=f"check the network and the power supply of the device; try: {way.by_hand}",
        )


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _inside(name: str) -> str:
    """Normalize a relative name; a path that leaves the job folder is rejected."""
    path = os.path.normpath(name)
    if not name or path in (".", "..") or path.startswith(("/", "../")) or "\0" in name:
        raise DeviceError(f"{name!r} is outside the job folder")
    return path
