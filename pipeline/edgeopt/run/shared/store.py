"""A store that several machines share: read through a folder of this machine, written behind.

The server has two kinds of objects. ``cas/<sha256>`` contains bytes, and ``ac/<key>`` the record of an entry,
as ``entry.json`` in the local folder: the names and digests of its files. This is the layout of caches for
builds, such as that of Bazel, whose servers can be used. None of it is trusted: what does not match its
digest is not used, but removed, reported and built again. A server that fails is not asked again by the same
command, which goes on with the local folder.
"""

import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.model import Model
from edgeopt.plugin import digest_of
from edgeopt.run.shared.objects import Objects, UnavailableError
from edgeopt.run.store import RECORD, Entry, Store

RECORD_BYTES = 16 << 20
FILE_BYTES = 64 << 30
SHA256 = re.compile(r"[0-9a-f]{64}")
WRITE_VARIABLE = "EDGEOPT_STORE_WRITE"


class SharedStore(Store):
    """A store in the folder ``root``, and behind it the objects of a server."""

    def __init__(self, root: Path, objects: Objects, *, writes: bool = True) -> None:
        """``writes``: whether new entries go to the server."""
        super().__init__(root)
        self._objects = objects
        self._reads, self._writes = True, writes
        # One thread: an entry is written while the next one is made.
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="edgeopt-store")
        self._pending: list[Future[None]] = []

    def get(self, key: str) -> Entry | None:
        """As of `Store`; an entry that is not here is fetched from the server."""
        entry = super().get(key)
        if entry is None and self._reads and self._fetch(key):
            entry = super().get(key)
        return entry

    def put(self, key: str, folder: Path, meta: dict[str, Any]) -> Entry:
        """As of `Store`; the entry goes to the server later."""
        entry = super().put(key, folder, meta)
        if self._writes:
            self._pending.append(self._behind.submit(self._send, entry))
        return entry

    def share(self, key: str) -> bool:
        """As of `Store`: send an entry to the server, at once; whether it is there."""
        entry = super().get(key)
        if entry is not None and self._writes:
            self._behind.submit(self._send, entry).result()
        return entry is not None and self._writes

    def flush(self) -> None:
        """Wait until all entries are on the server, or it failed."""
        while self._pending:
            self._pending.pop().result()

    def _fetch(self, key: str) -> bool:
        """Copy an entry of the server to this store; whether there is one, and it is what it says."""
        with self.scratch() as folder:
            try:
                if not self._objects.read(f"ac/{key}", folder / RECORD, RECORD_BYTES):
                    return False
                record = _checked((folder / RECORD).read_text("utf-8"), key)
                for place, digest in record["files"].items():
                    target = folder / "files" / place
                    if not self._objects.read(f"cas/{digest}", target, FILE_BYTES):
                        return False  # removed by whoever cleans up
                    if file_digest(target) != digest:
                        self._drop(f"cas/{digest}")
                        raise ValueError("a file does not match its digest")
            except UnavailableError as error:
                self._reads = False
                self.notes.append(f"the shared store was not used: {error}; results are in {self.root}")
                return False
            except ValueError:  # not a record, or not of this entry
                self.damaged.append(key)
                self._drop(f"ac/{key}")
                return False
            (folder / "files").mkdir(exist_ok=True)
            super().put(key, folder / "files", record["meta"])
        return True

    def _send(self, entry: Entry) -> None:
        """Write the files of an entry, then its record: a record never precedes what it lists."""
        record = entry.folder.parent / RECORD
        try:
            if not self._writes:
                return
            for place, digest in json_value(record.read_text("utf-8"))["files"].items():
                if not self._objects.has(f"cas/{digest}"):
                    self._objects.write(f"cas/{digest}", entry.folder / place)
            self._objects.write(f"ac/{entry.key}", record)
        except (UnavailableError, OSError) as error:  # the latter: removed here meanwhile
            self._writes = False
            self.notes.append(f"results are not in the shared store, only in {self.root}: {error}")

    def _drop(self, name: str) -> None:
        """Remove a damaged object, if this machine may write."""
        if self._writes:
            try:
                self._objects.delete(name)
            except UnavailableError:
                return  # whoever may, replaces it


def _checked(text: str, key: str) -> dict[str, Any]:
    """A record of the server.

    Raises:
        ValueError: it is not the record of this entry, or names files outside it.
    """
    record = json_value(text, "a record of the shared store")
    try:
        files, meta = dict(record["files"]), dict(record["meta"])
        known = record["key"] == key and record["check"] == digest_of([files, meta])
        if "model" in meta:
            Model.model_validate(meta["model"])
            places = [*files, meta["model"]["path"]]
        else:
            places = list(files)
        inside = all(map(_inside, places))
        digests = all(SHA256.fullmatch(digest) for digest in files.values())
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError("not a record") from error
    if not (known and inside and digests):
        raise ValueError("not the record of this entry")
    return {"files": files, "meta": meta}


def _inside(place: str) -> bool:
    path = PurePosixPath(place)
    return not path.is_absolute() and ".." not in path.parts and path.name != ""


def objects_at(url: str) -> Objects:
    """The server of a shared store.

    Raises:
        UsageError: not a URL of one.
        MissingPackageError: a bucket needs s3fs.
    """
    if url.startswith("s3://"):
        from edgeopt.run.shared.bucket import Bucket

        return Bucket(url)
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise UsageError(
            f"the store {url!r} is not one", fix="give a folder, s3://bucket/prefix or https://host/path"
        )
    from edgeopt.run.shared.web import Web

    return Web(url)


def may_write() -> bool:
    """Whether new entries go to the server: not if ``EDGEOPT_STORE_WRITE`` is 0.

    Raises:
        UsageError: the variable is neither 0 nor 1.
    """
    value = os.environ.get(WRITE_VARIABLE, "1")
    if value not in ("0", "1"):
        raise UsageError(f"{WRITE_VARIABLE} is {value!r}", fix=f"{WRITE_VARIABLE}=0 or 1")
    return value == "1"
