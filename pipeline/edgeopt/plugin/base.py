"""What all kinds of plugins share: options, packages that must be installed, and a name for every value."""

import hashlib
import importlib.metadata
import json
from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from edgeopt.config.registry import Kind


class Plugin(BaseModel):
    """Common to all kinds: typed options, and what must be installed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    revision: ClassVar[int] = 1
    plugin_kind: ClassVar[Kind]

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Installed versions of ``requires``; a missing distribution is left out. Imports nothing."""
        return {name: found for name in cls.requires if (found := _installed_version(name))}

    @classmethod
    def missing(cls) -> list[str]:
        """Distributions of ``requires`` that are not installed."""
        present = cls.versions()
        return [name for name in cls.requires if name not in present]

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values: what a cache key and a report record."""
        return self.model_dump(mode="json")


@cache
def _installed_version(distribution: str) -> str | None:
    # Each look reads and parses a file, and a plan asks for every stage of every branch.
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def canonical(value: object) -> str:
    """JSON with sorted keys and no blanks: the same value gives the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest_of(value: object) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
