"""Files and folders: atomic writes, content digests, sizes."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20
"""Bytes read at a time."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path beside ``target`` that replaces it atomically when the block ends.

    Readers of ``target`` see either the old or the new content, even if the process is killed. If the block
    raises, ``target`` is unchanged and the scratch path is removed.

    Raises:
        OSError: the folder of ``target`` cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield scratch
        os.replace(scratch, target)
    except BaseException:
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)
        raise


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target`` atomically, in UTF-8 with ``\\n`` line ends; see `replacing`."""
    with replacing(target) as scratch:
        scratch.write_text(text, "utf-8", newline="\n")


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
