"""Who is there: how a registry is answered that asks, with basic authentication or with tokens.

The protocols are those of the ``oras`` package; here lies what it leaves open: which of them a registry asks
for, expired and too narrow tokens, identity tokens, and that nothing secret goes where it should not.
"""

import re
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from edgeopt.errors import RemoteError
from edgeopt.publish.remotes.credentials import Credentials, credentials_for

if TYPE_CHECKING:
    from requests import Response

    from edgeopt.publish.remotes.http import Http

_CLIENT = "edgeopt"


class StoredLogin:
    """Answers a registry with what ``docker login`` has stored, or anonymously.

    ``host`` is the registry as people write it, ``origin`` its ``scheme://host:port``, ``provider`` the
    registry of oras whose token authentication is used.
    """

    def __init__(self, host: str, origin: str, provider: Any, http: "Http") -> None:
        self._host = host
        self._origin = origin
        self._tokens = provider.auth
        self._tokens.session = _TokenService(http, origin)
        self._headers: dict[str, str] = {}
        self._credentials: Credentials | None = None
        self._looked = False

    def headers(self, url: str) -> dict[str, str]:
        """What goes along with a request: nothing, where it leads to another server."""
        return dict(self._headers) if _origin(url) == self._origin else {}

    def answer(self, response: "Response") -> bool:
        """Get what a refusal asks for; False if there is nothing (else) to say."""
        schemes = _schemes(response.headers.get("Www-Authenticate", ""))
        if _origin(response.url) != self._origin or not schemes:
            return False
        return self._bearer(response) if "bearer" in schemes else self._basic()

    def concealed(self, text: str) -> str:
        """A server's text, in case it repeats what it was told."""
        secrets = [value.partition(" ")[2] for value in self._headers.values()]
        if self._credentials:
            secrets.append(self._credentials.secret)
        for secret in filter(None, secrets):
            text = text.replace(secret, "…")
        return text

    def _stored(self) -> Credentials | None:
        if not self._looked:
            self._credentials, self._looked = credentials_for(self._host), True
        return self._credentials

    def _basic(self) -> bool:
        import oras.auth.basic

        login = self._stored()
        if login is None or login.identity or self._headers:
            return False  # or what we said was not believed
        basic = oras.auth.basic.BasicAuth()
        basic.set_basic_auth(login.user, login.secret)
        self._headers = basic.get_auth_header()
        return True

    def _bearer(self, response: "Response") -> bool:
        import oras.auth.utils

        asked = oras.auth.utils.parse_auth_header(response.headers["Www-Authenticate"])
        _check_realm(asked.realm, self._origin, self._host)
        login = self._stored()
        if login is not None and login.identity:
            token = self._exchanged(asked, login)
        else:
            if login is not None:
                self._tokens.set_basic_auth(login.user, login.secret)
            # A token in hand was not enough: it has expired, or is for reading only.
            self._tokens.authenticate_request(response, {}, refresh=True)
            token = self._tokens.token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        return bool(token)

    def _exchanged(self, asked: Any, login: Credentials) -> str | None:
        """An identity token buys tokens as OAuth 2 says (grant type ``refresh_token``)."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": login.secret,
            "client_id": _CLIENT,
            "service": asked.service or self._host,
            "scope": asked.scope or "",
        }
        answer = self._tokens.session.post(asked.realm, form)
        if answer.status_code != 200:
            return None
        fields = answer.json()
        return cast(str, fields.get("access_token") or fields.get("token"))


class _TokenService:
    """The session that oras asks for tokens: as patient as all requests, and sure of what came."""

    def __init__(self, http: "Http", origin: str) -> None:
        self._http = http
        self._origin = origin

    def get(self, url: str, **options: Any) -> "Response":
        return self.request("GET", url, **options)

    def request(
        self,
        method: str,
        url: str,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        verify: object = None,  # settled for all requests alike
    ) -> "Response":
        return self._checked(self._http.request(method, url, headers, params=params, authorize=False))

    def post(self, url: str, form: dict[str, str]) -> "Response":
        from urllib.parse import urlencode

        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        data = urlencode(form).encode()
        return self._checked(self._http.request("POST", url, headers, data=data, authorize=False))

    def _checked(self, response: "Response") -> "Response":
        if response.status_code != 200:
            return response
        try:
            fields = response.json()
        except ValueError:
            fields = None
        token = isinstance(fields, dict) and (fields.get("token") or fields.get("access_token"))
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            host = urlsplit(response.url).netloc.rpartition("@")[2]
            raise RemoteError(f"{host} was asked for a token and gave none", fix="try again later")
        return response


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _schemes(challenge: str) -> set[str]:
    return {
        name.lower() for name in re.findall(r"(?:^|,)\s*(basic|bearer)(?=\s|$)", challenge, re.IGNORECASE)
    }


def _check_realm(realm: str | None, origin: str, host: str) -> None:
    """A password that came over TLS does not leave without it."""
    secure = origin.startswith("https:")
    allowed = ("https://",) if secure else ("https://", "http://")
    if not realm or not realm.startswith(allowed):
        raise RemoteError(
            f"{host} wants a token from where no password should go: {(realm or 'nowhere')[:80]!r}",
            fix="ask who runs the registry",
        )
