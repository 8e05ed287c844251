"""What a shared store needs of a server: objects by name, of which none is trusted."""

from abc import ABC, abstractmethod
from pathlib import Path


class UnavailableError(Exception):
    """A server cannot be reached, or refuses; the message names it, and never contains a secret."""


class Objects(ABC):
    """Objects by name, such as ``ac/<key>``; every method may raise `UnavailableError`."""

    shown: str
    """The server, for messages."""

    @abstractmethod
    def read(self, name: str, target: Path, limit: int) -> bool:
        """Copy an object of at most ``limit`` bytes to a new file; False if there is none."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether the object exists."""

    @abstractmethod
    def write(self, name: str, source: Path) -> None:
        """Store a file as an object, whole or not at all; an existing one is replaced."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, if it exists."""
