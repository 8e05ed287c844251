"""Pickles of tasks in which every file is a reference that another machine resolves.

A file of the store becomes the key of its entry. A file outside, such as a data set, becomes its path and its
content digest: a machine that has the same content there uses it. Only what a machine lacks goes through the
store. The same holds for code of the user, whose digest covers all modules that it imports.
"""

import io
import os
import pickle
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from edgeopt.config.code_folders import user_folder
from edgeopt.config.files import content_digest, files_of
from edgeopt.config.references import Code
from edgeopt.errors import StageError, StoreError
from edgeopt.plugin import digest_of
from edgeopt.run.store import Store

ONE_STORE = "let all machines use one store: a folder that they share, or a URL in EDGEOPT_STORE"


class Stored(NamedTuple):
    """A file or folder of an entry of the store."""

    key: str
    parts: tuple[str, ...]


class Checkpoints(NamedTuple):
    """The checkpoints of a stage, which each store has of its own."""

    key: str


class Scratch(NamedTuple):
    """The folder that the task writes."""


class Outside(NamedTuple):
    """A file or folder outside the store."""

    path: str
    digest: str

    @property
    def key(self) -> str:
        """Of the entry that has its content."""
        return digest_of(["file of a task", Path(self.path).name, self.digest])


class Source(NamedTuple):
    """Code of the user."""

    target: str
    folder: str
    digest: str

    @property
    def key(self) -> str:
        """Of the entry that has its files."""
        return digest_of(["code of a task", self.digest])


class CodeFolder(NamedTuple):
    """The folder that code of the user is imported from."""

    source: Source


class Defined(NamedTuple):
    """A class or function that code of the user defines."""

    source: Source


Absent: TypeAlias = Stored | Outside | Source
"""What a machine lacks: neither its files nor its store have it."""


class AbsentError(Exception):
    """A machine lacks files of a task; ``absent`` lists them."""

    def __init__(self, absent: Sequence[Absent]) -> None:
        super().__init__(f"{len(absent)} files are absent")
        self.absent = tuple(absent)


def dump(value: object, store: Store, scratch: Path, code: Code | None) -> bytes:
    """Pickle the arguments of a task.

    Args:
        store: the store with the files of models.
        scratch: the folder that the task writes.
        code: code that models refer to by its folder.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, store, scratch, code).dump(value)
    return buffer.getvalue()


def load(data: bytes, store: Store, scratch: Path) -> Any:
    """The arguments of a task on this machine.

    Raises:
        AbsentError: this machine lacks files.
    """
    unpickler = _Unpickler(io.BytesIO(data), store, scratch)
    try:
        value = unpickler.load()
    except Exception:
        if not unpickler.absent:
            raise
    if unpickler.absent:
        raise AbsentError(unpickler.absent)
    return value


def supply(absent: Absent, store: Store) -> None:
    """Put what another machine lacks into the store.

    Raises:
        StageError: a file has changed since the task was made.
        StoreError: the store is not writable, or the other machine does not use it.
    """
    if isinstance(absent, Stored):
        if not store.share(absent.key):
            raise StoreError(
                f"the entry {absent.key[:12]} of {store.root} is not in its store", fix=ONE_STORE
            )
        return
    if store.get(absent.key) is not None:
        store.share(absent.key)  # another task may have needed it, too
        return
    with store.scratch() as folder:
        (folder / "files").mkdir()
        if isinstance(absent, Outside):
            copy, digest = _copied(Path(absent.path), folder / "files"), absent.digest
            unchanged = content_digest(copy) == digest
        else:
            code = Code.model_construct(target=absent.target, folder=Path(absent.folder))
            unchanged = code.digest() == absent.digest
            for place, file in code.files().items():
                (folder / "files" / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / "files" / place)
        if not unchanged:
            raise StageError(f"{absent[0]} has changed since this command began", fix="run it again")
        store.put(absent.key, folder / "files", {})
    store.flush()


def _copied(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, store: Store, scratch: Path, code: Code | None) -> None:
        super().__init__(file)
        self._root, self._scratch, self._code = _absolute(store.root), _absolute(scratch), code
        self._folders: dict[str, Path | None] = {}
        """Of each module with a pickled class: the folder of the user that it is imported from, if any."""

    def persistent_id(self, value: object) -> object:
        if isinstance(value, Path):
            return self._reference(_absolute(value))
        if isinstance(value, Code) and value.folder is not None:
            return _source(value)
        if isinstance(value, type | FunctionType):
            folder = self._folder_of(value.__module__)
            if folder is not None:
                target = f"{value.__module__}:{value.__qualname__}"
                return Defined(_source(Code.model_construct(target=target, folder=folder)))
        return None

    def _reference(self, path: Path) -> object:
        if path == self._scratch:
            return Scratch()
        if self._code is not None and path == self._code.folder:
            return CodeFolder(_source(self._code))
        if path.is_relative_to(self._root):
            room, *parts = path.relative_to(self._root).parts
            if room == "objects" and len(parts) > 2:
                return Stored(parts[1], tuple(parts[3:]))
            if room == "checkpoints":
                return Checkpoints(parts[0])
        return Outside(str(path), _digest(path)) if path.exists() else None

    def _folder_of(self, name: str) -> Path | None:
        if name not in self._folders:
            file = getattr(sys.modules.get(name), "__file__", None)
            theirs = name.partition(".")[0] not in ("edgeopt", "__main__")
            self._folders[name] = user_folder(Path(file), name.count(".") + 1) if file and theirs else None
        return self._folders[name]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, store: Store, scratch: Path) -> None:
        super().__init__(file)
        self._absent: dict[str, Absent] = {}
        self._store, self._scratch = store, scratch

    @property
    def absent(self) -> tuple[Absent, ...]:
        """What this machine lacks, once each."""
        return tuple(self._absent.values())

    def persistent_load(self, reference: Any) -> Any:
        match reference:
            case Scratch():
                return self._scratch
            case Checkpoints(key):
                return self._store.checkpoints(key)
            case Stored(key, parts):
                return self._entry(reference, key).joinpath(*parts)
            case Outside(path, digest):
                here = Path(path)
                if here.exists() and _digest(here) == digest:
                    return here
                return self._entry(reference, reference.key) / here.name
            case Source():
                return self._code(reference)
            case CodeFolder(source):
                return self._code(source).folder
            case Defined(source):
                return self._code(source).load()
        raise pickle.UnpicklingError(f"unknown reference {reference!r}")

    def _code(self, source: Source) -> Code:
        here = Code.model_construct(target=source.target, folder=Path(source.folder))
        if Path(source.folder).is_dir() and here.digest() == source.digest:
            return here
        return Code.model_construct(target=source.target, folder=self._entry(source, source.key))

    def _entry(self, reference: Absent, key: str) -> Path:
        entry = self._store.get(key)
        if entry is None:
            self._absent[key] = reference
            return Path()
        return _absolute(entry.folder)


def _source(code: Code) -> Source:
    return Source(code.target, str(code.folder), code.digest())


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


_digests: dict[tuple[tuple[str, int, int], ...], str] = {}
"""Digests by path, size and time of change of all files: a data set is part of many tasks."""


def _digest(path: Path) -> str:
    state = tuple((str(file), (info := file.stat()).st_size, info.st_mtime_ns) for file in files_of(path))
    if state not in _digests:
        _digests[state] = content_digest(path)
    return _digests[state]
