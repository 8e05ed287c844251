"""Releases as files: an OCI image layout in a folder, in a bucket or on a web server.

``refs/<tag>.json`` contains the descriptor that a tag points at. These files are authoritative: setting one
tag never touches another. ``index.json`` is derived from them, for other clients and for web servers, which
cannot list files.

Source: OCI image specification 1.1, image layout.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

from pydantic import ValidationError

from edgeopt.errors import RemoteError, VerificationError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.publish.oci import (
    LARGEST_MANIFEST,
    MANIFEST,
    Descriptor,
    Index,
    describe,
    digest_of_bytes,
    read_index,
    read_manifest,
)
from edgeopt.publish.remote import Progress, Remote, silent
from edgeopt.publish.remotes.names import check_digest, check_reference, check_tag, is_digest, is_tag
from edgeopt.publish.remotes.place import Place
from edgeopt.publish.remotes.transfer import Pieces, mismatch, receive

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of an index entry: its tag."""
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX = "index.json"
_REFS = "refs"
_BLOBS = "blobs/sha256"
_LARGEST_REF = 64 << 10
_LARGEST_INDEX = 64 << 20
_ROUNDS = 5
"""Attempts to derive an index that no other process invalidates meanwhile."""


class Layout(Remote):
    """One image layout, stored in a `Place`."""

    def __init__(self, place: Place, url: str) -> None:
        self.url = url
        self._place = place

    def tags(self) -> list[str]:
        if self._place.lists:
            return sorted(self._refs())
        data = self._place.read(_INDEX, _LARGEST_INDEX)
        if data is None:
            return []
        entries = read_index(data, f"{self.url}/{_INDEX}").manifests
        return sorted({entry.annotations[REF_NAME] for entry in entries if REF_NAME in entry.annotations})

    def resolve(self, reference: str) -> Descriptor | None:
        check_reference(reference)
        if is_digest(reference):
            data = self._document(reference)
            return None if data is None else _manifest_descriptor(data)
        data = self._place.read(_ref(reference), _LARGEST_REF)
        return None if data is None else _descriptor(data, f"{self.url}, tag {reference}")

    def manifest(self, digest: str) -> bytes:
        data = self._document(digest)
        if data is None:
            raise self._absent(digest)
        return data

    def has(self, digest: str) -> bool:
        return self._place.size(_blob(digest)) is not None

    def fetch(self, blob: Descriptor, target: Path, progress: Progress = silent) -> None:
        def open_at(offset: int) -> tuple[int, Pieces]:
            opened = self._place.open_at(_blob(blob.digest), blob, offset)
            if opened is None:
                raise self._absent(blob.digest)
            return opened

        receive(blob, target, open_at, self.url, progress, self._place.attempts())

    def push_blob(self, blob: Descriptor, source: Path | bytes, progress: Progress = silent) -> None:
        name = _blob(blob.digest)
        # A damaged blob is overwritten. Its name is its digest, so nothing else changes.
        if self._place.holds(name, blob):
            progress(blob.size)
        else:
            self._place.put(name, blob, source, progress)

    def push_manifest(self, data: bytes, media_type: str, tags: Sequence[str] = ()) -> Descriptor:
        for tag in tags:
            check_tag(tag)
        for content in _contents(data) if media_type == MANIFEST else ():
            if self._place.size(_blob(content.digest)) != content.size:
                raise RemoteError(
                    f"{self.url} lacks {content.digest}, which the pushed manifest references",
                    fix="push the content before its manifest",
                )
        pointer = describe(data, media_type)
        self.push_blob(pointer, data)
        for tag in tags:
            self._place.write(_ref(tag), pointer.encode())
        self._update_index()
        return pointer

    def delete_ref(self, tag: str) -> None:
        """Delete a tag."""
        self._place.delete(_ref(tag))
        self._update_index()

    def delete_blob(self, digest: str) -> None:
        """Delete content. The caller holds the exclusive lock and ensures that nothing references it."""
        self._place.delete(_blob(digest))

    def blobs(self) -> Iterator[str]:
        """The digests of all content, in arbitrary order."""
        for name in self._place.names(_BLOBS):
            if is_digest(f"sha256:{name}"):
                yield f"sha256:{name}"

    def size(self, digest: str) -> int:
        """The actual size of a stored blob, in bytes."""
        size = self._place.size(_blob(digest))
        if size is None:
            raise self._absent(digest)
        return size

    def check(self, digest: str) -> None:
        """Read a whole blob.

        Raises:
            VerificationError: it does not match its digest.
        """
        blob = Descriptor(media_type="", digest=digest, size=self.size(digest))
        opened = self._place.open_at(_blob(digest), blob, 0)
        if opened is None:
            raise self._absent(digest)
        actual = hashlib.sha256()
        with closing(opened[1]) as pieces:
            for piece in pieces:
                actual.update(piece)
        if f"sha256:{actual.hexdigest()}" != digest:
            raise mismatch(digest, self.url, f"its {blob.size} bytes have a different digest")

    def locked(self, exclusive: bool) -> AbstractContextManager[None]:
        """Protect pushed and pulled content from garbage collection; ``exclusive``: for the collector.

        The kernel releases the lock when the process ends, however it ends. The lock is not reentrant.
        Buckets and web servers have no locks.

        Raises:
            UsageError: an exclusive lock of a bucket.
        """
        return self._place.lock(".lock", exclusive)

    def _refs(self) -> dict[str, str]:
        """All tags, each with a value that changes when the tag moves."""
        files = self._place.names(_REFS)
        tags = {name.removesuffix(".json"): state for name, state in files.items() if name.endswith(".json")}
        return {tag: state for tag, state in tags.items() if is_tag(tag)}

    def _update_index(self) -> None:
        """Write the index of all tags; without locks, again if another process changed them meanwhile."""
        with self._place.lock(".index.lock", exclusive=True):
            if self._place.size("oci-layout") is None:
                self._place.write("oci-layout", _VERSION)
            before = self._refs()
            for _ in range(_ROUNDS):
                self._place.write(_INDEX, self._index(sorted(before)))
                after = self._refs()
                if after == before:
                    return
                before = after

    def _index(self, tags: list[str]) -> bytes:
        entries = []
        for name, data in self._place.read_all(_REFS, [f"{tag}.json" for tag in tags], _LARGEST_REF).items():
            tag = name.removesuffix(".json")
            try:
                pointer = _descriptor(data, tag)
            except VerificationError:
                continue  # `resolve` reports it; it must not prevent other tags from being set
            entries.append(pointer.model_copy(update={"annotations": pointer.annotations | {REF_NAME: tag}}))
        return Index(manifests=tuple(entries)).encode()

    def _document(self, digest: str) -> bytes | None:
        data = self._place.read(_blob(digest), LARGEST_MANIFEST)
        if data is None or digest_of_bytes(data) == digest:
            return data
        long = len(data) > LARGEST_MANIFEST
        why = (
            f"longer than {LARGEST_MANIFEST} bytes"
            if long
            else f"its {len(data)} bytes have a different digest"
        )
        raise mismatch(digest, self.url, why)

    def _absent(self, digest: str) -> RemoteError:
        return RemoteError(
            f"{digest} is not in {self.url}", fix="push the release again: it is incomplete there"
        )


def _ref(tag: str) -> str:
    return f"{_REFS}/{check_tag(tag)}.json"


def _blob(digest: str) -> str:
    return f"{_BLOBS}/{check_digest(digest).removeprefix('sha256:')}"


def _descriptor(data: bytes, where: str) -> Descriptor:
    try:
        return Descriptor.model_validate_json(data)
    except ValidationError as error:
        raise VerificationError(f"{where} is damaged: it is not a descriptor", fix="push it again") from error


def _manifest_descriptor(data: bytes) -> Descriptor:
    """The descriptor of a manifest, with the media type that the manifest declares."""
    try:
        media_type = json_value(data)["mediaType"]
    except (ValueError, KeyError, TypeError):
        media_type = None
    kind = media_type if isinstance(media_type, str) else MANIFEST
    return describe(data, kind)


def _contents(data: bytes) -> tuple[Descriptor, ...]:
    """Content that must be stored before a manifest; an index may refer to bundles that are not here."""
    manifest = read_manifest(data, "the pushed manifest")
    return (manifest.config, *manifest.layers)
