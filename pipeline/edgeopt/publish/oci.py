"""Manifests, indexes and descriptors of the OCI image specification 1.1: the subset used here.

A *release* is an image index; it names one image manifest per *bundle* (one artifact for one device). A
bundle has one layer per model file, and one with a zip of all other files.
"""

import hashlib
import re
from typing import Annotated, Final, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import VerificationError

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
RELEASE: Final = "application/vnd.edgeopt.release.v1"
"""Artifact type of a release's index."""
BUNDLE: Final = "application/vnd.edgeopt.bundle.v1"
"""Artifact type of a bundle's manifest."""
MOVE: Final = "application/vnd.edgeopt.move.v1"
"""Artifact type of one move of a channel."""
CONFIG: Final = "application/vnd.edgeopt.config.v1+json"
"""Media type of the JSON behind ``config`` of all three."""
MODEL: Final = "application/vnd.edgeopt.model.v1"
KIT: Final = "application/vnd.edgeopt.kit.v1+zip"
TITLE: Final = "org.opencontainers.image.title"
"""Annotation from which other clients (oras) take a layer's file name."""

# Annotations that describe releases, bundles and moves.
PREFIX: Final = "dev.edgeopt."
NAME: Final = f"{PREFIX}name"
VERSION: Final = f"{PREFIX}version"
RECIPE: Final = f"{PREFIX}recipe"
RUN: Final = f"{PREFIX}run"
"""Of a release: sha256 of the report.json of its run."""
GATES: Final = f"{PREFIX}gates"
"""Of a release: ``pass``, ``fail``, or ``none`` if the recipe has no gates."""
FAILED: Final = f"{PREFIX}gates.failed"
"""Of a release: the gates that did not pass, as text."""
SIGNED: Final = f"{PREFIX}signed"
"""Of a release: present if its bundles are signed. Informative, not a proof."""
FACTS: Final = f"{PREFIX}facts"
"""Of a bundle's descriptor: the properties that selection uses, as JSON."""
CREATED: Final = "org.opencontainers.image.created"

LARGEST_MANIFEST: Final = 4 << 20
"""Bytes: the minimum that the distribution specification asks registries to accept."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _checked(value: str) -> str:
    if not DIGEST.fullmatch(value):
        raise ValueError("expected sha256: and 64 hexadecimal digits")
    return value


Digest: TypeAlias = Annotated[str, AfterValidator(_checked)]


class _Document(BaseModel):
    # Other tools may add fields that the specification allows: ignore unknown ones.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def encode(self) -> bytes:
        """The stored bytes: equal values give equal bytes, and so equal digests."""
        return (
            self.model_dump_json(by_alias=True, exclude_defaults=False, exclude_none=True) + "\n"
        ).encode()


Kind = TypeVar("Kind", bound=_Document)


class Descriptor(_Document):
    """A reference to content by its digest."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0)
    artifact_type: str | None = Field(None, alias="artifactType")
    annotations: dict[str, str] = {}


class Manifest(_Document):
    """An image manifest."""

    schema_version: int = Field(2, alias="schemaVersion")
    media_type: str = Field(MANIFEST, alias="mediaType")
    artifact_type: str | None = Field(None, alias="artifactType")
    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    annotations: dict[str, str] = {}


class Index(_Document):
    """An image index."""

    schema_version: int = Field(2, alias="schemaVersion")
    media_type: str = Field(INDEX, alias="mediaType")
    artifact_type: str | None = Field(None, alias="artifactType")
    manifests: tuple[Descriptor, ...] = ()
    annotations: dict[str, str] = {}


def digest_of_bytes(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, media_type: str, **more: object) -> Descriptor:
    """The descriptor of some bytes; ``more``: ``artifact_type``, ``annotations``."""
    return Descriptor.model_validate(
        {"media_type": media_type, "digest": digest_of_bytes(data), "size": len(data), **more}
    )


def read_manifest(data: bytes, where: str) -> Manifest:
    """Parse a manifest.

    Raises:
        VerificationError: the data are invalid or truncated.
    """
    return _read(Manifest, data, where)


def read_index(data: bytes, where: str) -> Index:
    """Parse an index.

    Raises:
        VerificationError: the data are invalid or truncated.
    """
    return _read(Index, data, where)


def _read(kind: type[Kind], data: bytes, where: str) -> Kind:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        raise VerificationError(
            f"{where} is not a valid release {kind.__name__.lower()}: {location}: {first['msg']}",
            fix="list the location's releases with 'edgeopt artifacts list'",
        ) from error
