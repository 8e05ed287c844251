"""The comments of one pull request through the HTTP API of its host."""

import json
from typing import Any, NamedTuple

from edgeopt.errors import RemoteError
from edgeopt.formats.wire.bounded import JSON_LIMIT, json_value
from edgeopt.publish.remotes.http import Http
from edgeopt.publish.remotes.patience import Patience, usual_patience

PAGE = 100
"""Comments per request; the most that both hosts return."""
MAX_PAGES = 100
MAX_ANSWER = JSON_LIMIT
"""Bytes of a page of comments."""


class PullRequest(NamedTuple):
    """Where the comments of a pull request are, in the API of its host."""

    host: str
    """Name in messages."""
    comments: str
    """URL that lists the comments and takes new ones."""
    one: str
    """URL of one comment, with ``{}`` for its number."""
    update: str
    """Method that changes a comment."""
    headers: dict[str, str]
    """With the token, if there is one."""


class Forbidden(RemoteError):
    """The token may not read or write the comments."""


class Api:
    """Requests to the host; each may raise ``RemoteError``, or ``TransientError`` if a retry may help."""

    def __init__(self, where: PullRequest, patience: Patience | None = None) -> None:
        import requests

        self.patience = patience or usual_patience()
        self._where = where
        self._http = Http(requests.Session(), where.host, self.patience)

    def find(self, mark: str) -> int | None:
        """The number of the oldest comment that starts with a mark."""
        for page in range(1, MAX_PAGES + 1):
            comments = self._send("GET", self._where.comments, {"per_page": str(PAGE), "page": str(page)})
            if not isinstance(comments, list):
                raise RemoteError(f"{self._where.host} returned no list of comments")
            for comment in comments:
                if isinstance(comment, dict) and str(comment.get("body")).startswith(mark):
                    return int(comment["id"])
            if len(comments) < PAGE:
                break
        return None

    def add(self, body: str) -> str:
        return _address(self._send("POST", self._where.comments, body=body))

    def replace(self, number: int, body: str) -> str:
        return _address(self._send(self._where.update, self._where.one.format(number), body=body))

    def _send(
        self, method: str, url: str, params: dict[str, str] | None = None, *, body: str | None = None
    ) -> Any:
        data = None if body is None else json.dumps({"body": body}).encode()
        headers = {"Content-Type": "application/json", **self._where.headers}
        response = self._http.once(method, url, headers, data=data, params=params)
        answer = self._http.beginning(response, MAX_ANSWER)
        if response.status_code in (401, 403, 404):
            # 404 as well: hosts hide what a token may not see.
            raise Forbidden(
                f"{self._where.host} refused the comment: {response.status_code} {response.reason}",
                fix="give the job a token that may write comments",
            )
        if not response.ok:
            raise RemoteError(f"{self._where.host} returned {response.status_code} {response.reason}")
        try:
            return json_value(answer.decode("utf-8"))
        except ValueError as error:
            raise RemoteError(f"{self._where.host} returned a malformed response") from error


def _address(comment: Any) -> str:
    return str(comment.get("html_url") or "") if isinstance(comment, dict) else ""
