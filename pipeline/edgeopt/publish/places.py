"""Where releases are looked for: the library on this machine, and the remote behind a name."""

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
    """The library's folder, and what the project file says."""

    root: Path
    settings: Artifacts

    def library(self, name: str) -> Layout:
        """The releases of ``name`` on this machine."""
        return library(self.root / name)

    def held(self, name: str) -> AbstractContextManager[None]:
        """Keep what the library holds of ``name`` from being collected meanwhile."""
        return self.library(name).locked(exclusive=False) if name in self.names() else nullcontext()

    def names(self) -> list[str]:
        """Names that the library holds releases of."""
        if not self.root.is_dir():
            return []
        return sorted(folder.name for folder in self.root.iterdir() if (folder / "oci-layout").is_file())

    def remote(self, reference: Reference) -> Remote | None:
        """Where a reference points to outside this machine; None if nothing says where."""
        url = self.url(reference)
        return None if url is None else open_remote(url)

    def url(self, reference: Reference) -> str | None:
        """The URL of a reference's repository: its own, or the name below the project's remote."""
        if reference.remote is not None:
            return reference.remote
        base = self.settings.remote
        return None if base is None else f"{base.rstrip('/')}/{reference.name}"

    def source(self, reference: Reference, *, offline: bool = False) -> Remote:
        """Where to read a release from: its remote, or the library where there is none.

        Raises:
            UsageError: neither has the name.
        """
        remote = None if offline else self.remote(reference)
        if remote is not None:
            return remote
        if reference.name not in self.names():
            known = ", ".join(self.names()) or "nothing yet"
            raise UsageError(
                f"no releases of {reference.name!r} on this machine (there is {known})",
                fix=f"give the URL, oci://HOST/{reference.name}, or set artifacts.remote in {FILE}",
            )
        return self.library(reference.name)
