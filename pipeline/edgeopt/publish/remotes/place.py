"""Storage of a layout's files: a folder, a bucket or a web server."""

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

    Every method may raise ``RemoteError`` or ``StoreError``: the place cannot be reached, read or written. A
    place that does not override the methods that write is read-only.
    """

    shown: str
    """Name for display."""
    lists: bool = True
    """Whether it can list its files."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes | None:
        """At most ``limit`` bytes, plus one if the file is longer; None if it does not exist."""

    @abstractmethod
    def open_at(self, name: str, blob: Descriptor, offset: int) -> tuple[int, Pieces] | None:
        """The actual offset, which may be 0, and a blob's bytes from there; None if it does not exist."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if it does not exist."""

    def attempts(self) -> Again:
        """The retry policy for interrupted reads."""
        return give_up

    def holds(self, name: str, blob: Descriptor) -> bool:
        """Whether a blob is stored and need not be written; its content is not fetched to check it."""
        return self.size(name) == blob.size

    def names(self, folder: str) -> dict[str, str]:
        """The names of the files in a folder, each with a value that changes when the file does."""
        raise RemoteError(f"{self.shown} cannot list its files", fix="read it through its index.json")

    def read_all(self, folder: str, names: list[str], limit: int) -> dict[str, bytes]:
        """The content of small files of a folder; missing ones are omitted."""
        contents = {name: self.read(f"{folder}/{name}", limit) for name in names}
        return {name: data for name, data in contents.items() if data is not None}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, replacing an existing one."""
        self._refuse()

    def put(self, name: str, blob: Descriptor, source: Path | bytes, progress: Progress) -> None:
        """Write a blob in pieces, if it matches its digest."""
        self._refuse()

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        self._refuse()

    def lock(self, name: str, exclusive: bool) -> AbstractContextManager[None]:
        """Hold a shared or exclusive lock, if the place has locks."""
        return nullcontext()

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self.shown} is read-only", fix="push to oci://…, s3://… or file:///…")
