"""Layout files in a folder: written atomically, protected by kernel locks."""

import fcntl
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgeopt.publish.oci import Descriptor
from edgeopt.publish.remote import Progress
from edgeopt.publish.remotes.place import Place
from edgeopt.publish.remotes.transfer import Pieces, digest_of_file, explained, mismatch, pieces_of

_SCRATCH = "scratch"
_TRIES = 10


class Folder(Place):
    """A folder, created by the first write.

    Each file is written to ``scratch/`` on the same file system, under a lock, synced to disk and renamed. A
    scratch file without a lock belongs to a dead process, on whatever machine or in whatever container that
    ran; it is removed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown = str(root)
        self._swept = False

    def read(self, name: str, limit: int) -> bytes | None:
        path = self.root / name
        with explained(path):
            try:
                with path.open("rb") as file:
                    return file.read(limit + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open_at(self, name: str, blob: Descriptor, offset: int) -> tuple[int, Pieces] | None:
        size = self.size(name)
        if size is None:
            return None
        if size != blob.size:
            raise mismatch(blob.digest, self.shown, f"it has {size} bytes, expected {blob.size}")
        return offset, self._pieces(self.root / name, offset)

    def size(self, name: str) -> int | None:
        path = self.root / name
        with explained(path):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def holds(self, name: str, blob: Descriptor) -> bool:
        if self.size(name) != blob.size:
            return False
        with explained(self.root / name):
            return digest_of_file(self.root / name) == (blob.digest, blob.size)

    def write(self, name: str, data: bytes) -> None:
        self._replace(name, [data])

    def put(self, name: str, blob: Descriptor, source: Path | bytes, progress: Progress) -> None:
        if isinstance(source, bytes):
            self._replace(name, _checked(blob, [source], progress))
            return
        with explained(source):
            file = source.open("rb")
        with file:
            self._replace(name, _checked(blob, pieces_of(file), progress))

    def names(self, folder: str) -> dict[str, str]:
        path = self.root / folder
        with explained(path):
            try:
                return {
                    entry.name: f"{entry.stat().st_ino} {entry.stat().st_mtime_ns}"
                    for entry in os.scandir(path)
                    if entry.is_file()
                }
            except (FileNotFoundError, NotADirectoryError):
                return {}

    def delete(self, name: str) -> None:
        with explained(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str, exclusive: bool) -> Iterator[None]:
        path = self.root / name
        descriptor = self._lock_file(path, exclusive)
        if descriptor is None:
            yield
            return
        try:
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            with explained(path):
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    if name != ".index.lock":  # this one is held for milliseconds
                        logging.getLogger("edgeopt").warning(
                            "waiting for another process that is using %s", self.shown
                        )
                    fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _lock_file(self, path: Path, exclusive: bool) -> int | None:
        """Open a lock file; None if no lock is needed: the folder is missing, or cannot be written."""
        with explained(path):
            try:
                if exclusive:
                    path.parent.mkdir(parents=True, exist_ok=True)
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:
                if exclusive:
                    raise
            with suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return None

    def _pieces(self, path: Path, offset: int) -> Pieces:
        with path.open("rb") as file:
            file.seek(offset)
            yield from pieces_of(file)

    def _replace(self, name: str, pieces: Iterable[bytes]) -> None:
        target = self.root / name
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with self._scratch() as (path, file):
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                path.rename(target)
            _sync(target.parent)

    @contextmanager
    def _scratch(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A locked file of this process; removed unless it was renamed."""
        folder = self.root / _SCRATCH
        folder.mkdir(exist_ok=True)
        for _ in range(_TRIES):
            path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
            with path.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not path.exists():
                    continue  # another process swept it before it was locked
                try:
                    yield path, file
                finally:
                    path.unlink(missing_ok=True)
                return
        raise OSError(f"files in {folder} keep disappearing")

    def _sweep(self) -> None:
        """Remove the scratch files of dead processes."""
        if self._swept:
            return
        self._swept = True
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.root / _SCRATCH):
                # Its owner is alive (locked), or another process has already removed it.
                with suppress(FileNotFoundError, BlockingIOError), open(entry.path, "rb+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)


def _checked(blob: Descriptor, pieces: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    """The pieces unchanged; an error after the last one if they do not match the digest."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
        yield piece
        progress(len(piece))
    if (f"sha256:{digest.hexdigest()}", size) != (blob.digest, blob.size):
        raise mismatch(blob.digest, "the uploaded data", f"its {size} bytes do not match the digest")


def _sync(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
