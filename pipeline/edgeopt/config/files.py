"""Files and folders: atomic writes, content digests, sizes."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.config.scratch import scratch_folder, sweep
from edgeopt.config.text import message_of
from edgeopt.errors import CannotRunError, EdgeoptError, UsageError

CHUNK = 1 << 20
"""Bytes read at a time."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, or a limit of the user (quota, ``ulimit -f``) is reached."""
QUOTED = tuple(os.strerror(number) for number in NO_SPACE)
"""What libraries quote of these errors that raise their own."""
SCRATCH = ".edgeopt-"
"""Prefix of scratch folders beside the files that they will replace."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path that replaces ``target`` atomically when the block ends.

    Readers of ``target`` see either the old or the new content, even if the process is killed. If the block
    raises, ``target`` is unchanged and the scratch path is removed.

    Raises:
        OSError: the folder of ``target`` cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, SCRATCH)
    with scratch_folder(target.parent, SCRATCH) as folder:
        scratch = folder / target.name
        yield scratch
        os.replace(scratch, target)


@contextmanager
def writing(place: Path, fix: str) -> Iterator[None]:
    """Convert an ``OSError`` of the block into an error that names the file or folder written.

    Raises:
        UsageError: ``place`` is not writable.
        CannotRunError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(place, error, fix) from error


def unwritable(place: Path, error: OSError, fix: str) -> EdgeoptError:
    """The error for a file or folder that cannot be written; see `writing`."""
    if error.errno in NO_SPACE:
        return CannotRunError(f"cannot write {place}: no space left", fix=f"free space there, or {fix}")
    return UsageError(f"cannot write {place}: {error.strerror or error}", fix=fix)


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk, or was caused by one, or quotes one."""
    cause = error.__cause__ or error.__context__
    number = error.errno if isinstance(error, OSError) else None
    return (
        number in NO_SPACE
        or any(each in message_of(error) for each in QUOTED)
        or bool(cause and is_full(cause))
    )


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target`` atomically, in UTF-8 with ``\\n`` line ends; see `replacing`."""
    with replacing(target) as scratch:
        scratch.write_text(text, "utf-8", newline="\n")


def make_ignored(folder: Path) -> None:
    """Create a folder for generated files, which git ignores; one that exists stays as it is.

    Raises:
        OSError: it is not writable.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", "utf-8")


def files_of(path: Path) -> Iterator[Path]:
    """The file at ``path``, or all files below a folder, in a stable order."""
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file())
    else:
        yield path


def file_digest(path: Path) -> str:
    """sha256 of one file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """sha256 of a file, or of the relative names and contents of a folder; independent of its location."""
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Size in bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def regular(path: Path) -> Path:
    """The path of a regular file; reading a device such as ``/dev/zero`` or a pipe may never end.

    Raises:
        OSError: there is no such file, or it is something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path
