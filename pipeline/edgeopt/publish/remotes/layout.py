"""Releases as files: an image layout of the OCI image specification 1.1, in a folder, a bucket or on the web.

``refs/<tag>.json`` holds the descriptor that a tag points at, and is the truth: who sets one tag never
touches another. ``index.json`` is derived from these, for other clients and for web servers, which cannot
list.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

from pydantic import ValidationError

from edgeopt.errors import RemoteError, VerificationError
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
"""Annotation by which an index says what its entries are called."""
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX = "index.json"
_REFS = "refs"
_BLOBS = "blobs/sha256"
_LARGEST_REF = 64 << 10
_LARGEST_INDEX = 64 << 20
_ROUNDS = 5


class Layout(Remote):
    """One layout at one place."""

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
            return None if data is None else _described(data)
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
        # What is there and damaged is written anew: the names are the same, so nothing else changes.
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
                    f"{content.digest} is not in {self.url}, and a manifest that names it was pushed",
                    fix="push the content before its manifest",
                )
        pointer = describe(data, media_type)
        self.push_blob(pointer, data)
        for tag in tags:
            self._place.write(_ref(tag), pointer.encode())
        self._derive_index()
        return pointer

    def delete_ref(self, tag: str) -> None:
        """Let a tag point at nothing any more."""
        self._place.delete(_ref(tag))
        self._derive_index()

    def delete_blob(self, digest: str) -> None:
        """Remove content; that nothing refers to it is for the caller to know, who holds the lock alone."""
        self._place.delete(_blob(digest))

    def blobs(self) -> Iterator[str]:
        """The digests of all content, in no order."""
        for name in self._place.names(_BLOBS):
            if is_digest(f"sha256:{name}"):
                yield f"sha256:{name}"

    def size(self, digest: str) -> int:
        """Bytes of a blob as it lies there."""
        size = self._place.size(_blob(digest))
        if size is None:
            raise self._absent(digest)
        return size

    def check(self, digest: str) -> None:
        """Read all of a blob. Raises ``VerificationError`` if it is not what its digest says."""
        blob = Descriptor(media_type="", digest=digest, size=self.size(digest))
        opened = self._place.open_at(_blob(digest), blob, 0)
        if opened is None:
            raise self._absent(digest)
        found = hashlib.sha256()
        with closing(opened[1]) as pieces:
            for piece in pieces:
                found.update(piece)
        if f"sha256:{found.hexdigest()}" != digest:
            raise mismatch(digest, self.url, f"its {blob.size} bytes have another digest")

    def locked(self, exclusive: bool) -> AbstractContextManager[None]:
        """Keep others from collecting what is being pushed or pulled; ``exclusive``: from all of it.

        The lock is the kernel's: it ends with the process, however that ends. Within it, it must not be
        taken again. Buckets and web servers have none.

        Raises:
            UsageError: held alone, of a place that knows no locks.
        """
        return self._place.alone(".lock", exclusive)

    def _refs(self) -> dict[str, str]:
        """All tags, each with something that changes when it moves."""
        found = self._place.names(_REFS)
        tags = {name.removesuffix(".json"): state for name, state in found.items() if name.endswith(".json")}
        return {tag: state for tag, state in tags.items() if is_tag(tag)}

    def _derive_index(self) -> None:
        """Write the index of all tags. Where nothing locks, look again whether somebody was faster."""
        with self._place.alone(".index.lock", exclusive=True):
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
                continue  # whoever asks for this tag is told; it must not keep others from being set
            entries.append(pointer.model_copy(update={"annotations": pointer.annotations | {REF_NAME: tag}}))
        return Index(manifests=tuple(entries)).encode()

    def _document(self, digest: str) -> bytes | None:
        data = self._place.read(_blob(digest), LARGEST_MANIFEST)
        if data is None or digest_of_bytes(data) == digest:
            return data
        long = len(data) > LARGEST_MANIFEST
        why = (
            f"longer than {LARGEST_MANIFEST} bytes" if long else f"its {len(data)} bytes have another digest"
        )
        raise mismatch(digest, self.url, why)

    def _absent(self, digest: str) -> RemoteError:
        return RemoteError(f"{digest} is not in {self.url}", fix="push it again: it is incomplete there")


def _ref(tag: str) -> str:
    return f"{_REFS}/{check_tag(tag)}.json"


def _blob(digest: str) -> str:
    return f"{_BLOBS}/{check_digest(digest).removeprefix('sha256:')}"


def _descriptor(data: bytes, where: str) -> Descriptor:
    try:
        return Descriptor.model_validate_json(data)
    except ValidationError as error:
        raise VerificationError(f"{where} is damaged: it points nowhere", fix="push it again") from error


def _described(data: bytes) -> Descriptor:
    """The descriptor of a manifest, whose kind it says itself."""
    try:
        media_type = json.loads(data)["mediaType"]
    except (ValueError, KeyError, TypeError):
        media_type = None
    kind = media_type if isinstance(media_type, str) else MANIFEST
    return describe(data, kind)


def _contents(data: bytes) -> tuple[Descriptor, ...]:
    """What must be there before a manifest may be. An index needs nothing: part of a release may be here."""
    manifest = read_manifest(data, "what is pushed")
    return (manifest.config, *manifest.layers)
