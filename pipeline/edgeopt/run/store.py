"""A content-addressed store of finished work: complete or absent, verified on every read.

``objects/<aa>/<key>/`` holds the files of one entry and ``entry.json``, which lists the sha256 of
each. Everything is written to ``scratch/`` in the same file system and then renamed, so a process
killed at any moment leaves no half entry, and two processes may store the same key at once: the
first wins, and both had the same bytes.
"""

import contextlib
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

from edgeopt.config.files import file_digest, files_of
from edgeopt.errors import StoreError, UsageError
from edgeopt.plugin import digest_of

ARTIFACTS = Path("artifacts")
"""Where everything that is made goes, unless it is told to go elsewhere."""


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
        record = _sound(folder)
        if record is None:
            self.damaged.append(key)
            self.remove(key)
            return None
        with contextlib.suppress(OSError):  # a store that is only read
            os.utime(folder / "entry.json")
        entry = self._good[key] = Entry(key, folder / "files", record["meta"])
        return entry

    def models(self) -> dict[str, Path]:
        """The main file of every artifact, by the sha256 of its content."""
        found = {}
        for folder in self._folders():
            try:
                meta = json.loads((folder / "entry.json").read_text("utf-8"))["meta"]
                if "model" in meta:
                    found[meta["digest"]] = folder / "files" / meta["model"]["path"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged: `get` throws it away
        return found

    def unsound(self) -> list[str]:
        """Keys of all entries with a byte that is not as it was stored. Nothing is removed."""
        return [folder.name for folder in self._folders() if _sound(folder) is None]

    def unused_since(self, moment: float) -> dict[str, Path]:
        """Entries that were neither stored nor asked for since ``moment`` (seconds of `time.time`)."""
        found = {}
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError):
                if (folder / "entry.json").stat().st_mtime < moment:
                    found[folder.name] = folder
        return found

    def remove(self, key: str) -> None:
        """Take an entry out, in one step; one that is gone already is no fault."""
        trash = self._scratch_name()
        with contextlib.suppress(FileNotFoundError):
            self._folder(key).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

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

    def _folders(self) -> list[Path]:
        return sorted((self.root / "objects").glob("??/*"))

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


def store_folder(given: Path | None) -> Path:
    """The store to use: as given, else ``EDGEOPT_STORE``, else ``artifacts/store``."""
    return given or Path(os.environ.get("EDGEOPT_STORE") or ARTIFACTS / "store")


def _sound(folder: Path) -> dict[str, Any] | None:
    """The record of an entry whose every byte is as it was stored, or None."""
    try:
        record: dict[str, Any] = json.loads((folder / "entry.json").read_text("utf-8"))
        told = record["check"] == digest_of([record["files"], record["meta"]])
        return record if told and record["files"] == _digests(folder / "files") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
