"""Storage of releases: content under its digest, and tags that point at manifests."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edgeopt.publish.oci import Descriptor

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of bytes transferred since the last call."""


def silent(_: int) -> None:
    """Ignore progress."""


class Remote(ABC):
    """One repository: all versions and channels of one name.

    All content is verified against its digest before it is returned. Every method may raise ``RemoteError``
    (unreachable, request refused, connection lost) and ``VerificationError`` (content does not match its
    digest).
    """

    url: str
    """For display; never contains a password."""

    @abstractmethod
    def tags(self) -> list[str]:
        """All tags, sorted; empty if the repository does not exist yet."""

    @abstractmethod
    def resolve(self, reference: str) -> Descriptor | None:
        """The descriptor of a tag, or of a manifest's digest ``sha256:…``; None if it does not exist."""

    @abstractmethod
    def manifest(self, digest: str) -> bytes:
        """The bytes of a manifest or index, at most ``LARGEST_MANIFEST``."""

    @abstractmethod
    def has(self, digest: str) -> bool:
        """Whether a blob is already stored, so that it need not be sent."""

    @abstractmethod
    def fetch(self, blob: Descriptor, target: Path, progress: Progress = silent) -> None:
        """Write a blob to ``target``, in pieces: memory does not grow with its size.

        Existing content of ``target``, from an interrupted attempt, is taken as the beginning of the blob. On
        return the file has the requested size and digest; if they differ, it is removed.
        """

    @abstractmethod
    def push_blob(self, blob: Descriptor, source: Path | bytes, progress: Progress = silent) -> None:
        """Store content under its digest, unless it is already stored."""

    @abstractmethod
    def push_manifest(self, data: bytes, media_type: str, tags: Sequence[str] = ()) -> Descriptor:
        """Store a manifest or index whose content is already stored, then point ``tags`` at it."""
