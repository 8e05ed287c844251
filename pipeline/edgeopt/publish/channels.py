"""Channels: names such as ``stable`` that point at one version and can be moved to another.

A channel is the log of its moves. Each move is a small manifest under its own tag, which avoids
read-modify-write cycles: registries and buckets have no transactions. If two processes move a channel at
once, both moves are kept; the channel points at the one that sorts last.
"""

import datetime
import uuid

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import UsageError, VerificationError
from edgeopt.publish.names import move_of, move_tag
from edgeopt.publish.oci import (
    EMPTY,
    FAILED,
    GATES,
    INDEX,
    MANIFEST,
    MOVE,
    PREFIX,
    Descriptor,
    Digest,
    Manifest,
    describe,
    read_index,
    read_manifest,
)
from edgeopt.publish.remote import Remote

_NOTHING = b"{}"


class Move(BaseModel):
    """A move of a channel to a version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    channel: str
    number: int = Field(ge=1, description="sequence number of the move in its channel")
    identity: str = Field("", description="distinguishes moves with the same number")
    version: str
    release: Digest = Field(description="digest of the release's index")
    action: str = Field("promote", description="promote or rollback")
    when: str = ""
    who: str = ""


def history(remote: Remote, channel: str) -> list[Move]:
    """All moves of a channel, the oldest first.

    Raises:
        VerificationError: a move is damaged.
    """
    return [_read(remote, tag) for tag in _tags(remote, channel)]


def current(remote: Remote, channel: str) -> Move | None:
    """The current move of a channel; None if it was never moved."""
    tags = _tags(remote, channel)
    return _read(remote, tags[-1]) if tags else None


def standing(remote: Remote) -> dict[str, Move]:
    """The current move of every channel."""
    tags = remote.tags()
    last = {found[0]: tag for tag in sorted(tags) if (found := move_of(tag))}
    return {channel: _read(remote, tag) for channel, tag in last.items()}


def promote(remote: Remote, channel: str, version: str, *, who: str = "") -> Move:
    """Move a channel to ``version``; do nothing if it already points there.

    Raises:
        UsageError: the version does not exist.
        VerificationError: a gate of its run did not pass; or another process moved the channel at the same
            time, and its move takes effect.
    """
    release = remote.resolve(version)
    if release is None:
        raise UsageError(
            f"{remote.url} has no version {version}", fix="list the versions: edgeopt artifacts list NAME"
        )
    index = read_index(remote.manifest(release.digest), f"{remote.url}@{version}")
    if index.annotations.get(GATES) not in ("pass", "none"):
        raise VerificationError(
            f"{version} cannot be promoted to {channel}: {index.annotations.get(FAILED, 'unknown gates')}",
            fix="promote a version whose gates pass; see 'edgeopt artifacts list'",
        )
    latest = current(remote, channel)
    if latest is not None and latest.release == release.digest:
        return _set_plain_tag(remote, channel)  # an interrupted move may not have set it
    return _move(remote, channel, version, release, "promote", who)


def rollback(remote: Remote, channel: str, *, who: str = "") -> Move:
    """Move a channel to the version before its current one.

    A second rollback goes further back: it does not return to a version that was rolled back from.

    Raises:
        UsageError: there is no earlier version.
    """
    moves = history(remote, channel)
    versions = effective_moves(moves)
    if len(versions) < 2:
        state = f"is at {versions[0].version}, its first version" if versions else "was never moved"
        raise UsageError(f"channel {channel} {state}", fix="promote a version to it")
    previous = versions[-2]
    release = remote.resolve(previous.release)
    if release is None:
        raise VerificationError(
            f"version {previous.version}, the previous version of {channel}, is no longer in {remote.url}",
            fix="promote an existing version",
        )
    return _move(remote, channel, previous.version, release, "rollback", who)


def follow(source: Remote, target: Remote, channel: str) -> None:
    """Copy the state of a channel from ``source`` to ``target``, if ``target`` has its version."""
    tags = _tags(source, channel)
    move = _read(source, tags[-1]) if tags else None
    if move is None or target.resolve(move.release) is None:
        return
    found = source.resolve(tags[-1])
    if found is not None:
        target.push_blob(describe(_NOTHING, EMPTY), _NOTHING)
        target.push_manifest(source.manifest(found.digest), MANIFEST, tags[-1:])
        _set_plain_tag(target, channel)


def effective_moves(moves: list[Move]) -> list[Move]:
    """The moves of a channel, in order, without those that were rolled back."""
    effective: list[Move] = []
    for move in moves:
        if move.action == "rollback" and len(effective) > 1:
            effective.pop()
        elif not effective or effective[-1].release != move.release:
            effective.append(move)
    return effective


def _move(remote: Remote, channel: str, version: str, release: Descriptor, action: str, who: str) -> Move:
    tags = _tags(remote, channel)
    last = move_of(tags[-1]) if tags else None
    move = Move(
        channel=channel,
        number=(last[1] if last else 0) + 1,
        identity=uuid.uuid4().hex[:8],
        version=version,
        release=release.digest,
        action=action,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        who=who,
    )
    empty = describe(_NOTHING, EMPTY)
    remote.push_blob(empty, _NOTHING)
    manifest = Manifest(
        artifact_type=MOVE,
        config=empty,
        layers=(empty,),
        annotations={f"{PREFIX}{key}": str(value) for key, value in move.model_dump().items() if value},
    )
    tag = move_tag(channel, move.number, move.identity)
    remote.push_manifest(manifest.encode(), MANIFEST, [tag])
    latest = _set_plain_tag(remote, channel)
    if latest != move:
        raise VerificationError(
            f"another process moved {channel} to {latest.version} at the same time, and its move took effect",
            fix=f"see 'edgeopt artifacts show'; to use {version}, promote it again",
        )
    return move


def _set_plain_tag(remote: Remote, channel: str) -> Move:
    """Point the channel's plain tag, for clients without the log, at the current version."""
    while True:
        last = _tags(remote, channel)[-1]
        latest = _read(remote, last)
        remote.push_manifest(remote.manifest(latest.release), INDEX, [channel])
        if _tags(remote, channel)[-1] == last:
            return latest  # otherwise another process added a move meanwhile


def _tags(remote: Remote, channel: str) -> list[str]:
    """The tags of a channel's moves, the oldest first."""
    return sorted(tag for tag in remote.tags() if (found := move_of(tag)) and found[0] == channel)


def _read(remote: Remote, tag: str) -> Move:
    found = remote.resolve(tag)
    if found is None:
        raise VerificationError(f"{remote.url}: the move {tag} is missing", fix="promote the channel again")
    manifest = read_manifest(remote.manifest(found.digest), f"{remote.url}:{tag}")
    fields = {
        key.removeprefix(PREFIX): value
        for key, value in manifest.annotations.items()
        if key.startswith(PREFIX)
    }
    try:
        move = Move.model_validate(fields)
    except ValidationError as error:
        raise VerificationError(
            f"{remote.url}:{tag} is not a channel move", fix="promote the channel again"
        ) from error
    if move_tag(move.channel, move.number, move.identity) != tag:
        raise VerificationError(
            f"{remote.url}:{tag} contains the move of another tag", fix="promote the channel again"
        )
    return move
