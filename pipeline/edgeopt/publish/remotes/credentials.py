"""Credentials stored by ``docker login`` or ``podman login``, in a file or in a credential helper."""

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.config.withheld import whole_environment
from edgeopt.errors import RemoteError, UsageError
from edgeopt.formats.wire.bounded import json_value

DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_SECONDS = 60
_TOKEN_USER = "<token>"
"""User name by which helpers and ``docker login`` mark an identity token."""


class Credentials(NamedTuple):
    """A user name and a password or, with ``identity``, a token to exchange for access tokens."""

    user: str
    secret: str
    identity: bool = False

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def credentials_for(host: str) -> Credentials | None:
    """The credentials stored for ``host[:port]``; None if there are none.

    The order of docker: the registry's own credential helper, the default helper, the configuration file.

    Raises:
        UsageError: a configuration file is damaged.
        RemoteError: a credential helper is missing or fails.
    """
    for path in _files():
        config = _read(path)
        credentials = _from_helper(config, host) or _from_file(config, host, path)
        if credentials:
            return credentials
    return None


def _files() -> Iterator[Path]:
    folder = os.environ.get("DOCKER_CONFIG")
    yield (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json_value(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not JSON"
        raise UsageError(f"cannot read {path}: {why}", fix="repair it, or log in again") from error
    return config if isinstance(config, dict) else {}


def _from_helper(config: dict[str, Any], host: str) -> Credentials | None:
    helpers = config.get("credHelpers")
    name = (helpers.get(host) if isinstance(helpers, dict) else None) or config.get("credsStore")
    if not name:
        return None
    if not re.fullmatch(r"[A-Za-z0-9._-]+", str(name)):
        raise UsageError(
            f"{name!r} is not a valid credential helper name", fix="repair the docker configuration"
        )
    program = f"docker-credential-{name}"
    try:
        completed = subprocess.run(
            [program, "get"],
            input=(_DOCKER_HUB_KEY if host == DOCKER_HUB else host).encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
            env=whole_environment(),  # a helper may take the secret from there
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "does not respond" if isinstance(error, subprocess.TimeoutExpired) else "cannot be started"
        raise RemoteError(
            f"{program} {why}; it stores the password for {host}",
            fix=f"install {program}, or remove it from docker's configuration and run 'docker login {host}'",
        ) from error
    # The output is never shown: it may contain the secret.
    if completed.returncode != 0:
        if b"not found" in completed.stdout or b"not found" in completed.stderr:
            return None
        raise RemoteError(f"{program} failed for {host}", fix=f"docker login {host}")
    try:
        reply = json_value(completed.stdout)
        user, secret = str(reply["Username"]), str(reply["Secret"])
    except (ValueError, KeyError, TypeError):
        # The cause is suppressed for the same reason.
        raise RemoteError(
            f"{program} returned no credentials for {host}", fix=f"docker login {host}"
        ) from None
    return Credentials(user, secret, identity=user == _TOKEN_USER)


def _from_file(config: dict[str, Any], host: str, path: Path) -> Credentials | None:
    entries = config.get("auths")
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if _host_of(key) != host or not isinstance(entry, dict):
            continue
        if entry.get("identitytoken"):
            return Credentials(_TOKEN_USER, str(entry["identitytoken"]), identity=True)
        if entry.get("auth"):
            return _decoded(str(entry["auth"]), host, path)
    return None


def _host_of(key: str) -> str:
    """The host of a key; old keys are URLs: ``https://host/v1/``."""
    if key == _DOCKER_HUB_KEY:
        return DOCKER_HUB
    return key.partition("://")[2].partition("/")[0] if "://" in key else key


def _decoded(auth: str, host: str, path: Path) -> Credentials:
    try:
        user, colon, secret = base64.b64decode(auth).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise UsageError(f"{path}: the entry for {host} is damaged", fix=f"docker login {host}") from None
    return Credentials(user, secret)
