"""What ``docker login`` (or ``podman login``) has stored for a registry: in its file, or behind a helper."""

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import RemoteError, UsageError

DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_SECONDS = 60
_TOKEN_USER = "<token>"
"""User name by which helpers and ``docker login`` mark an identity token."""


class Credentials(NamedTuple):
    """A user and a password, or (``identity``) a token that is exchanged for others."""

    user: str
    secret: str
    identity: bool = False

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def credentials_for(host: str) -> Credentials | None:
    """What is stored for ``host[:port]``; None if nobody has logged in there.

    Like docker: a helper of this registry, then the helper of all, then the file.

    Raises:
        UsageError: a configuration file is damaged.
        RemoteError: a credential helper is missing or fails.
    """
    for path in _files():
        config = _read(path)
        found = _from_helper(config, host) or _from_file(config, host, path)
        if found:
            return found
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
        config = json.loads(path.read_text("utf-8"))
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
        raise UsageError(f"{name!r} is no name of a credential helper", fix="repair the docker configuration")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=(_DOCKER_HUB_KEY if host == DOCKER_HUB else host).encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "does not answer" if isinstance(error, subprocess.TimeoutExpired) else "cannot be started"
        raise RemoteError(
            f"{program} {why}, and it keeps the password for {host}",
            fix=f"install {program}, or take it out of the docker configuration and 'docker login {host}'",
        ) from error
    # Its output is never shown: it may hold what it was asked for.
    if done.returncode != 0:
        if b"not found" in done.stdout or b"not found" in done.stderr:
            return None
        raise RemoteError(f"{program} failed for {host}", fix=f"docker login {host}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        # Without the cause, for the same reason.
        raise RemoteError(f"{program} gave no credentials for {host}", fix=f"docker login {host}") from None
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
    """Old keys are addresses: ``https://host/v1/``."""
    if key == _DOCKER_HUB_KEY:
        return DOCKER_HUB
    return key.partition("://")[2].partition("/")[0] if "://" in key else key


def _decoded(auth: str, host: str, path: Path) -> Credentials:
    try:
        user, colon, secret = base64.b64decode(auth).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise UsageError(f"what {path} holds for {host} is damaged", fix=f"docker login {host}") from None
    return Credentials(user, secret)
