"""Transfers of releases between remotes and the library."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import UsageError, VerificationError
from edgeopt.publish.channels import current, standing
from edgeopt.publish.names import Reference, is_version
from edgeopt.publish.oci import INDEX, MANIFEST, VERSION, Descriptor, Index, read_index, read_manifest
from edgeopt.publish.remote import Progress, Remote, silent
from edgeopt.publish.remotes.layout import Layout

PARTIAL = "partial"
"""Folder of interrupted downloads in a library."""


@dataclass(frozen=True)
class Release:
    """A release in a library or a remote."""

    name: str
    version: str
    descriptor: Descriptor
    index: Index

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def find_release(remote: Remote, reference: Reference) -> Release:
    """Look up the release of a reference in ``remote``.

    Raises:
        UsageError: it does not exist; the error lists the existing ones.
        VerificationError: the release does not match its tag.
    """
    version = reference.version
    if reference.channel:
        move = current(remote, reference.channel)
        if move is None:
            raise UsageError(
                f"{remote.url} has no channel {reference.channel}", fix=_available(remote, reference)
            )
        target, version = move.release, move.version
    else:
        target = reference.digest or version or ""
    found = remote.resolve(target)
    if found is None:
        raise UsageError(f"{remote.url} has no {target}", fix=_available(remote, reference))
    index = read_index(remote.manifest(found.digest), f"{remote.url}@{target}")
    declared = index.annotations.get(VERSION, "")
    if not is_version(declared) or version not in (None, declared):
        raise VerificationError(
            f"{remote.url}: the release under {target} declares version {declared or 'unknown'}: it was "
            "pushed by another tool, or tampered with",
            fix="pull a version by its digest: NAME@sha256:…",
        )
    return Release(reference.name, declared, found, index)


def fetch_bundle(
    release: Release,
    bundle: Descriptor,
    remote: Remote,
    library: Layout,
    folder: Path,
    progress: Progress = silent,
) -> None:
    """Fetch one bundle of a release into a library; an interrupted download in ``folder`` is resumed."""
    data = remote.manifest(bundle.digest)
    manifest = read_manifest(data, f"{release.name}@{release.version}")
    for blob in (manifest.config, *manifest.layers):
        if _intact(library, blob):
            progress(blob.size)
            continue
        with partial(folder, blob) as place:
            remote.fetch(blob, place, progress)
            library.push_blob(blob, place)
    library.push_manifest(data, MANIFEST)
    library.push_manifest(remote.manifest(release.descriptor.digest), INDEX, [release.version])


def _intact(library: Layout, blob: Descriptor) -> bool:
    """Whether the library has an intact copy of a blob; a damaged one is deleted, to be fetched again."""
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
    """Copy a whole release with its version to another remote; existing blobs are not sent again.

    Raises:
        UsageError: the remote has another release under this version.
    """
    existing = target.resolve(release.version)
    if existing is not None and existing.digest != release.descriptor.digest:
        raise UsageError(
            f"{target.url} already has another release {release.version}: versions are immutable",
            fix="choose another version: --version 1.2.1",
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
    """Total size of a release's blobs, for a progress bar."""
    total = 0
    for bundle in release.index.manifests:
        manifest = read_manifest(source.manifest(bundle.digest), release.name)
        total += sum(blob.size for blob in (manifest.config, *manifest.layers))
    return total


@contextmanager
def partial(folder: Path, blob: Descriptor) -> Iterator[Path]:
    """The file for a download of ``blob``; it is kept after a failure, for the next attempt."""
    file = folder / PARTIAL / blob.digest.removeprefix("sha256:")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another process fetches the same blob: use a separate file. The first to finish wins.
            separate = file.with_name(f"{file.name}.{os.getpid()}")
            try:
                yield separate
            finally:
                separate.unlink(missing_ok=True)
            return
        yield file
        file.unlink(missing_ok=True)
        Path(lock.name).unlink(missing_ok=True)


def _available(remote: Remote, reference: Reference) -> str:
    """The existing versions and channels, as a fix."""
    tags = remote.tags()
    versions = [tag for tag in tags if is_version(tag)]
    if not versions:
        return "it has no releases: check the name, or publish with 'edgeopt artifacts push RUN --to URL'"
    channels = ", ".join(f":{name} ({move.version})" for name, move in standing(remote).items())
    return f"it has {', '.join(f'@{each}' for each in versions[-5:])}" + (
        f" and {channels}" if channels else ""
    )
