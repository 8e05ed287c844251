"""A repository of an OCI registry, over the OCI distribution specification 1.1."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlencode, urljoin, urlsplit

from edgeopt.errors import RemoteError, VerificationError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.publish.oci import INDEX, LARGEST_MANIFEST, MANIFEST, Descriptor, describe, digest_of_bytes
from edgeopt.publish.remote import Progress, Remote, silent
from edgeopt.publish.remotes.authority import StoredLogin
from edgeopt.publish.remotes.credentials import DOCKER_HUB
from edgeopt.publish.remotes.http import Http, Upload
from edgeopt.publish.remotes.names import check_digest, check_reference, is_digest, is_loopback
from edgeopt.publish.remotes.patience import Attempts, Patience, usual_patience
from edgeopt.publish.remotes.transfer import Pieces, TransientError, explained, mismatch, receive

if TYPE_CHECKING:
    from requests import Response

_ACCEPT = {"Accept": f"{INDEX}, {MANIFEST}"}
_OCTETS = {"Content-Type": "application/octet-stream"}
_LARGEST_LIST = 16 << 20
_PAGES = 10_000
_REMEMBERED = 64


class Registry(Remote):
    """One repository of a registry.

    ``host`` is ``name[:port]``. ``secure`` turns TLS on or off; by default it is off on the loopback only.
    Credentials are those that ``docker login`` stored; they are read when the registry demands them.
    """

    def __init__(
        self, host: str, repository: str, *, secure: bool | None = None, patience: Patience | None = None
    ) -> None:
        import requests

        loopback = is_loopback(host)
        secure = not loopback if secure is None else secure
        self.url = f"oci://{host}/{repository}"
        self._host = host
        self._origin = f"{'https' if secure else 'http'}://{_api_host(host)}".lower()
        self._base = f"{self._origin}/v2/{repository}"
        session = requests.Session()
        # A ~/.netrc would override the credentials of docker login; the loopback has no proxy.
        session.auth = lambda request: request
        session.trust_env = not loopback
        self._http = Http(session, host, patience or usual_patience())
        self._login = self._http.authority = StoredLogin(host, self._origin, self._http)
        self._manifests: dict[str, tuple[bytes, str]] = {}

    def tags(self) -> list[str]:
        found: set[str] = set()
        url: str | None = f"{self._base}/tags/list?n=1000"
        seen: set[str] = set()
        while url and url not in seen and len(seen) < _PAGES:
            seen.add(url)
            response, data = self._http.document(url, limit=_LARGEST_LIST)
            if response.status_code == 404:
                break
            self._expect(response, (200,), "its tags", data)
            found.update(self._names(data))
            following = response.links.get("next", {}).get("url")
            url = self._same_server(urljoin(url, following)) if following else None
        return sorted(found)

    def resolve(self, reference: str) -> Descriptor | None:
        check_reference(reference)
        stored = self._manifest(reference)
        if stored is None:
            return None
        data, media_type = stored
        return describe(data, media_type)

    def manifest(self, digest: str) -> bytes:
        stored = self._manifests.get(digest) or self._manifest(digest)
        if stored is None:
            raise self._absent(digest)
        return stored[0]

    def has(self, digest: str) -> bool:
        response = self._http.request("HEAD", f"{self._base}/blobs/{check_digest(digest)}")
        if response.status_code == 404:
            return False
        self._expect(response, (200,), digest)
        return True

    def fetch(self, blob: Descriptor, target: Path, progress: Progress = silent) -> None:
        url = f"{self._base}/blobs/{blob.digest}"

        def open_at(offset: int) -> tuple[int, Pieces]:
            response, start, pieces = self._http.open_blob(url, blob, offset)
            if response.status_code == 404:
                self._http.ending(response)
                raise self._absent(blob.digest)
            self._expect(response, (200, 206), blob.digest)
            return start, pieces

        receive(blob, target, open_at, self._host, progress, Attempts(self._http.patience).again)

    def push_blob(self, blob: Descriptor, source: Path | bytes, progress: Progress = silent) -> None:
        if self.has(blob.digest):
            progress(blob.size)
            return
        attempts = Attempts(self._http.patience)
        while True:
            with _opened(source) as (file, size):
                if size != blob.size:
                    raise mismatch(blob.digest, "the uploaded data", f"it has {size} bytes, not {blob.size}")
                try:
                    return self._upload(blob, file, progress)
                except TransientError as failure:
                    progress(-file.tell())
                    attempts.again(failure)

    def push_manifest(self, data: bytes, media_type: str, tags: Sequence[str] = ()) -> Descriptor:
        digest = digest_of_bytes(data)
        for reference in tags or (digest,):
            check_reference(reference)
            url = f"{self._base}/manifests/{reference}"
            response = self._http.request("PUT", url, {"Content-Type": media_type}, data=data)
            self._expect(response, (201,), f"the manifest {reference}")
            self._same_digest(response, digest, reference)
        self._remember(digest, data, media_type)
        return describe(data, media_type)

    def _upload(self, blob: Descriptor, file: BinaryIO, progress: Progress) -> None:
        """Open an upload and send all of it; the registry checks the digest."""
        response = self._http.once("POST", f"{self._base}/blobs/uploads/", data=b"")
        self._expect(response, (202,), f"an upload to {self.url}")
        place = response.headers.get("Location")
        if not place:
            raise RemoteError(
                f"{self._host} started an upload without a Location header", fix="report it to the registry"
            )
        place = self._same_server(urljoin(response.url, place))
        place += ("&" if urlsplit(place).query else "?") + urlencode({"digest": blob.digest})
        body = Upload(file, blob.size, progress)
        response = self._http.once("PUT", place, _OCTETS, data=body)
        if response.status_code == 400 and _digest_of(file) != blob.digest:
            raise mismatch(blob.digest, "the uploaded data", "its bytes have another digest")
        self._expect(response, (201,), blob.digest)

    def _manifest(self, reference: str) -> tuple[bytes, str] | None:
        """The bytes and the media type of a manifest; None if it is not there."""
        url = f"{self._base}/manifests/{reference}"
        response, data = self._http.document(url, _ACCEPT, limit=LARGEST_MANIFEST)
        if response.status_code == 404:
            return None
        self._expect(response, (200,), f"the manifest {reference}", data)
        if len(data) > LARGEST_MANIFEST:
            raise VerificationError(
                f"the manifest {reference} in {self.url} is longer than {LARGEST_MANIFEST} bytes",
                fix="it is not a release: check what was pushed there",
            )
        digest = digest_of_bytes(data)
        if is_digest(reference) and digest != reference:
            raise VerificationError(
                f"{reference} in {self.url} is damaged: its bytes have another digest",
                fix="push it again, then pull again; nothing was stored",
            )
        self._same_digest(response, digest, reference)
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        self._remember(digest, data, media_type)
        return data, media_type

    def _remember(self, digest: str, data: bytes, media_type: str) -> None:
        if len(self._manifests) >= _REMEMBERED:
            self._manifests.clear()
        self._manifests[digest] = (data, media_type)

    def _same_digest(self, response: "Response", digest: str, reference: str) -> None:
        declared = response.headers.get("Docker-Content-Digest", digest)
        if is_digest(declared) and declared != digest:
            raise VerificationError(
                f"{self.url} declares {declared} for {reference}, but its bytes have {digest}",
                fix="nothing was stored; pull again; if it still fails, ask the registry's administrator",
            )

    def _same_server(self, url: str) -> str:
        """The URL with our scheme: a registry behind a proxy that terminates TLS sends ``http://``."""
        parts = urlsplit(url)
        mine = urlsplit(self._origin)
        return parts._replace(scheme=mine.scheme).geturl() if parts.netloc == mine.netloc else url

    def _names(self, data: bytes) -> list[str]:
        try:
            names = json_value(data)["tags"] or []
            return [name for name in names if isinstance(name, str)]
        except (ValueError, KeyError, TypeError) as error:
            raise RemoteError(
                f"{self._host} returned a malformed list of tags",
                fix="check that this is the address of a registry",
            ) from error

    def _absent(self, digest: str) -> RemoteError:
        return RemoteError(
            f"{digest} is not in {self.url} (404)", fix="push it again: it is incomplete there"
        )

    def _expect(self, response: "Response", statuses: tuple[int, ...], what: str, data: bytes = b"") -> None:
        """Raise an error that explains the status and its fix, unless it is one of ``statuses``."""
        status = response.status_code
        if status in statuses:
            if response.request.method != "GET":
                self._http.ending(response)
            return
        reply = self._login.concealed(_error_line(data or self._http.ending(response)))
        if status == 401:
            message, fix = f"{self._host} requires authentication (401)", f"docker login {self._host}"
        elif status == 403:
            message = f"{self._host} denies access to {self.url} (403)"
            fix = f"docker login {self._host} with an account that has access, or check the repository's name"
        elif status == 404:
            message, fix = f"{self.url} does not exist (404)", "check the repository's name"
        elif "HTTP request to an HTTPS server" in reply:
            message, fix = f"{self._host} requires TLS", "write oci+https://…"
        else:
            message, fix = f"{self._host} refuses {what}: {status} {reply}".rstrip(), "see the registry's log"
        raise RemoteError(message, fix=fix)


def _digest_of(file: BinaryIO) -> str:
    file.seek(0)
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, int]]:
    if isinstance(source, bytes):
        yield BytesIO(source), len(source)
        return
    with explained(source):
        file = source.open("rb")
    with file:
        yield file, os.fstat(file.fileno()).st_size


def _api_host(host: str) -> str:
    return "registry-1.docker.io" if host == DOCKER_HUB else host


def _error_line(data: bytes) -> str:
    """The error message of a registry's response, on one printable line."""
    text = data[:4096].decode("utf-8", "replace")
    try:
        first = json_value(text)["errors"][0]
        text = f"{first.get('code', '')} {first.get('message', '')}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass
    line = " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())
    return line if len(line) <= 160 else f"{line[:160]}…"
