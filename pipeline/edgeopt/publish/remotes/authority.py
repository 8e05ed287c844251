"""Authentication to a registry: basic, or with tokens as the distribution project's specification has it.

Registries choose the scheme in the ``WWW-Authenticate`` header of a refusal (RFC 9110, section 11.6.1).
Tokens may expire or be too narrow, so each refusal fetches a new one. Secrets are sent to the registry and to
its token service only, if that is on a host of the same owner.
"""

import base64
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from edgeopt.errors import RemoteError
from edgeopt.publish.remotes.credentials import Credentials, credentials_for

if TYPE_CHECKING:
    from requests import Response

    from edgeopt.publish.remotes.http import Http

TOKEN_HOSTS = "EDGEOPT_TOKEN_HOSTS"
_SECOND_LEVEL = frozenset("ac co com edu go gob gouv gov ltd mil ne net or org plc sch".split())
"""Below a country's domain, these are not registered themselves."""
_SHARED = frozenset(
    "amazonaws.com appspot.com azure.com azurecr.io cloudfront.net duckdns.org fly.dev github.io gitlab.io "
    "herokuapp.com onrender.com pkg.dev run.app ts.net workers.dev".split()
)
"""Domains of hosting services: each subdomain belongs to another customer."""
_CLIENT = "edgeopt"
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class StoredLogin:
    """Authenticates with the credentials that ``docker login`` has stored, or anonymously.

    ``host`` is the registry as people write it, ``origin`` its ``scheme://host:port``. ``http`` sends the
    requests to token services.
    """

    def __init__(self, host: str, origin: str, http: "Http") -> None:
        self._host = host
        self._origin = origin
        self._http = http
        self._headers: dict[str, str] = {}
        self._credentials: Credentials | None = None
        self._looked_up = False

    def headers(self, url: str) -> dict[str, str]:
        """The headers that authenticate a request to ``url``: none for another server."""
        return dict(self._headers) if _origin(url) == self._origin else {}

    def answer(self, response: "Response") -> bool:
        """Authenticate as a refusal demands; False if that is impossible or was tried already."""
        challenge = response.headers.get("Www-Authenticate", "")
        schemes = _schemes(challenge)
        if _origin(response.url) != self._origin or not schemes:
            return False
        return self._bearer(challenge) if "bearer" in schemes else self._basic()

    def concealed(self, text: str) -> str:
        """A server's text without the secrets that it may repeat."""
        secrets = [value.partition(" ")[2] for value in self._headers.values()]
        if self._credentials:
            secrets.append(self._credentials.secret)
        for secret in filter(None, secrets):
            text = text.replace(secret, "…")
        return text

    def _stored(self) -> Credentials | None:
        if not self._looked_up:
            self._credentials, self._looked_up = credentials_for(self._host), True
        return self._credentials

    def _basic(self) -> bool:
        login = self._stored()
        if login is None or login.identity or self._headers:
            return False  # no password to send, or it was refused
        self._headers = _basic_header(login)
        return True

    def _bearer(self, challenge: str) -> bool:
        parameters = _bearer_parameters(challenge)
        realm = _checked_realm(parameters.get("realm"), self._origin, self._host)
        login = self._stored()
        if login is not None and not may_log_in(realm, self._origin):
            there = urlsplit(realm).netloc.rpartition("@")[2][:80]
            raise RemoteError(
                f"{self._host} names a token service on another host: no password is sent to {there}",
                fix=f"if it is known to belong to {self._host}: {TOKEN_HOSTS}={urlsplit(realm).hostname}",
            )
        if login is not None and login.identity:
            token = self._exchange(realm, parameters, login)
        else:
            token = self._fetch(realm, parameters, login)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        return bool(token)

    def _fetch(self, realm: str, parameters: dict[str, str], login: Credentials | None) -> str | None:
        """A token for the password, or an anonymous one."""
        query = {name: parameters[name] for name in ("service", "scope") if parameters.get(name)}
        headers = _basic_header(login) if login else {}
        return _token(
            self._http.request("GET", realm, headers, params={**query, "client_id": _CLIENT}, authorize=False)
        )

    def _exchange(self, realm: str, parameters: dict[str, str], login: Credentials) -> str | None:
        """A token for an identity token: the OAuth 2 grant type ``refresh_token`` (RFC 6749, section 6)."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": login.secret,
            "client_id": _CLIENT,
            "service": parameters.get("service") or self._host,
            "scope": parameters.get("scope", ""),
        }
        data = urlencode(form).encode()
        return _token(self._http.request("POST", realm, _FORM, data=data, authorize=False))


def _basic_header(login: Credentials) -> dict[str, str]:
    # As UTF-8 (RFC 7617): requests itself would encode text as Latin-1.
    pair = f"{login.user}:{login.secret}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _bearer_parameters(challenge: str) -> dict[str, str]:
    """``realm``, ``service`` and ``scope`` of a ``Bearer`` challenge; further challenges may follow it."""
    from requests.utils import parse_dict_header

    found = re.search(r"(?:^|,)\s*bearer\s+(.*)", challenge, re.IGNORECASE | re.DOTALL)
    fields = parse_dict_header(found[1]) if found else {}
    return {name.lower(): value for name, value in fields.items() if value}


def _token(response: "Response") -> str | None:
    """The token in a token service's response; None if it refused.

    Raises:
        RemoteError: it accepted, but sent no token, or one that does not fit into a header.
    """
    if response.status_code != 200:
        return None
    try:
        fields = response.json()
    except ValueError:
        fields = None
    token = isinstance(fields, dict) and (fields.get("token") or fields.get("access_token"))
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        host = urlsplit(response.url).netloc.rpartition("@")[2]
        raise RemoteError(f"{host} sent a response without a valid token", fix="try again later")
    return token


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _schemes(challenge: str) -> set[str]:
    return {
        name.lower() for name in re.findall(r"(?:^|,)\s*(basic|bearer)(?=\s|$)", challenge, re.IGNORECASE)
    }


def _checked_realm(realm: str | None, origin: str, host: str) -> str:
    """The address of the token service: with TLS, if the registry itself has it.

    Raises:
        RemoteError: it is not an address of this kind.
    """
    secure = origin.startswith("https:")
    allowed = ("https://",) if secure else ("https://", "http://")
    if not realm or not realm.startswith(allowed):
        raise RemoteError(
            f"{host} names an insecure token service: no password is sent to {(realm or 'none')[:80]!r}",
            fix="ask the administrator of the registry",
        )
    return realm


def may_log_in(realm: str, origin: str) -> bool:
    """Whether the credentials for a registry may be sent to the token service at ``realm``.

    Any response of a registry can name any address. Docker and containerd bind credentials to the host of the
    registry, and send them to its realm wherever that is. Here, the realm must be on the same host, or below
    the same registered domain: Docker Hub, ``registry-1.docker.io``, uses ``auth.docker.io``, and GitLab,
    ``registry.gitlab.com``, uses ``gitlab.com``. ``EDGEOPT_TOKEN_HOSTS`` lists further hosts.
    """
    there, here = urlsplit(realm).hostname or "", urlsplit(origin).hostname or ""
    if urlsplit(realm).username is not None or not there:
        return False
    listed = os.environ.get(TOKEN_HOSTS, "").lower().replace(",", " ").split()
    owner = _registered(here)
    return there == here or there in listed or (owner is not None and owner == _registered(there))


def _registered(host: str) -> str | None:
    """The domain that the owner of a host has registered; None if it cannot be told from the name.

    It is the last two labels, or three below a second-level domain such as ``co.uk``. Subdomains of hosting
    services have no common owner.
    """
    labels = host.rstrip(".").split(".")
    if labels[-1].isdigit() or ":" in host or len(labels) < 2:
        return None  # an IP address, or a local name
    count = 3 if len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else 2
    domain = ".".join(labels[-count:])
    return domain if len(labels) >= count and domain not in _SHARED else None
