"""Maintenance of ``artifacts/``: garbage collection and integrity checks.

Releases in the library, runs and store entries accumulate. Garbage collection keeps the newest of each, and
everything that a channel or a baseline refers to.
"""

import datetime
import shutil
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from edgeopt.errors import EdgeoptError, VerificationError
from edgeopt.publish.channels import effective_moves, history, standing
from edgeopt.publish.names import is_version
from edgeopt.publish.oci import CREATED, INDEX, MODEL, Index, read_index, read_manifest
from edgeopt.publish.places import Places
from edgeopt.publish.remotes.layout import Layout
from edgeopt.publish.selecting import bundles
from edgeopt.publish.transfer import PARTIAL
from edgeopt.results import Report
from edgeopt.run.store import Store

UNFINISHED = 24 * 3600.0
"""Seconds after which a run without a report counts as aborted, and an unrequested store entry as unused."""


class Garbage(NamedTuple):
    """Something that may be deleted."""

    what: str
    size_bytes: int


class Fault(NamedTuple):
    """A failed integrity check."""

    where: str
    what: str


def collect(
    places: Places,
    runs: Path,
    store: Path,
    *,
    keep_last: int,
    keep_channels: bool = True,
    held: Set[str] = frozenset(),
    delete: bool = False,
) -> list[Garbage]:
    """List garbage and, with ``delete``, remove it.

    Garbage: the versions of a name and the runs of a recipe except the last ``keep_last``, and store entries
    that none of the kept runs used.

    Versions that a channel points at are always kept, as are versions and runs with an artifact in ``held``
    (the sha256 of artifacts that baselines were measured on); with ``keep_channels`` also versions that a
    channel can be rolled back to. Other processes may push, pull and run at the same time.
    """
    garbage: list[Garbage] = []
    for name in places.names():
        garbage += _releases(name, places.library(name), keep_last, keep_channels, held, delete)
        garbage += _partial_downloads(name, places.root / name / PARTIAL, delete)
    kept_since: list[float] = []
    garbage += _runs(runs, keep_last, held, kept_since, delete)
    garbage += _store_entries(store, min([*kept_since, time.time() - UNFINISHED]), delete)
    return garbage


def verify_all(places: Places, store: Path) -> list[Fault]:
    """Read every byte of the library and of the store and compare it with its digest."""
    faults: list[Fault] = []
    for name in places.names():
        layout = places.library(name)
        with layout.locked(exclusive=False):
            faults += [Fault(name, str(problem)) for problem in _faults(layout)]
    if store.is_dir():
        faults += [Fault("store", f"entry {key} is damaged") for key in Store(store).damaged_keys()]
    return faults


def _releases(
    name: str, layout: Layout, keep_last: int, keep_channels: bool, held: Set[str], delete: bool
) -> list[Garbage]:
    """Outdated versions of one name, and blobs that no remaining tag references."""
    with layout.locked(exclusive=True):
        tags = layout.tags()
        versions: dict[str, Index] = {}
        for tag in filter(is_version, tags):
            found = layout.resolve(tag)
            if found is not None:
                versions[tag] = read_index(layout.manifest(found.digest), f"{name}@{tag}")
        newest = sorted(versions, key=lambda tag: (versions[tag].annotations.get(CREATED, ""), tag))[::-1]
        keep = set(newest[:keep_last])
        for channel, move in standing(layout).items():
            moves = effective_moves(history(layout, channel)) if keep_channels else [move]
            keep |= {each.version for each in (*moves, move)}
        keep |= {tag for tag, index in versions.items() if held & _models(layout, index)}
        outdated = [tag for tag in newest if tag not in keep]
        needed: set[str] = set()
        for tag in tags:
            if tag not in outdated and (found := layout.resolve(tag)):
                needed |= set(_reachable(layout, found.digest, found.media_type))
        garbage = [Garbage(f"{name}@{tag}", 0) for tag in outdated]
        unreferenced = [digest for digest in layout.blobs() if digest not in needed]
        size = sum(layout.size(digest) for digest in unreferenced)
        if unreferenced:
            garbage.append(Garbage(f"{name}: {len(unreferenced)} unreferenced blobs", size))
        if delete:
            for tag in outdated:
                layout.delete_ref(tag)
            for digest in unreferenced:
                layout.delete_blob(digest)
        return garbage


def _partial_downloads(name: str, folder: Path, delete: bool) -> list[Garbage]:
    """Interrupted downloads that were not resumed."""
    old = [file for file in sorted(folder.glob("*")) if time.time() - file.stat().st_mtime > UNFINISHED]
    size = sum(file.stat().st_size for file in old)
    for file in old if delete else ():
        file.unlink(missing_ok=True)
    return [Garbage(f"{name}: {len(old)} files of interrupted downloads", size)] if old else []


def _models(layout: Layout, index: Index) -> set[str]:
    """sha256 of the models of a release, as far as its bundles are in the library."""
    folders = {facts.digest for _, facts in bundles(index) if facts.digest}
    return folders | {
        layer.digest.removeprefix("sha256:")
        for bundle in index.manifests
        if layout.has(bundle.digest)
        for layer in read_manifest(layout.manifest(bundle.digest), bundle.digest).layers
        if layer.media_type == MODEL
    }


def _reachable(layout: Layout, digest: str, media_type: str) -> Iterator[str]:
    """The digests of all stored content that a manifest or index references, and its own."""
    if not layout.has(digest):
        return  # a pulled release contains only the bundles that were fetched
    yield digest
    if media_type == INDEX:
        for bundle in read_index(layout.manifest(digest), digest).manifests:
            yield from _reachable(layout, bundle.digest, bundle.media_type)
        return
    manifest = read_manifest(layout.manifest(digest), digest)
    for blob in (manifest.config, *manifest.layers):
        yield blob.digest


def _runs(runs: Path, keep_last: int, held: Set[str], kept_since: list[float], delete: bool) -> list[Garbage]:
    """Runs that may be deleted; the start times of the others are appended to ``kept_since``."""
    by_recipe: dict[str, list[tuple[float, Path, bool]]] = {}
    garbage: list[tuple[Path, str]] = []
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            report = Report.model_validate_json((folder / "report.json").read_bytes())
            began = datetime.datetime.fromisoformat(report.run.started).timestamp()
        except (OSError, ValidationError, ValueError):
            if time.time() - folder.stat().st_mtime > UNFINISHED:
                garbage.append((folder, f"run {folder.name}, unfinished"))
            else:
                kept_since.append(folder.stat().st_mtime - UNFINISHED)
            continue
        used = any(row.artifact and row.artifact.digest in held for row in report.results)
        by_recipe.setdefault(report.recipe, []).append((began, folder, used))
    for recipe_runs in by_recipe.values():
        for position, (began, folder, used) in enumerate(sorted(recipe_runs, reverse=True)):
            if position < keep_last or used:
                kept_since.append(began)
            else:
                garbage.append((folder, f"run {folder.name}"))
    listed = [Garbage(what, _size(folder)) for folder, what in garbage]
    for folder, _ in garbage if delete else ():
        shutil.rmtree(folder, ignore_errors=True)
    latest = runs / "latest"
    if delete and latest.is_symlink() and not latest.exists():
        latest.unlink()
    return listed


def _store_entries(root: Path, before: float, delete: bool) -> list[Garbage]:
    """Entries of the store that were last used before the start of the oldest kept run."""
    if not root.is_dir():
        return []
    store = Store(root)
    old = store.unused_since(before)
    size = sum(_size(folder) for folder in old.values())
    if delete:
        for key in old:
            store.remove(key)
    return [Garbage(f"store: {len(old)} entries unused by the kept runs", size)] if old else []


def _faults(layout: Layout) -> Iterator[EdgeoptError]:
    """All faults of one library: damaged content, and tags without content."""
    for digest in layout.blobs():
        try:
            layout.check(digest)
        except VerificationError as error:
            yield error
    for tag in layout.tags():
        try:
            found = layout.resolve(tag)
            if found is None or not layout.has(found.digest):
                yield VerificationError(f"{tag} points at a missing manifest")
                continue
            for digest in _reachable(layout, found.digest, found.media_type):
                if not layout.has(digest):
                    yield VerificationError(f"{tag} needs {digest}, which is missing")
        except EdgeoptError as error:
            yield error
    try:
        for channel, move in standing(layout).items():
            if layout.resolve(move.version) is None:
                yield VerificationError(f"channel {channel} points at {move.version}, which is missing")
    except EdgeoptError as error:
        yield error


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
