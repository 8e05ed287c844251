"""Layout files on a web server, read-only."""

from edgeopt.errors import RemoteError
from edgeopt.publish.oci import Descriptor
from edgeopt.publish.remotes.http import Http
from edgeopt.publish.remotes.patience import Attempts, Patience, usual_patience
from edgeopt.publish.remotes.place import Place
from edgeopt.publish.remotes.transfer import Again, Pieces


class Web(Place):
    """``https://host/path``, with credentials from ``~/.netrc``; ``loopback``: without a proxy.

    It uses requests, which the base installation includes: fsspec requires aiohttp, and cannot resume
    interrupted downloads.
    """

    lists = False

    def __init__(self, url: str, *, loopback: bool = False, patience: Patience | None = None) -> None:
        import requests

        session = requests.Session()
        session.trust_env = not loopback
        self.shown = url
        self._http = Http(session, url, patience or usual_patience())

    def read(self, name: str, limit: int) -> bytes | None:
        response, data = self._http.document(f"{self.shown}/{name}", limit=limit)
        return data if self._exists(response.status_code, name) else None

    def open_at(self, name: str, blob: Descriptor, offset: int) -> tuple[int, Pieces] | None:
        response, start, pieces = self._http.open_blob(f"{self.shown}/{name}", blob, offset)
        if response.status_code not in (200, 206):
            self._http.ending(response)
        return (start, pieces) if self._exists(response.status_code, name) else None

    def size(self, name: str) -> int | None:
        response = self._http.request("HEAD", f"{self.shown}/{name}")
        self._http.ending(response)
        if not self._exists(response.status_code, name):
            return None
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None

    def attempts(self) -> Again:
        return Attempts(self._http.patience).again

    def _exists(self, status: int, name: str) -> bool:
        if status in (404, 410):
            return False
        if status in (401, 403):
            raise RemoteError(
                f"{self.shown} denies access to {name} ({status})",
                fix="check the URL, and its entry in ~/.netrc",
            )
        if status not in (200, 206):
            raise RemoteError(
                f"{self.shown} returned {status} for {name}",
                fix="check that the URL is that of a pushed folder",
            )
        return True
