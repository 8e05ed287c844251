"""Downloads to a file: resumable, limited to the declared size, and verified."""

import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

from edgeopt.errors import RemoteError, StoreError, VerificationError
from edgeopt.publish.oci import Descriptor
from edgeopt.publish.remote import Progress, silent

PIECE = 1 << 20
"""Bytes read at once: memory does not grow with the size of a transfer."""

RESUME = "run the command again: the transfer resumes where it stopped"
"""The fix for an interrupted transfer."""

Pieces: TypeAlias = Generator[bytes, None, None]
"""Content in order; the consumer closes it."""
OpenAt: TypeAlias = Callable[[int], tuple[int, Pieces]]
"""Opens content at an offset; returns the actual offset, which may be 0, and the pieces from there."""


class TransientError(RemoteError):
    """A failure that a retry may fix. ``wait``: the delay in seconds that the server requested."""

    def __init__(self, message: str, *, fix: str = "", wait: float | None = None) -> None:
        super().__init__(message, fix=fix)
        self.wait = wait

    def final(self, attempts: int) -> RemoteError:
        """The error after the last attempt."""
        return RemoteError(f"{self.message} ({attempts} attempts)", fix=self.fix)


Again: TypeAlias = Callable[[TransientError, int], None]
"""Waits before the next attempt, given the bytes received so far, or raises the final error."""


def give_up(failure: TransientError, _: int) -> NoReturn:
    """Fail without a retry."""
    raise failure.final(1)


def receive(
    blob: Descriptor,
    target: Path,
    open_at: OpenAt,
    where: str,
    progress: Progress = silent,
    again: Again = give_up,
) -> None:
    """Download a blob to a file, which may hold the beginning from an interrupted attempt.

    ``progress`` is called with a negative number when a wrong beginning is discarded.

    Raises:
        RemoteError: all attempts were interrupted; received data are kept for the next call.
        VerificationError: the data have another size or digest; the file is removed.
        StoreError: the file cannot be written.
    """
    with explained(target), target.open("r+b" if target.exists() else "w+b") as file:
        download = _Download(file, blob, where, progress)
        try:
            resumed = download.read_existing()
            _complete(download, open_at, again)
            if resumed and not download.matches():
                # The existing beginning may be that of another blob: discard it and try once more.
                download.start_over()
                _complete(download, open_at, again)
            if not download.matches():
                raise mismatch(blob.digest, where, "its bytes have a different digest")
            file.flush()
            os.fsync(file.fileno())
        except VerificationError:
            target.unlink(missing_ok=True)
            raise
        except RemoteError:
            if not download.size:
                target.unlink(missing_ok=True)
            raise


def mismatch(digest: str, where: str, why: str) -> VerificationError:
    """The error for content that does not match its digest."""
    return VerificationError(
        f"{digest} in {where} is damaged: {why}", fix="push it again, then pull again; nothing was kept"
    )


def digest_of_file(path: Path) -> tuple[str, int]:
    """The digest ``sha256:…`` of a file and its size in bytes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"sha256:{digest}", file.tell()


def pieces_of(file: BinaryIO) -> Pieces:
    """The rest of an open file in pieces."""
    while piece := file.read(PIECE):
        yield piece


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert an ``OSError`` into a ``StoreError`` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"no space left for {path}", fix=f"free some space, then {RESUME}") from error
        raise StoreError(
            f"cannot access {path}: {error.strerror or error}", fix="check the folder"
        ) from error


class _Download:
    """A partially written file, with the size and the digest of its content."""

    def __init__(self, file: BinaryIO, blob: Descriptor, where: str, progress: Progress) -> None:
        self.blob = blob
        self.where = where
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._progress = progress

    def read_existing(self) -> bool:
        """Hash the content of an earlier attempt; return whether there is any."""
        for piece in pieces_of(self._file):
            self._count(piece)
            if self.size > self.blob.size:
                self.start_over()
                return False
        return self.size > 0

    def start_over(self) -> None:
        """Discard the content."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self._progress(-self.size)
        self.size = 0

    def add(self, piece: bytes) -> None:
        if self.size + len(piece) > self.blob.size:
            raise mismatch(self.blob.digest, self.where, f"it is longer than {self.blob.size} bytes")
        self._file.write(piece)
        self._count(piece)

    def matches(self) -> bool:
        """Whether the content has the blob's digest."""
        return f"sha256:{self._hash.hexdigest()}" == self.blob.digest

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        self._progress(len(piece))


def _complete(download: _Download, open_at: OpenAt, again: Again) -> None:
    """Download the missing rest, with retries."""
    while download.size < download.blob.size:
        try:
            start, pieces = open_at(download.size)
            with closing(pieces):
                if start != download.size:
                    # Servers may ignore a range request and send the whole content.
                    download.start_over()
                for piece in pieces:
                    download.add(piece)
            if download.size < download.blob.size:
                raise TransientError(
                    f"{download.where}: the transfer was interrupted after {download.size} of "
                    f"{download.blob.size} bytes",
                    fix=RESUME,
                )
        except TransientError as failure:
            again(failure, download.size)
