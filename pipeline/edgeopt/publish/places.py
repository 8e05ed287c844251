"""Locations of releases: the library on this machine, and the remotes of names."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.publish.names import Reference
from edgeopt.publish.project import FILE, Artifacts
from edgeopt.publish.remote import Remote
from edgeopt.publish.remotes import library, open_remote
from edgeopt.publish.remotes.layout import Layout


class Places(NamedTuple):
    """The library's folder and the settings of the project file."""

    root: Path
    settings: Artifacts

    def library(self, name: str) -> Layout:
        """The releases of ``name`` on this machine."""
        return library(self.root / name)

    def held(self, name: str) -> AbstractContextManager[None]:
        """Protect the releases of ``name`` in the library from garbage collection."""
        return self.library(name).locked(exclusive=False) if name in self.names() else nullcontext()

    def names(self) -> list[str]:
        """The names with releases in the library."""
        return names_in(self.root)

    def remote(self, reference: Reference) -> Remote | None:
        """The remote of a reference; None if neither the reference nor the project sets one."""
        url = self.url(reference)
        return None if url is None else open_remote(url)

    def url(self, reference: Reference) -> str | None:
        """The URL of a reference's repository: its own, or the project's remote plus the name."""
        if reference.remote is not None:
            return reference.remote
        base = self.settings.remote
        return None if base is None else f"{base.rstrip('/')}/{reference.name}"

    def source(self, reference: Reference, *, offline: bool = False) -> Remote:
        """The source of a release: its remote, or the library if it has none.

        Raises:
            UsageError: neither has the name.
        """
        remote = None if offline else self.remote(reference)
        if remote is not None:
            return remote
        if reference.name not in self.names():
            known = ", ".join(self.names()) or "none yet"
            raise UsageError(
                f"no releases of {reference.name!r} on this machine (known names: {known})",
                fix=f"give the URL, oci://HOST/{reference.name}, or set artifacts.remote in {FILE}",
            )
        return self.library(reference.name)


def names_in(root: Path) -> list[str]:
    """The names with releases in a folder."""
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if (folder / "oci-layout").is_file())
