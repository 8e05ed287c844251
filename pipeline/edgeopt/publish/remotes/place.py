"""Where the files of a layout lie: a folder, a bucket or a web server."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from edgeopt.errors import RemoteError, UsageError
from edgeopt.publish.oci import Descriptor
from edgeopt.publish.remote import Progress
from edgeopt.publish.remotes.transfer import Again, Pieces, give_up


class Place(ABC):
    """Files under relative names; each is complete or absent at any moment.

    Every method may raise ``RemoteError`` or ``StoreError``: it cannot be reached, read or written. A place
    that does not say how it is written is there to be read.
    """

    shown: str
    """As it is shown to people."""
    lists: bool = True
    """Whether it can tell which files it has."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes | None:
        """At most ``limit`` bytes, and one more where there are more; None if there is no such file."""

    @abstractmethod
    def open_at(self, name: str, blob: Descriptor, offset: int) -> tuple[int, Pieces] | None:
        """The bytes of a blob from an offset on, and where they really begin; None if it is not there."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """In bytes; None if there is no such file."""

    def attempts(self) -> Again:
        """What happens when a file breaks off while it is read."""
        return give_up

    def holds(self, name: str, blob: Descriptor) -> bool:
        """Whether a blob is there and need not be written, as far as can be told without fetching it."""
        return self.size(name) == blob.size

    def names(self, folder: str) -> dict[str, str]:
        """The names of the files in a folder, each with something that changes when it does."""
        raise RemoteError(f"{self.shown} cannot list its files", fix="read it through its index.json")

    def read_all(self, folder: str, names: list[str], limit: int) -> dict[str, bytes]:
        """Some small files of a folder; those that are gone are left out."""
        found = {name: self.read(f"{folder}/{name}", limit) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, over what was there."""
        self._refuse()

    def put(self, name: str, blob: Descriptor, source: Path | bytes, progress: Progress) -> None:
        """Write a blob, in pieces, if it is what its digest says."""
        self._refuse()

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._refuse()

    def alone(self, name: str, exclusive: bool) -> AbstractContextManager[None]:
        """Hold a lock, where there are locks: with others that share it, or alone."""
        return nullcontext()

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self.shown} can only be read", fix="push to oci://…, s3://… or file:///…")
