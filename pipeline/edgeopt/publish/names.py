"""References to releases: ``kws``, ``kws@1.2.0``, ``kws:stable``, or with the URL of their location.

A version begins with a digit (or ``v`` and a digit), a channel with a letter: as tags of one repository they
never collide.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from edgeopt.config.text import as_name
from edgeopt.errors import UsageError
from edgeopt.publish.oci import DIGEST

STABLE = "stable"
"""The channel of a bare name."""

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
"""One component of a repository name, per the OCI distribution specification."""
_VERSION = re.compile(r"v?[0-9][A-Za-z0-9._-]{0,100}")
_CHANNEL = re.compile(r"(?!v[0-9])[a-z][a-z0-9-]{0,31}")
_MOVE = re.compile(r"(?P<channel>[a-z][a-z0-9-]{0,31})\.(?P<number>[0-9]{6})\.(?P<id>[0-9a-f]{8})")


class Reference(NamedTuple):
    """A requested release; exactly one of ``version``, ``channel`` and ``digest`` is set."""

    name: str
    remote: str | None = None
    """URL of the repository; None: the project's remote."""
    version: str | None = None
    channel: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        where = self.remote or self.name
        return f"{where}:{self.channel}" if self.channel else f"{where}@{self.version or self.digest}"


def parse(text: str) -> Reference:
    """Read ``[URL/]NAME[@version|@sha256:digest|:channel|:version]``; a bare name means its stable channel.

    Raises:
        UsageError: a part is invalid; the error names it and the valid form.
    """
    scheme, _, rest = text.rpartition("://")
    host, slash, path = rest.partition("/") if scheme and scheme != "file" else ("", "", rest)
    if scheme and not path.strip("/"):
        raise UsageError(
            f"{text!r} is a location, not a release", fix="add the name: oci://registry.example.com/team/kws"
        )
    head, at, identity = path.partition("@")
    version = channel = digest = None
    if at:
        if DIGEST.fullmatch(identity):
            digest = identity
        else:
            version = check_version(identity)
    else:
        folder, separator, last = path.rpartition("/")
        last, colon, tag = last.partition(":")
        head = f"{folder}{separator}{last}"
        if colon and _VERSION.fullmatch(tag):
            version = tag
        else:
            channel = check_channel(tag) if colon else STABLE
    remote = f"{scheme}://{host}{slash}{head}" if scheme else None
    if not scheme and "/" in head:
        raise UsageError(f"{text[:60]!r} is not a release name", fix=f"give a URL: {_url_of(head, text)}")
    name = head.rstrip("/").rpartition("/")[2] if scheme else head
    return Reference(check_name(name), remote, version, channel, digest)


def _url_of(path: str, text: str) -> str:
    """The URL of a folder that a reference names by its path; of anything else, the form of a URL."""
    if not path.startswith(("/", ".", "~")) or len(text) > 200:
        return "oci://HOST/NAME, or file:///FOLDER/NAME for a folder"
    return Path(os.path.abspath(os.path.expanduser(path))).as_uri() + text[len(path) :]


def check_name(name: str) -> str:
    """Return a name if it is valid.

    Raises:
        UsageError: it is not; the error suggests a valid name.
    """
    if len(name) <= 128 and _NAME.fullmatch(name):
        return name
    shown = name if len(name) <= 60 else f"{name[:60]}…"
    raise UsageError(
        f"{shown!r} is not a valid release name",
        fix=f"use lowercase letters, digits, '-', '_' and '.', such as {as_name(name)!r}",
    )


def check_version(version: str) -> str:
    """Return a version if it is valid.

    Raises:
        UsageError: it is not.
    """
    if _VERSION.fullmatch(version):
        return version
    raise UsageError(
        f"{version[:60]!r} is not a valid version",
        fix="start with a digit, then use letters, digits, '.', '_' and '-': 1.2.0",
    )


def check_channel(channel: str) -> str:
    """Return a channel if it is valid.

    Raises:
        UsageError: it is not.
    """
    if _CHANNEL.fullmatch(channel):
        return channel
    raise UsageError(
        f"{channel[:60]!r} is neither a valid channel nor a valid version",
        fix="a channel has lowercase letters, digits and '-' (stable); a version starts with a digit",
    )


def is_version(tag: str) -> bool:
    """Whether a tag names a version."""
    return _VERSION.fullmatch(tag) is not None


def move_tag(channel: str, number: int, identity: str) -> str:
    """The tag of one channel move: the tags sort in the order of the moves."""
    return f"{channel}.{number:06d}.{identity}"


def move_of(tag: str) -> tuple[str, int, str] | None:
    """Channel, number and identity of a move's tag; None for any other tag."""
    match = _MOVE.fullmatch(tag)
    return (match["channel"], int(match["number"]), match["id"]) if match else None
