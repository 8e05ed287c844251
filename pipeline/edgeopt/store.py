"""A content-addressed store of finished work: complete or absent, verified on every read.

``objects/<aa>/<key>/`` holds the files of one entry and ``entry.json``, which lists the sha256 of
each. Everything is written to ``scratch/`` in the same file system and then renamed, so a process
killed at any moment leaves no half entry, and two processes may store the same key at once: the
first wins, and both had the same bytes.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from edgeopt.errors import StoreError, UsageError
from edgeopt.model import file_digest, files_of
from edgeopt.plugin import digest_of


class Entry(NamedTuple):
    """One finished piece of work: its folder of files, and what was said about it."""

    key: str
    folder: Path
    meta: dict[str, Any]


class Store:
    """See the module. ``damaged`` collects what was found broken, thrown away and must be rebuilt.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[str] = []
        self._good: dict[str, Entry] = {}
        try:
            (root / "objects").mkdir(parents=True, exist_ok=True)
            (root / "scratch").mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write the store in {root}: {error.strerror}",
                fix="choose another folder with --store DIR",
            ) from error
        self._sweep()

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, every byte of it verified; a damaged one is removed and counts as absent."""
        if key in self._good:
            return self._good[key]
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        try:
            record = json.loads((folder / "entry.json").read_text("utf-8"))
            sound = record["check"] == digest_of([record["files"], record["meta"]]) and record[
                "files"
            ] == _digests(folder / "files")
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            self.damaged.append(key)
            trash = self._scratch_name()
            folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
            return None
        entry = self._good[key] = Entry(key, folder / "files", record["meta"])
        return entry

    def put(self, key: str, folder: Path, meta: dict[str, Any]) -> Entry:
        """Store all files below ``folder`` (a scratch folder, which is used up) under ``key``.

        Raises:
            StoreError: when the disk is full or the store cannot be written.
        """
        target = self._folder(key)
        try:
            staged = self._scratch_name()
            staged.mkdir()
            folder.rename(staged / "files")
            files = _digests(staged / "files")
            record = {"key": key, "files": files, "meta": meta, "check": digest_of([files, meta])}
            with (staged / "entry.json").open("w", encoding="utf-8") as file:
                json.dump(record, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(exist_ok=True)
            try:
                staged.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(staged, ignore_errors=True)  # another process was first
        except OSError as error:
            raise _explained(error, self.root) from error
        entry = self.get(key)
        if entry is None:
            raise StoreError(
                f"what was just written to {target} reads back differently", fix="check the disk"
            )
        return entry

    def checkpoints(self, key: str) -> Path:
        """The folder in which work on ``key`` leaves how far it came; it outlives a killed process."""
        folder = self.root / "checkpoints" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, self.root) from error
        return folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder in the store's file system, removed afterwards unless it was stored."""
        folder = self._scratch_name()
        try:
            folder.mkdir()
        except OSError as error:
            raise _explained(error, self.root) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def _scratch_name(self) -> Path:
        return self.root / "scratch" / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"

    def _sweep(self) -> None:
        """Remove what processes that are gone left in scratch."""
        for folder in (self.root / "scratch").iterdir():
            pid = folder.name.partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files_of(folder)}


def _explained(error: OSError, root: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left for the store in {root}; finished work is kept",
            fix="free some space, or choose another folder with --store DIR, and run again: it resumes",
        )
    return StoreError(
        f"cannot write the store in {root}: {error.strerror}", fix="choose another folder with --store DIR"
    )
