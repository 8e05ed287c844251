"""Scratch folders that are removed even if their process is killed: at the latest, by the next run.

The owner of a scratch folder holds a lock on it, which the kernel releases however the owner ends. A folder
without an owner is abandoned. Process ids do not tell: containers that share a folder reuse the same few.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "edgeopt-run-"
_outside: str | None = None
"""The folder for temporary files outside that of this run."""


@contextmanager
def scratch_folder(parent: Path, prefix: str, mode: int = 0o777) -> Iterator[Path]:
    """A new folder in ``parent``, removed on exit unless it was renamed.

    Raises:
        OSError: ``parent`` is not writable.
    """
    folder, lock = _create(parent, prefix, mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path, prefix: str, rescue: Callable[[Path], None] | None = None) -> None:
    """Remove the abandoned scratch folders in ``parent``; ``rescue`` may take something out of each before.

    On a file system without locks for folders, such as NFS, none counts as abandoned.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(prefix):
                with contextlib.suppress(OSError):
                    _remove_abandoned(parent / name, rescue)


@contextmanager
def temporary_files() -> Iterator[None]:
    """Keep the temporary files of this process and of its children in one scratch folder.

    Raises:
        OSError: the folder for temporary files is not writable.
    """
    global _outside  # like tempfile.tempdir, a property of the process
    before, variable, outside = tempfile.tempdir, os.environ.get("TMPDIR"), tempfile.gettempdir()
    sweep(Path(outside), PREFIX)
    with scratch_folder(Path(outside), PREFIX, 0o700) as folder:
        _outside, tempfile.tempdir, os.environ["TMPDIR"] = outside, str(folder), str(folder)
        try:
            yield
        finally:
            _outside, tempfile.tempdir = None, before
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


def lasting_temporary_folder() -> Path:
    """The folder for temporary files that other runs see, or that remain after this one."""
    return Path(_outside or tempfile.gettempdir())


def _create(parent: Path, prefix: str, mode: int) -> tuple[Path, int]:
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}"
        folder.mkdir(mode=mode)
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)  # being swept
                continue
            except OSError:
                return folder, descriptor  # a file system without locks for folders
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _remove_abandoned(folder: Path, rescue: Callable[[Path], None] | None) -> None:
    # A folder for temporary files is shared with other users, who may place anything there.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        info = os.fstat(descriptor)
        if stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if rescue is not None:
                rescue(folder)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
