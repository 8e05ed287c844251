"""Looking after a store: what it contains, what nobody uses any more, and what is damaged."""

import time
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.run.store import Store, store_folder

DAY = 24 * 3600.0
OTHER = "measurements and checks"
"""Entries that are no model."""


class Contents(NamedTuple):
    """Entries of one kind."""

    kind: str
    """The stage that made them, or `OTHER`."""
    entries: int
    size_bytes: int


class Unused(NamedTuple):
    """Entries that were neither stored nor read for some time."""

    entries: int
    size_bytes: int


def folder_of(given: str | Path | None) -> Path:
    """The folder of a store on this machine, also of one behind which is a server.

    Raises:
        UsageError: there is no store.
    """
    folder = store_folder(given)
    if not (folder / "objects").is_dir():
        raise UsageError(f"no store in {folder}", fix="name one with --store DIR, or run a recipe first")
    return folder


def contents(folder: Path) -> list[Contents]:
    """What a store contains, the largest first; entries are not verified."""
    found: dict[str, list[int]] = {}
    for each in Store(folder).entries():
        found.setdefault(each.meta.get("stage", OTHER), []).append(each.size_bytes)
    listed = [Contents(kind, len(sizes), sum(sizes)) for kind, sizes in found.items()]
    return sorted(listed, key=lambda each: (-each.size_bytes, each.kind))


def collect(folder: Path, days: float, *, delete: bool) -> Unused:
    """Find the entries that were not used for some days; with ``delete``, remove them.

    Other processes may use the store meanwhile: what they miss, they make again.
    """
    store = Store(folder)
    old = store.unused_since(time.time() - days * DAY)
    sizes = [each.size_bytes for each in store.entries() if each.key in old]
    for key in old if delete else ():
        store.remove(key)
    return Unused(len(old), sum(sizes))


def damaged(folder: Path, *, delete: bool) -> list[str]:
    """The keys of entries that do not match their digests; with ``delete``, they are removed."""
    store = Store(folder)
    keys = store.damaged_keys()
    for key in keys if delete else ():
        store.remove(key)
    return keys
