"""Files and folders: written whole or not at all, known by their content, measured in bytes."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20
"""Bytes that are read at once."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path beside ``target``, to be written; it takes its place when the block ends.

    Whoever reads ``target`` meanwhile, and whatever happens to this process, finds the old content or the
    new, never a part of it. When the block raises, ``target`` is as it was and nothing is left beside it.

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
    """Replace ``target`` by ``text`` in UTF-8, with ``\\n`` at the ends of lines; see `replacing`."""
    with replacing(target) as scratch:
        scratch.write_text(text, "utf-8", newline="\n")


def files_of(path: Path) -> Iterator[Path]:
    """The file at ``path``, or the files of the folder there, in a stable order."""
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file())
    else:
        yield path


def file_digest(path: Path) -> str:
    """sha256 of one file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """sha256 over the names and contents of a file or folder; where it lies does not matter."""
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))
