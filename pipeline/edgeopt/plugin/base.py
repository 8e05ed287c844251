"""The base of all kinds of plugins: options, required packages, and digests of values."""

import hashlib
import importlib.metadata
import json
from functools import cache
from typing import Any, ClassVar

from edgeopt.config.registry import Kind
from edgeopt.config.settings import Settings
from edgeopt.errors import MissingPackageError, install


class Plugin(Settings):
    """Base class of all kinds: typed options and required packages."""

    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    revision: ClassVar[int] = 1
    plugin_kind: ClassVar[Kind]

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Installed versions of ``requires``, without missing distributions. Imports nothing."""
        return {name: version for name in cls.requires if (version := _installed_version(name))}

    @classmethod
    def missing(cls) -> list[str]:
        """Distributions of ``requires`` that are not installed."""
        installed = cls.versions()
        return [name for name in cls.requires if name not in installed]

    @classmethod
    def require(cls) -> None:
        """Refuse to go on without the packages of ``requires``.

        Raises:
            MissingPackageError: one is not installed; the error has the command that installs it.
        """
        if missing := cls.missing():
            fix = install(cls.extra) if cls.extra else f"pip install {' '.join(missing)}"
            name = cls.__module__.rpartition(".")[2]
            raise MissingPackageError(f"{name} needs {', '.join(missing)}, which is not installed", fix=fix)

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values, for cache keys and reports."""
        return self.model_dump(mode="json")


@cache
def _installed_version(distribution: str) -> str | None:
    # Cached: each look-up parses a file, and a plan queries every stage of every branch.
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def canonical(value: object) -> str:
    """Canonical JSON: sorted keys, no whitespace."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
