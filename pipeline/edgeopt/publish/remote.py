"""Where releases lie: content under its digest, and tags that name manifests."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edgeopt.publish.oci import Descriptor

Progress: TypeAlias = Callable[[int], None]
"""Called with the bytes that have come or gone since the last call."""


def silent(_: int) -> None:
    """No progress is shown."""


class Remote(ABC):
    """One repository: all versions and channels of one name.

    Everything that is read is verified against its digest before it is given. Every method may raise
    ``RemoteError`` (it cannot be reached, refuses, cuts off; with what to do) and ``VerificationError``
    (what came is not what its digest says).
    """

    url: str
    """As it is shown to people; never with a password."""

    @abstractmethod
    def tags(self) -> list[str]:
        """All tags, sorted; none if there is no such repository yet."""

    @abstractmethod
    def resolve(self, reference: str) -> Descriptor | None:
        """What a tag, or a digest ``sha256:…`` of a manifest, points at; None if there is no such thing."""

    @abstractmethod
    def manifest(self, digest: str) -> bytes:
        """The bytes of a manifest or index, at most ``LARGEST_MANIFEST``."""

    @abstractmethod
    def has(self, digest: str) -> bool:
        """Whether a blob is there already, so that it need not be sent."""

    @abstractmethod
    def fetch(self, blob: Descriptor, target: Path, progress: Progress = silent) -> None:
        """Write a blob to ``target``, in pieces: memory does not grow with it.

        What ``target`` holds of an earlier attempt that broke off is taken for its beginning. When this
        returns, the file has the size and digest that were asked for; if they differ, it is removed.
        """

    @abstractmethod
    def push_blob(self, blob: Descriptor, source: Path | bytes, progress: Progress = silent) -> None:
        """Store content under its digest; nothing happens if it is there."""

    @abstractmethod
    def push_manifest(self, data: bytes, media_type: str, tags: Sequence[str] = ()) -> Descriptor:
        """Store a manifest or index whose content is there, then let ``tags`` point at it."""
