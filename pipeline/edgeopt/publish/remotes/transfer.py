"""Content on its way into a file: continued where it broke off, bounded, and verified before it counts."""

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
"""Bytes read at once: memory does not grow with what is transferred."""

Pieces: TypeAlias = Generator[bytes, None, None]
"""Content, as it comes; whoever asked for it closes it."""
OpenAt: TypeAlias = Callable[[int], tuple[int, Pieces]]
"""Opens content at an offset; gives where it really begins (there, or at 0) and the pieces from there on."""


class TransientError(RemoteError):
    """May go well when it is tried again; ``wait`` is how many seconds the server asked for."""

    def __init__(self, message: str, *, fix: str = "", wait: float | None = None) -> None:
        super().__init__(message, fix=fix)
        self.wait = wait

    def final(self, attempts: int) -> RemoteError:
        """What is told when it was tried often enough."""
        return RemoteError(f"{self.message} ({attempts} attempts)", fix=self.fix)


Again: TypeAlias = Callable[[TransientError, int], None]
"""Waits before the next attempt, given what is there by now (bytes), or raises what is final."""


def give_up(failure: TransientError, _: int) -> NoReturn:
    """No further attempt."""
    raise failure.final(1)


def receive(
    blob: Descriptor,
    target: Path,
    open_at: OpenAt,
    where: str,
    progress: Progress = silent,
    again: Again = give_up,
) -> None:
    """Bring a blob into a file; what the file holds of an earlier attempt is taken for its beginning.

    ``progress`` gets a negative number when a wrong beginning is thrown away.

    Raises:
        RemoteError: it broke off too often; what came is kept for the next time.
        VerificationError: what came has another size or digest; the file is removed.
        StoreError: the file cannot be written.
    """
    with explained(target), target.open("r+b" if target.exists() else "w+b") as file:
        arriving = _Arriving(file, blob, where, progress)
        try:
            inherited = arriving.take_what_is_there()
            _complete(arriving, open_at, again)
            if inherited and not arriving.right():
                arriving.start_over()
                _complete(arriving, open_at, again)
            if not arriving.right():
                raise mismatch(blob.digest, where, "its bytes have another digest")
            file.flush()
            os.fsync(file.fileno())
        except VerificationError:
            target.unlink(missing_ok=True)
            raise
        except RemoteError:
            if not arriving.size:
                target.unlink(missing_ok=True)
            raise


def mismatch(digest: str, where: str, why: str) -> VerificationError:
    """The error for content that is not what its digest says."""
    return VerificationError(
        f"{digest} in {where} is damaged: {why}", fix="push it again, then pull again; nothing was kept"
    )


def digest_of_file(path: Path) -> tuple[str, int]:
    """The digest ``sha256:…`` of a file and its size in bytes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"sha256:{digest}", file.tell()


def pieces_of(file: BinaryIO) -> Pieces:
    """The rest of an open file, piece by piece."""
    while piece := file.read(PIECE):
        yield piece


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what is wrong with a disk instead of showing a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"no space left for {path}", fix="free some space and run again: it goes on where it stopped"
            ) from error
        raise StoreError(f"cannot use {path}: {error.strerror or error}", fix="check the folder") from error


class _Arriving:
    """A file that fills up, and the digest of what it holds so far."""

    def __init__(self, file: BinaryIO, blob: Descriptor, where: str, progress: Progress) -> None:
        self.blob = blob
        self.where = where
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._progress = progress

    def take_what_is_there(self) -> bool:
        for piece in pieces_of(self._file):
            self._count(piece)
            if self.size > self.blob.size:
                self.start_over()
                return False
        return self.size > 0

    def start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self._progress(-self.size)
        self.size = 0

    def add(self, piece: bytes) -> None:
        if self.size + len(piece) > self.blob.size:
            raise mismatch(self.blob.digest, self.where, f"it is longer than its {self.blob.size} bytes")
        self._file.write(piece)
        self._count(piece)

    def right(self) -> bool:
        return f"sha256:{self._hash.hexdigest()}" == self.blob.digest

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        self._progress(len(piece))


def _complete(arriving: _Arriving, open_at: OpenAt, again: Again) -> None:
    while arriving.size < arriving.blob.size:
        try:
            start, pieces = open_at(arriving.size)
            with closing(pieces):
                if start != arriving.size:
                    arriving.start_over()
                for piece in pieces:
                    arriving.add(piece)
            if arriving.size < arriving.blob.size:
                raise TransientError(
                    f"{arriving.where} broke off after {arriving.size} of {arriving.blob.size} bytes",
                    fix="run it again: it goes on where it stopped",
                )
        except TransientError as failure:
            again(failure, arriving.size)
