"""How releases are called: ``kws``, ``kws@1.2.0``, ``kws:stable``, or with the URL of where they lie.

A version begins with a digit (or ``v`` and a digit), a channel with a letter: as tags of one repository
they never meet.
"""

import re
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.publish.oci import DIGEST

STABLE = "stable"
"""The channel that a bare name means."""

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
"""One component of a repository's name, as the OCI distribution specification has it."""
_VERSION = re.compile(r"v?[0-9][A-Za-z0-9._-]{0,100}")
_CHANNEL = re.compile(r"(?!v[0-9])[a-z][a-z0-9-]{0,31}")
_MOVE = re.compile(r"(?P<channel>[a-z][a-z0-9-]{0,31})\.(?P<number>[0-9]{6})\.(?P<id>[0-9a-f]{8})")


class Reference(NamedTuple):
    """A release as someone asks for it; exactly one of ``version``, ``channel`` and ``digest`` is set."""

    name: str
    remote: str | None = None
    """URL of the repository; None: wherever this project keeps its releases."""
    version: str | None = None
    channel: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        where = self.remote or self.name
        return f"{where}:{self.channel}" if self.channel else f"{where}@{self.version or self.digest}"


def parse(text: str) -> Reference:
    """Read ``[URL/]NAME[@version|@sha256:digest|:channel|:version]``; a bare name means its stable channel.

    Raises:
        UsageError: saying which part is wrong, and what it may be.
    """
    scheme, _, rest = text.rpartition("://")
    host, slash, path = rest.partition("/") if scheme and scheme != "file" else ("", "", rest)
    if scheme and not path.strip("/"):
        raise UsageError(
            f"{text!r} names a place, not a release", fix="add the name: oci://registry.example.com/team/kws"
        )
    head, at, wanted = path.partition("@")
    version = channel = digest = None
    if at:
        if DIGEST.fullmatch(wanted):
            digest = wanted
        else:
            version = check_version(wanted)
    else:
        folder, between, last = path.rpartition("/")
        last, colon, tag = last.partition(":")
        head = f"{folder}{between}{last}"
        if colon and _VERSION.fullmatch(tag):
            version = tag
        else:
            channel = check_channel(tag) if colon else STABLE
    remote = f"{scheme}://{host}{slash}{head}" if scheme else None
    name = head.rstrip("/").rpartition("/")[2] if scheme else head
    return Reference(check_name(name), remote, version, channel, digest)


def check_name(name: str) -> str:
    """A name as registries allow it.

    Raises:
        UsageError: it is none; with one that is.
    """
    if len(name) <= 128 and _NAME.fullmatch(name):
        return name
    shown = name if len(name) <= 60 else f"{name[:60]}…"
    raise UsageError(
        f"{shown!r} cannot be the name of releases",
        fix=f"use small letters, digits, '-', '_' and '.', such as {as_name(name)!r}",
    )


def as_name(text: str) -> str:
    """The nearest name that is allowed."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:60].rstrip("-") or "model"


def check_version(version: str) -> str:
    """A version as a tag.

    Raises:
        UsageError: it is none.
    """
    if _VERSION.fullmatch(version):
        return version
    raise UsageError(
        f"{version[:60]!r} cannot be a version",
        fix="begin with a digit, then letters, digits, '.', '_' and '-': 1.2.0",
    )


def check_channel(channel: str) -> str:
    """A channel as a tag.

    Raises:
        UsageError: it is none.
    """
    if _CHANNEL.fullmatch(channel):
        return channel
    raise UsageError(
        f"{channel[:60]!r} is neither a channel nor a version",
        fix="a channel is a word of small letters, digits and '-' (stable); a version begins with a digit",
    )


def is_version(tag: str) -> bool:
    """Whether a tag names a version."""
    return _VERSION.fullmatch(tag) is not None


def move_tag(channel: str, number: int, identity: str) -> str:
    """The tag of one move of a channel: they sort in the order of the moves."""
    return f"{channel}.{number:06d}.{identity}"


def move_of(tag: str) -> tuple[str, int, str] | None:
    """Channel, number and identity of a move's tag; None for any other tag."""
    found = _MOVE.fullmatch(tag)
    return (found["channel"], int(found["number"]), found["id"]) if found else None
