"""A store of results by key: entries are complete or absent, and verified on every read.

``objects/<aa>/<key>/`` contains the files of one entry and ``entry.json``, which lists the sha256 of each.
Entries are written to ``scratch/`` on the same file system and then renamed: a process killed at any moment
leaves no partial entry, and the next one that opens the store removes its scratch folders. If two processes
store the same key concurrently, the first one wins; both entries are equivalent.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.config.code_folders import project_of
from edgeopt.config.files import NO_SPACE, file_digest, files_of, is_full, make_ignored, size_bytes
from edgeopt.config.scratch import scratch_folder, sweep
from edgeopt.errors import StoreError, UsageError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.plugin import digest_of

ARTIFACTS = Path("artifacts")
"""Default folder of runs and the store."""
DEFAULT = ARTIFACTS / "store"
RECORD = "entry.json"
"""The record of an entry: its files with their digests, and its metadata."""
_URL = re.compile(r"^(s3|https?):/+(?=[^/])")
"""The beginning of a URL, also after a path has merged its slashes."""


CACHE_VARIABLE = "EDGEOPT_STORE_CACHE"
"""The folder of this machine in front of a shared store."""


class Entry(NamedTuple):
    """One entry: its key, the folder of its files, and its metadata."""

    key: str
    folder: Path
    meta: dict[str, Any]


class Listed(NamedTuple):
    """An entry as its record describes it, not verified."""

    key: str
    size_bytes: int
    meta: dict[str, Any]


class Store:
    """A store in the folder ``root``; ``damaged`` lists the keys of removed damaged entries.

    Raises:
        UsageError: the folder is not writable.
        StoreError: the disk is full.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[str] = []
        self.notes: list[str] = []
        """What the report of a run should say of the store."""
        self._cache: dict[str, Entry] = {}
        try:
            make_ignored(root)
            (root / "objects").mkdir(exist_ok=True)
            (root / "scratch").mkdir(exist_ok=True)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise _explained(error, self.root) from error
            raise UsageError(
                f"cannot write the store in {root}: {error.strerror}",
                fix="choose another folder with --store DIR",
            ) from error
        sweep(root / "scratch", "")

    def get(self, key: str) -> Entry | None:
        """The verified entry of ``key``, None if absent; a damaged entry is removed."""
        if key in self._cache:
            return self._cache[key]
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        record = _verified_record(folder)
        if record is None:
            self.damaged.append(key)
            self.remove(key)
            return None
        with contextlib.suppress(OSError):  # a read-only store
            os.utime(folder / RECORD)
        entry = self._cache[key] = Entry(key, folder / "files", record["meta"])
        return entry

    def models(self) -> dict[str, Path]:
        """The main file of every model in the store, by digest; not verified."""
        models = {}
        for folder in self._folders():
            try:
                meta = json_value((folder / RECORD).read_text("utf-8"))["meta"]
                if "model" in meta:
                    models[meta["digest"]] = folder / "files" / meta["model"]["path"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged: removed by `get`
        return models

    def entries(self) -> Iterator[Listed]:
        """All entries with a readable record; not verified."""
        for folder in self._folders():
            try:
                meta = dict(json_value((folder / RECORD).read_text("utf-8"))["meta"])
                yield Listed(folder.name, size_bytes(folder), meta)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged, or removed meanwhile

    def damaged_keys(self) -> list[str]:
        """Verify all entries; returns the keys of damaged ones and removes nothing."""
        return [folder.name for folder in self._folders() if _verified_record(folder) is None]

    def unused_since(self, moment: float) -> dict[str, Path]:
        """Folders of entries neither stored nor read since ``moment`` (seconds of `time.time`), by key."""
        unused = {}
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError):
                if (folder / RECORD).stat().st_mtime < moment:
                    unused[folder.name] = folder
        return unused

    def remove(self, key: str) -> None:
        """Remove an entry atomically; a no-op if it does not exist."""
        with self.scratch() as trash, contextlib.suppress(FileNotFoundError):
            self._folder(key).rename(trash / key)

    def put(self, key: str, folder: Path, meta: dict[str, Any]) -> Entry:
        """Store all files below ``folder``, a scratch folder that is moved, under ``key``.

        Raises:
            StoreError: the disk is full, the store is not writable, or the entry reads back differently.
        """
        target = self._folder(key)
        with self.scratch() as staged:
            try:
                folder.rename(staged / "files")
                files = _digests(staged / "files")
                record = {"key": key, "files": files, "meta": meta, "check": digest_of([files, meta])}
                with (staged / RECORD).open("w", encoding="utf-8") as file:
                    json.dump(record, file, indent=1, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
                target.parent.mkdir(exist_ok=True)
                staged.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # otherwise another process was first
                    raise _explained(error, self.root) from error
        entry = self.get(key)
        if entry is None:
            raise StoreError(f"the new entry {target} does not read back as written", fix="check the disk")
        return entry

    def flush(self) -> None:
        """Wait until all entries are where they belong; here, they are at once."""

    def share(self, key: str) -> bool:
        """Send an entry of this machine to where others find it; False if there is no such place."""
        return False

    def checkpoints(self, key: str) -> Path:
        """The folder for checkpoints of the stage with this key; kept if the process is killed."""
        folder = self.root / "checkpoints" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, self.root) from error
        return folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's file system, removed on exit unless it was stored."""
        with ExitStack() as cleanup:
            try:
                folder = cleanup.enter_context(scratch_folder(self.root / "scratch", ""))
            except OSError as error:
                raise _explained(error, self.root) from error
            yield folder

    def _folders(self) -> list[Path]:
        return sorted((self.root / "objects").glob("??/*"))

    def _folder(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key


def store_folder(given: str | Path | None) -> Path:
    """The store's folder: ``given``, or ``EDGEOPT_STORE``, or ``artifacts/store``, of the project if in one.

    If that is a URL, the folder on this machine through which the shared store is read and written:
    ``EDGEOPT_STORE_CACHE``, or ``artifacts/store``.
    """
    place = _place(given)
    return Path(os.environ.get(CACHE_VARIABLE) or _default()) if is_url(place) else Path(place)


def open_store(given: str | Path | None) -> Store:
    """The store at ``given``, ``EDGEOPT_STORE`` or ``artifacts/store``: a folder, or the URL of a shared one.

    Raises:
        UsageError: the folder is not writable, or the URL none of a store.
        MissingPackageError: the store is in a bucket, and s3fs is not installed.
        StoreError: the disk is full.
    """
    place = _place(given)
    if not is_url(place):
        return Store(Path(place))
    from edgeopt.run.shared.store import SharedStore, may_write, objects_at

    objects = objects_at(_URL.sub(r"\1://", place))
    return SharedStore(store_folder(place), objects, writes=may_write())


def store_place(given: str | Path | None) -> str:
    """The store as another machine or process names it: the absolute path of its folder, or its URL."""
    place = _place(given)
    return _URL.sub(r"\1://", place) if is_url(place) else os.path.abspath(place)


def is_url(place: str) -> bool:
    """Whether the name of a store is that of a shared one."""
    return _URL.match(place) is not None


def _place(given: str | Path | None) -> str:
    return str(given or os.environ.get("EDGEOPT_STORE") or _default())


def _default() -> Path:
    """The store of the project around the working folder, unless this has one; one outside of projects."""
    here = Path.cwd()
    project = None if DEFAULT.is_dir() else project_of(here)
    return DEFAULT if project in (None, here) else project / DEFAULT


def _verified_record(folder: Path) -> dict[str, Any] | None:
    """The record of an entry, None if any of its bytes changed."""
    try:
        record: dict[str, Any] = json_value((folder / RECORD).read_text("utf-8"))
        intact = record["check"] == digest_of([record["files"], record["meta"]])
        return record if intact and record["files"] == _digests(folder / "files") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files_of(folder)}


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Name the folder without space if that fails a block that writes below ``folder``, the root of a store.

    Raises:
        StoreError: no space is left there, or for temporary files.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StoreError) or not is_full(error):
            raise
        temporary = Path(tempfile.gettempdir())
        if shutil.disk_usage(temporary).free < shutil.disk_usage(folder).free:
            raise StoreError(
                f"no space left for temporary files in {temporary}",
                fix="free space or set TMPDIR to another folder, then run again to resume",
            ) from error
        raise _full(folder) from error


def _full(root: Path) -> StoreError:
    return StoreError(
        f"no space left for the store in {root}; completed steps are kept",
        fix="free space or choose another folder, with --store DIR or, before a shared store, in "
        f"{CACHE_VARIABLE}, then run again to resume",
    )


def _explained(error: OSError, root: Path) -> StoreError:
    if error.errno in NO_SPACE:
        return _full(root)
    return StoreError(
        f"cannot write the store in {root}: {error.strerror}", fix="choose another folder with --store DIR"
    )
