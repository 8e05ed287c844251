"""Objects on a web server that understands GET, HEAD, PUT and DELETE."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from edgeopt.run.shared.objects import Objects, UnavailableError

TIMEOUTS = 10.0, 60.0
"""Seconds to connect, and between two packets of an answer."""
ATTEMPTS = 5
"""Retries of a request, with delays of 15 seconds altogether."""
PIECE = 1 << 20
ABSENT = (404, 410)


class Web(Objects):
    """``https://host/path``, with the credentials of the URL or of ``~/.netrc``."""

    def __init__(self, url: str) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        parts = urlsplit(url)
        self.shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._url = url.rstrip("/")
        self._session = requests.Session()
        retries = Retry(
            ATTEMPTS,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,  # all of them may be repeated
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retries))

    def read(self, name: str, target: Path, limit: int) -> bool:
        with self._request("GET", name, stream=True) as response:
            if response.status_code in ABSENT:
                return False
            self._expect(response, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for piece in response.iter_content(PIECE):
                    if file.tell() + len(piece) > limit:
                        raise UnavailableError(f"{self.shown}: {name} has more than {limit:,} bytes")
                    file.write(piece)
        return True

    def has(self, name: str) -> bool:
        with self._request("HEAD", name) as response:
            if response.status_code in ABSENT:
                return False
            self._expect(response, name)
        return True

    def write(self, name: str, source: Path) -> None:
        with source.open("rb") as file, self._request("PUT", name, data=file) as response:
            self._expect(response, name)

    def delete(self, name: str) -> None:
        with self._request("DELETE", name) as response:
            if response.status_code not in ABSENT:
                self._expect(response, name)

    @contextmanager
    def _request(self, method: str, name: str, **options: Any) -> Iterator[Any]:
        import requests

        try:
            # Objects are bytes: no encoding for the way, and no other server than the one that was named.
            with self._session.request(
                method,
                f"{self._url}/{name}",
                timeout=TIMEOUTS,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
                **options,
            ) as response:
                yield response
        except requests.RequestException as error:
            raise UnavailableError(f"{self.shown} cannot be reached ({_kind(error)})") from error

    def _expect(self, response: Any, name: str) -> None:
        if not 200 <= response.status_code < 300:
            folder = name.partition("/")[0]
            raise UnavailableError(
                f"{self.shown} answers {response.request.method} {folder}/… with {response.status_code}"
            )


def _kind(error: Exception) -> str:
    """The innermost cause, by its kind: texts of requests contain URLs."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return type(reason or error).__name__
