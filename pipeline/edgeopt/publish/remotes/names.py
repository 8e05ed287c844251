"""Syntax of repositories, tags, hosts and digests, per the OCI distribution specification."""

import ipaddress
import re

from edgeopt.errors import UsageError

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_LONGEST = 255
"""Characters of host and repository together: the limit of many clients."""


def is_digest(text: str) -> bool:
    """Whether a text is a digest ``sha256:…``."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a text is a valid tag."""
    return _TAG.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Whether a text is a host name or IP address, with or without ``:port``."""
    match = _HOST.fullmatch(text)
    return match is not None and (match["port"] is None or 0 < int(match["port"]) < 65536)


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` is the loopback interface."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_repository(host: str, text: str) -> bool:
    """Whether a text is a valid repository name on a host."""
    return _REPOSITORY.fullmatch(text) is not None and len(f"{host}/{text}") <= _LONGEST


def check_tag(text: str) -> str:
    """Return a tag if it is valid.

    Raises:
        UsageError: it is not.
    """
    if not is_tag(text):
        raise UsageError(
            f"{text[:140]!a} is not a valid tag",
            fix="use letters, digits, '.', '_' and '-', at most 128 characters",
        )
    return text


def check_digest(text: str) -> str:
    """Return a digest if it is valid.

    Raises:
        UsageError: it is not.
    """
    if not is_digest(text):
        raise UsageError(f"{text[:140]!a} is not a valid digest", fix="use sha256: and 64 hexadecimal digits")
    return text


def check_reference(text: str) -> str:
    """Return a tag or a digest if it is valid.

    Raises:
        UsageError: it is neither.
    """
    return text if is_digest(text) else check_tag(text)
