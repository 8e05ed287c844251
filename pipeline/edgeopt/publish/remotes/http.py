"""HTTP requests with timeouts, retries, and explained failures."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from edgeopt.errors import RemoteError, UsageError
from edgeopt.publish.oci import Descriptor
from edgeopt.publish.remote import Progress
from edgeopt.publish.remotes.failures import explain_failure
from edgeopt.publish.remotes.patience import Attempts, Patience, retry_after
from edgeopt.publish.remotes.transfer import PIECE, RESUME, Pieces, TransientError, mismatch

if TYPE_CHECKING:
    from requests import Response, Session

CA_VARIABLES = ("EDGEOPT_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_TRANSIENT = (429, 500, 502, 503, 504)
_READ = 1 << 16
"""Bytes per read: the most that an interrupted connection loses."""
LEAST_RATE = 1024
"""Bytes per second that a server must send, on average over the read timeout.

The timeout of a socket restarts with every byte. Like the low-speed limits of curl and git, this gives up a
server that sends single bytes.
"""


def trusted_authorities() -> str | bool:
    """The CA bundle that servers are verified with; True for the default one.

    Raises:
        UsageError: a variable names a file that does not exist.
    """
    for variable in CA_VARIABLES:
        if path := os.environ.get(variable):
            if not Path(path).exists():
                raise UsageError(f"{variable} names {path}, which does not exist", fix=f"unset {variable}")
            return path
    return True


class Upload:
    """A file as a request body: sent in pieces, and from the beginning if it is sent again."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress) -> None:
        self._file = file
        self._size = size
        self._progress = progress

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(PIECE):
            yield piece

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._progress(len(piece))
        return piece

    def rewind(self) -> None:
        self._progress(-self._file.tell())
        self._file.seek(0)


class Authority(Protocol):
    """Answers authentication challenges."""

    def headers(self, url: str) -> dict[str, str]: ...

    def answer(self, response: "Response") -> bool: ...

    def concealed(self, text: str) -> str: ...


class Http:
    """One server; ``shown`` is its name in errors.

    Every method that sends a request may raise ``RemoteError``: the server cannot be reached, or all attempts
    failed.
    """

    def __init__(
        self, session: "Session", shown: str, patience: Patience, authority: Authority | None = None
    ) -> None:
        self.shown = shown
        self.patience = patience
        self.authority = authority
        self._session = session
        for scheme in ("http://", "https://"):
            session.mount(scheme, _adapter(2 * patience.read))
        self._verify = trusted_authorities()
        self._responded = False
        session.headers["User-Agent"] = "edgeopt"
        session.headers["Accept-Encoding"] = "identity"  # digests and ranges refer to uncompressed bytes

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        data: bytes | None = None,
        params: Mapping[str, str] | None = None,
        authorize: bool = True,
    ) -> "Response":
        """Send a request; retry until the outcome is final."""
        attempts = Attempts(self.patience)
        while True:
            try:
                return self.once(method, url, headers, data=data, params=params, authorize=authorize)
            except TransientError as failure:
                attempts.again(failure)

    def once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        data: bytes | Upload | None = None,
        params: Mapping[str, str] | None = None,
        authorize: bool = True,
    ) -> "Response":
        """Send a request without retries. The caller reads or closes the body of the response.

        Raises:
            TransientError: a retry may help.
        """
        import requests

        authority = self.authority if authorize else None
        timeout = (self.patience.connect, self.patience.read)
        challenged = False
        while True:
            login = authority.headers(url) if authority else {}
            if isinstance(data, Upload):
                data.rewind()
            try:
                response = self._session.request(
                    method,
                    url,
                    headers={**(headers or {}), **login},
                    data=data,
                    params=params,
                    stream=True,
                    # A redirected form would take its secret along, to any host.
                    allow_redirects=authorize or method != "POST",
                    timeout=timeout,
                    verify=self._verify,
                )
            except requests.RequestException as error:
                raise explain_failure(error, self.shown, self.patience, self._responded) from error
            self._responded = True
            if response.status_code in _TRANSIENT:
                self.ending(response)
                raise TransientError(
                    f"{self.shown} returned {response.status_code} {response.reason or ''}".rstrip(),
                    fix="try again later: received data are kept",
                    wait=retry_after(response.headers.get("Retry-After")),
                )
            if challenged or authority is None or response.status_code not in (401, 403):
                return response
            with ExitStack() as done:
                done.callback(self.ending, response)
                if not authority.answer(response):
                    done.pop_all()
                    return response
            challenged = True

    def body(self, response: "Response") -> Pieces:
        """The bytes of a streamed response.

        Raises:
            TransientError: the connection was interrupted, or is too slow.
        """
        from urllib3.exceptions import HTTPError

        waited, received, window = 0.0, 0, self.patience.read
        try:
            while True:
                before = time.monotonic()
                piece = response.raw.read1(_READ, decode_content=False)
                if not piece:
                    return
                waited += time.monotonic() - before
                received += len(piece)
                if waited >= window:
                    if received < LEAST_RATE * waited:
                        raise TransientError(
                            f"{self.shown} sent only {received} bytes in {waited:.1f} s",
                            fix="try again later, or raise EDGEOPT_READ_TIMEOUT",
                        )
                    waited, received = 0.0, 0
                yield piece
        except (HTTPError, OSError) as error:
            raise TransientError(f"{self.shown}: the transfer was interrupted", fix=RESUME) from error
        finally:
            response.close()

    def document(
        self, url: str, headers: Mapping[str, str] | None = None, *, limit: int
    ) -> tuple["Response", bytes]:
        """A small response: at most ``limit`` bytes of its body, plus one if it is longer."""
        attempts = Attempts(self.patience)
        while True:
            try:
                response = self.once("GET", url, headers)
                return response, self.beginning(response, limit)
            except TransientError as failure:
                attempts.again(failure)

    def ending(self, response: "Response") -> bytes:
        """Consume an unneeded response, so that its connection can be reused; return its first bytes."""
        try:
            return self.beginning(response, _READ)
        except TransientError:
            return b""  # the content does not matter

    def beginning(self, response: "Response", limit: int) -> bytes:
        data = b""
        with closing(self.body(response)) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > limit:
                    break
        return data[: limit + 1]

    def open_blob(self, url: str, blob: Descriptor, offset: int) -> tuple["Response", int, Pieces]:
        """Request a blob from an offset on; return the response, the actual offset and the bytes.

        For a status other than 200 and 206 the bytes are those of the error message.

        Raises:
            VerificationError: the server reports another size.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self.request("GET", url, headers)
        start, size = _extent(response, offset)
        if response.status_code == 416 or (response.ok and size not in (None, blob.size)):
            response.close()
            reported = "fewer" if size is None else size
            raise mismatch(blob.digest, self.shown, f"it has {reported} bytes, expected {blob.size}")
        if start not in (0, offset):
            response.close()
            raise RemoteError(
                f"{self.shown} returned another range than requested",
                fix="report it to the server's operator",
            )
        return response, start, self.body(response)


def _adapter(seconds: float) -> Any:
    """An adapter of requests that gives up a response if its headers take longer than ``seconds``."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool = super().get_connection_with_tls_context(*args, **kwargs)
            pool.ConnectionCls = _impatient(type(pool).ConnectionCls, seconds)
            return pool

    return Adapter()


@cache
def _impatient(connection: Any, seconds: float) -> Any:
    """A class of connections that are cut if the head of a response is not there after ``seconds``."""

    class Impatient(connection):
        def getresponse(self) -> Any:
            late = threading.Event()
            timer = threading.Timer(seconds, _cut, [self.sock, late])
            timer.daemon = True
            timer.start()
            try:
                response = super().getresponse()
            except Exception as error:
                if late.is_set():
                    raise TimeoutError from error
                raise
            finally:
                timer.cancel()
            if late.is_set():  # what came of the headers would count as all of them
                response.close()
                raise TimeoutError
            return response

    return Impatient


def _cut(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):  # it has just been closed
        # Not the method of SSLSocket, which would switch a reading thread to plain text.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _extent(response: "Response", offset: int) -> tuple[int, int | None]:
    """The offset of a response's bytes, and the total size if the response declares it."""
    content_range = response.headers.get("Content-Range", "").removeprefix("bytes ")
    span, _, total = content_range.partition("/")
    if response.status_code == 206:
        first = _number(span.partition("-")[0])
        return offset if first is None else first, _number(total)
    if response.status_code == 200:
        return 0, _number(response.headers.get("Content-Length", ""))
    return 0, _number(total)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None
