"""Requests that are patient: with timeouts, tried again when that may help, explained when it does not."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from edgeopt.errors import RemoteError, UsageError
from edgeopt.publish.oci import Descriptor
from edgeopt.publish.remote import Progress
from edgeopt.publish.remotes.failures import explain_failure
from edgeopt.publish.remotes.patience import Attempts, Patience, asked_wait
from edgeopt.publish.remotes.transfer import PIECE, Pieces, TransientError, mismatch

if TYPE_CHECKING:
    from requests import Response, Session

CA_VARIABLES = ("EDGEOPT_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_OVERLOADED = (429, 500, 502, 503, 504)
_READ = 1 << 16
"""Bytes: what is lost at most when a connection breaks off."""


def trusted_authorities() -> str | bool:
    """The file of certificates that servers are checked against; True for the usual ones.

    Raises:
        UsageError: a variable names a file that is not there.
    """
    for variable in CA_VARIABLES:
        if path := os.environ.get(variable):
            if not Path(path).exists():
                raise UsageError(f"{variable} names {path}, which is not there", fix=f"unset {variable}")
            return path
    return True


class Upload:
    """A file as the body of a request: sent in pieces, and from the beginning when it is sent again."""

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
    """Answers a server that asks who is there."""

    def headers(self, url: str) -> dict[str, str]: ...

    def answer(self, response: "Response") -> bool: ...

    def concealed(self, text: str) -> str: ...


class Http:
    """One server. ``shown`` is how errors name it.

    Raises, in every method:
        RemoteError: it cannot be reached, or was tried often enough.
    """

    def __init__(
        self, session: "Session", shown: str, patience: Patience, authority: Authority | None = None
    ) -> None:
        self.shown = shown
        self.patience = patience
        self.authority = authority
        self._session = session
        self._verify = trusted_authorities()
        self._met = False
        session.headers["User-Agent"] = "edgeopt"
        session.headers["Accept-Encoding"] = "identity"  # digests and ranges are those of the plain bytes

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
        """Ask until there is an answer that another attempt would not change."""
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
        """Ask a single time. The answer's body is still to be read, or to be closed.

        Raises:
            TransientError: another attempt may help.
        """
        import requests

        authority = self.authority if authorize else None
        timeout = (self.patience.connect, self.patience.read)
        asked_who = False
        while True:
            known = authority.headers(url) if authority else {}
            if isinstance(data, Upload):
                data.rewind()
            try:
                response = self._session.request(
                    method,
                    url,
                    headers={**(headers or {}), **known},
                    data=data,
                    params=params,
                    stream=True,
                    timeout=timeout,
                    verify=self._verify,
                )
            except requests.RequestException as error:
                raise explain_failure(error, self.shown, self.patience, self._met) from error
            self._met = True
            if response.status_code in _OVERLOADED:
                self.ending(response)
                raise TransientError(
                    f"{self.shown} answers {response.status_code} {response.reason or ''}".rstrip(),
                    fix="try again later: what has come is kept",
                    wait=asked_wait(response.headers.get("Retry-After")),
                )
            if asked_who or authority is None or response.status_code not in (401, 403):
                return response
            with ExitStack() as done:
                done.callback(self.ending, response)
                if not authority.answer(response):
                    done.pop_all()
                    return response
            asked_who = True

    def body(self, response: "Response") -> Pieces:
        """What a streamed answer brings, as it comes.

        Raises:
            TransientError: it broke off.
        """
        from urllib3.exceptions import HTTPError

        try:
            yield from response.raw.stream(_READ, decode_content=False)
        except (HTTPError, OSError) as error:
            raise TransientError(
                f"{self.shown} broke off in the middle", fix="run it again: it goes on where it stopped"
            ) from error
        finally:
            response.close()

    def document(
        self, url: str, headers: Mapping[str, str] | None = None, *, limit: int
    ) -> tuple["Response", bytes]:
        """A small answer as a whole: at most ``limit`` bytes, and one more where there are more."""
        attempts = Attempts(self.patience)
        while True:
            try:
                response = self.once("GET", url, headers)
                return response, self._beginning(response, limit)
            except TransientError as failure:
                attempts.again(failure)

    def ending(self, response: "Response") -> bytes:
        """The first bytes of an answer that is not wanted, after which the connection can be used again."""
        try:
            return self._beginning(response, _READ)
        except TransientError:
            return b""  # what it was to be does not matter any more

    def _beginning(self, response: "Response", limit: int) -> bytes:
        data = b""
        with closing(self.body(response)) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > limit:
                    break
        return data[: limit + 1]

    def open_blob(self, url: str, blob: Descriptor, offset: int) -> tuple["Response", int, Pieces]:
        """Ask for a blob from an offset on: the answer, where it really begins, and its bytes.

        The bytes of an answer that says no (a status other than 200 and 206) are what it says.

        Raises:
            VerificationError: it is longer or shorter there than it should be.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self.request("GET", url, headers)
        start, size = _extent(response, offset)
        if response.status_code == 416 or (response.ok and size not in (None, blob.size)):
            response.close()
            told = "fewer" if size is None else size
            raise mismatch(blob.digest, self.shown, f"it has {told} bytes there, not {blob.size}")
        if start not in (0, offset):
            response.close()
            raise RemoteError(f"{self.shown} sends another part than was asked for", fix="report it there")
        return response, start, self.body(response)


def _extent(response: "Response", offset: int) -> tuple[int, int | None]:
    """Where the bytes of an answer begin, and the size of the whole, where it is told."""
    told = response.headers.get("Content-Range", "").removeprefix("bytes ")
    span, _, whole = told.partition("/")
    if response.status_code == 206:
        first = _number(span.partition("-")[0])
        return offset if first is None else first, _number(whole)
    if response.status_code == 200:
        return 0, _number(response.headers.get("Content-Length", ""))
    return 0, _number(whole)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None
