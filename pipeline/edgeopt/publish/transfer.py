"""Releases on their way: found in a remote, fetched to the library, mirrored from it."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import UsageError, VerificationError
from edgeopt.publish.annotations import VERSION
from edgeopt.publish.channels import current, standing
from edgeopt.publish.names import Reference, is_version
from edgeopt.publish.oci import INDEX, MANIFEST, Descriptor, Index, read_index, read_manifest
from edgeopt.publish.remote import Progress, Remote, silent
from edgeopt.publish.remotes.layout import Layout

PARTIAL = "partial"
"""Folder of downloads that broke off, in a library."""


@dataclass(frozen=True)
class Release:
    """A release as it lies in a library or a remote."""

    name: str
    version: str
    descriptor: Descriptor
    index: Index

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def find_release(remote: Remote, reference: Reference) -> Release:
    """The release that a reference means, as ``remote`` has it.

    Raises:
        UsageError: there is none; with what there is.
        VerificationError: it is not what its tag says.
    """
    version = reference.version
    if reference.channel:
        move = current(remote, reference.channel)
        if move is None:
            raise UsageError(
                f"{remote.url} has no channel {reference.channel}", fix=_what_there_is(remote, reference)
            )
        target, version = move.release, move.version
    else:
        target = reference.digest or version or ""
    found = remote.resolve(target)
    if found is None:
        raise UsageError(f"{remote.url} has no {target}", fix=_what_there_is(remote, reference))
    index = read_index(remote.manifest(found.digest), f"{remote.url}@{target}")
    told = index.annotations.get(VERSION, "")
    if not is_version(told) or version not in (None, told):
        raise VerificationError(
            f"{remote.url}: what lies under {target} calls itself {told or 'nothing'}: it was put there by "
            "something else, or tampered with",
            fix="pull a version by its digest: NAME@sha256:…",
        )
    return Release(reference.name, told, found, index)


def fetch_bundle(
    release: Release,
    bundle: Descriptor,
    remote: Remote,
    library: Layout,
    folder: Path,
    progress: Progress = silent,
) -> None:
    """Bring one bundle of a release into a library; a broken download in ``folder`` goes on where it was."""
    data = remote.manifest(bundle.digest)
    manifest = read_manifest(data, f"{release.name}@{release.version}")
    for blob in (manifest.config, *manifest.layers):
        if _sound(library, blob):
            progress(blob.size)
            continue
        with partial(folder, blob) as place:
            remote.fetch(blob, place, progress)
            library.push_blob(blob, place)
    library.push_manifest(data, MANIFEST)
    library.push_manifest(remote.manifest(release.descriptor.digest), INDEX, [release.version])


def _sound(library: Layout, blob: Descriptor) -> bool:
    """Whether a blob is there, every byte of it; a damaged one is taken out, to be fetched again."""
    if not library.has(blob.digest):
        return False
    try:
        library.check(blob.digest)
    except VerificationError:
        library.delete_blob(blob.digest)
        return False
    return True


def mirror(
    release: Release,
    source: Remote,
    target: Remote,
    progress: Progress = silent,
) -> None:
    """Copy a whole release with its version to another place; what is there already is not sent again.

    Raises:
        UsageError: the place has this version, and it is another.
    """
    there = target.resolve(release.version)
    if there is not None and there.digest != release.descriptor.digest:
        raise UsageError(
            f"{target.url} has another version {release.version}: versions do not change",
            fix="give this one another: --version 1.2.1",
        )
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        for bundle in release.index.manifests:
            data = source.manifest(bundle.digest)
            manifest = read_manifest(data, f"{release.name}@{release.version}")
            for blob in (manifest.config, *manifest.layers):
                if target.has(blob.digest):
                    progress(blob.size)
                    continue
                copy = Path(folder) / "blob"
                copy.unlink(missing_ok=True)
                source.fetch(blob, copy)
                target.push_blob(blob, copy, progress)
            target.push_manifest(data, bundle.media_type)
    target.push_manifest(source.manifest(release.descriptor.digest), INDEX, [release.version])


def bytes_of(release: Release, source: Remote) -> int:
    """Bytes of all blobs of a release, for a progress bar."""
    total = 0
    for bundle in release.index.manifests:
        manifest = read_manifest(source.manifest(bundle.digest), release.name)
        total += sum(blob.size for blob in (manifest.config, *manifest.layers))
    return total


@contextmanager
def partial(folder: Path, blob: Descriptor) -> Iterator[Path]:
    """Where a download of ``blob`` is put together; it stays when it breaks off, for the next attempt."""
    place = folder / PARTIAL / blob.digest.removeprefix("sha256:")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another process fetches the same: each its own file, the first one to be done wins.
            own = place.with_name(f"{place.name}.{os.getpid()}")
            try:
                yield own
            finally:
                own.unlink(missing_ok=True)
            return
        yield place
        place.unlink(missing_ok=True)
        Path(lock.name).unlink(missing_ok=True)


def _what_there_is(remote: Remote, reference: Reference) -> str:
    tags = remote.tags()
    versions = [tag for tag in tags if is_version(tag)]
    if not versions:
        return "nothing lies there: check the name, or publish it with 'edgeopt artifacts push RUN --to URL'"
    channels = ", ".join(f":{name} ({move.version})" for name, move in standing(remote).items())
    return f"it has {', '.join(f'@{each}' for each in versions[-5:])}" + (
        f" and {channels}" if channels else ""
    )
