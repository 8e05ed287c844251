"""Channels: words such as ``stable`` that stand for one version now and another later.

A channel is the log of its moves. Each move is a small manifest under a tag of its own, so that nothing
has to be read, changed and written back: registries and buckets know no such thing as a transaction. Two
processes that move a channel at once both leave their move; the one that sorts last is where it stands.
"""

import datetime
import uuid

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import UsageError, VerificationError
from edgeopt.publish.annotations import FAILED, GATES, PREFIX
from edgeopt.publish.names import move_of, move_tag
from edgeopt.publish.oci import (
    EMPTY,
    INDEX,
    MANIFEST,
    MOVE,
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
    """A channel was set to a version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    channel: str
    number: int = Field(ge=1, description="counts the moves of the channel")
    identity: str = Field("", description="of this move among those of the same number")
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
    """Where a channel stands; None if it was never moved."""
    tags = _tags(remote, channel)
    return _read(remote, tags[-1]) if tags else None


def standing(remote: Remote) -> dict[str, Move]:
    """Where every channel stands."""
    tags = remote.tags()
    last = {found[0]: tag for tag in sorted(tags) if (found := move_of(tag))}
    return {channel: _read(remote, tag) for channel, tag in last.items()}


def promote(remote: Remote, channel: str, version: str, *, who: str = "") -> Move:
    """Let a channel stand for ``version``; where it does already, nothing is moved.

    Raises:
        UsageError: there is no such version.
        VerificationError: a gate of its run did not hold; or another process moved the channel at the
            same time, and its move stands.
    """
    release = remote.resolve(version)
    if release is None:
        raise UsageError(
            f"{remote.url} has no version {version}", fix="see which there are: edgeopt artifacts list NAME"
        )
    index = read_index(remote.manifest(release.digest), f"{remote.url}@{version}")
    if index.annotations.get(GATES) not in ("pass", "none"):
        raise VerificationError(
            f"{version} is not promoted to {channel}: {index.annotations.get(FAILED, 'unknown gates')}",
            fix="promote a version whose gates hold; 'edgeopt artifacts list' tells which",
        )
    stands = current(remote, channel)
    if stands is not None and stands.release == release.digest:
        return _set_plain_tag(remote, channel)  # a move that was cut off may not have come to it
    return _move(remote, channel, version, release, "promote", who)


def rollback(remote: Remote, channel: str, *, who: str = "") -> Move:
    """Let a channel stand for the version before the one it stands for now.

    Rolling back again goes further back: what was rolled away from is not gone back to.

    Raises:
        UsageError: there is no version before it.
    """
    moves = history(remote, channel)
    kept = trodden(moves)
    if len(kept) < 2:
        stands = f"stands for {kept[0].version}, its first version" if kept else "was never moved"
        raise UsageError(f"channel {channel} {stands}", fix="promote a version to it")
    before = kept[-2]
    release = remote.resolve(before.release)
    if release is None:
        raise VerificationError(
            f"version {before.version}, which {channel} stood for, is no longer in {remote.url}",
            fix="promote a version that is there",
        )
    return _move(remote, channel, before.version, release, "rollback", who)


def follow(source: Remote, target: Remote, channel: str) -> None:
    """Let a channel stand in ``target`` where it stands in ``source``, if that version is there as well."""
    tags = _tags(source, channel)
    move = _read(source, tags[-1]) if tags else None
    if move is None or target.resolve(move.release) is None:
        return
    found = source.resolve(tags[-1])
    if found is not None:
        target.push_blob(describe(_NOTHING, EMPTY), _NOTHING)
        target.push_manifest(source.manifest(found.digest), MANIFEST, tags[-1:])
        _set_plain_tag(target, channel)


def trodden(moves: list[Move]) -> list[Move]:
    """The versions that a channel went through, without those it was rolled back from."""
    kept: list[Move] = []
    for move in moves:
        if move.action == "rollback" and len(kept) > 1:
            kept.pop()
        elif not kept or kept[-1].release != move.release:
            kept.append(move)
    return kept


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
    nothing = describe(_NOTHING, EMPTY)
    remote.push_blob(nothing, _NOTHING)
    manifest = Manifest(
        artifact_type=MOVE,
        config=nothing,
        layers=(nothing,),
        annotations={f"{PREFIX}{key}": str(value) for key, value in move.model_dump().items() if value},
    )
    mine = move_tag(channel, move.number, move.identity)
    remote.push_manifest(manifest.encode(), MANIFEST, [mine])
    stands = _set_plain_tag(remote, channel)
    if stands != move:
        raise VerificationError(
            f"another process moved {channel} to {stands.version} at the same time, and that move stands",
            fix=f"look with 'edgeopt artifacts show', then move it again if {version} is what is wanted",
        )
    return move


def _set_plain_tag(remote: Remote, channel: str) -> Move:
    """Set the channel's plain tag, for clients that know tags only, to where its log stands."""
    while True:
        last = _tags(remote, channel)[-1]
        stands = _read(remote, last)
        remote.push_manifest(remote.manifest(stands.release), INDEX, [channel])
        if _tags(remote, channel)[-1] == last:
            return stands


def _tags(remote: Remote, channel: str) -> list[str]:
    return sorted(tag for tag in remote.tags() if (found := move_of(tag)) and found[0] == channel)


def _read(remote: Remote, tag: str) -> Move:
    found = remote.resolve(tag)
    if found is None:
        raise VerificationError(f"{remote.url}: the move {tag} is gone", fix="promote the channel again")
    manifest = read_manifest(remote.manifest(found.digest), f"{remote.url}:{tag}")
    told = {
        key.removeprefix(PREFIX): value
        for key, value in manifest.annotations.items()
        if key.startswith(PREFIX)
    }
    try:
        move = Move.model_validate(told)
    except ValidationError as error:
        raise VerificationError(
            f"{remote.url}:{tag} is no move of a channel", fix="promote the channel again"
        ) from error
    if move_tag(move.channel, move.number, move.identity) != tag:
        raise VerificationError(
            f"{remote.url}:{tag} holds the move of another tag", fix="promote the channel again"
        )
    return move
