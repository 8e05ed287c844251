"""Lists of the versions of a name, with the channels that point at them."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from edgeopt.errors import UsageError
from edgeopt.publish.channels import standing
from edgeopt.publish.names import is_version
from edgeopt.publish.oci import CREATED, FAILED, GATES, SIGNED, read_index
from edgeopt.publish.places import names_in
from edgeopt.publish.remote import Remote


class Version(BaseModel):
    """One version, as recorded in its index."""

    model_config = ConfigDict(frozen=True)

    version: str
    digest: str
    created: str
    bundles: int
    gates: str
    failed: str
    signed: bool
    channels: tuple[str, ...]

    def __str__(self) -> str:
        marks = " ".join(f":{channel}" for channel in self.channels)
        signed = "signed" if self.signed else "not signed"
        line = f"{self.version:<24} {self.created[:16]:<17} {self.bundles:>3} bundles  gates {self.gates:<5} "
        return f"{line}{signed:<11} {marks}".rstrip()


def versions(remote: Remote) -> list[Version]:
    """All versions, the newest first.

    Raises:
        UsageError: there are none.
    """
    channels = {channel: move.version for channel, move in standing(remote).items()}
    listed = []
    for tag in filter(is_version, remote.tags()):
        descriptor = remote.resolve(tag)
        if descriptor is None:
            continue  # another process has just deleted it
        index = read_index(remote.manifest(descriptor.digest), f"{remote.url}@{tag}")
        annotations = index.annotations
        listed.append(
            Version(
                version=tag,
                digest=descriptor.digest,
                created=annotations.get(CREATED, ""),
                bundles=len(index.manifests),
                gates=annotations.get(GATES, "unknown"),
                failed=annotations.get(FAILED, ""),
                signed=SIGNED in annotations,
                channels=tuple(channel for channel, version in channels.items() if version == tag),
            )
        )
    if not listed:
        raise UsageError(f"{remote.url} has no versions", fix=_names_below(remote.url) or "check the name")
    return sorted(listed, key=lambda each: (each.created, each.version), reverse=True)


def _names_below(url: str) -> str:
    """The names in a folder of releases, as a fix; empty for anything else."""
    parts = urlsplit(url)
    names = names_in(Path(unquote(parts.path))) if parts.scheme == "file" else []
    return f"give one of its names: {', '.join(f'{url}/{name}' for name in names[:8])}" if names else ""
