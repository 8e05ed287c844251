"""Everything that can go wrong, as seen by the person at the terminal.

EdgeoptError            one line for the screen, with a fix
├── UsageError          exit 2: the command line, a file or a setting is wrong
│   └── RecipeError     exit 2: every mistake of a recipe, each with its line and column
├── VerificationError   exit 1: what was fetched or stored is not what it should be, or is not signed
└── CannotRunError      exit 3: something that should have worked did not
    ├── MissingPackageError  a plugin's packages are not installed
    ├── StageError      a stage failed, crashed, hung or ran out of memory
    ├── StoreError      the store cannot be read or written
    ├── RemoteError     a registry, bucket or server cannot be reached, or refuses
    └── DeviceError     a device cannot be reached or refused the job
"""

from collections.abc import Sequence
from typing import NamedTuple


class EdgeoptError(Exception):
    """A failure that is explained to the user instead of shown as a traceback."""

    exit_code = 3

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling between processes.
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[EdgeoptError], message: str, fix: str) -> EdgeoptError:
    return kind(message, fix=fix)


class UsageError(EdgeoptError):
    """The command line, a file or a setting is wrong."""

    exit_code = 2


class Problem(NamedTuple):
    """One mistake in a recipe; ``line`` and ``column`` count from 1, 0 means unknown."""

    message: str
    line: int = 0
    column: int = 0
    path: str = ""


class RecipeError(UsageError):
    """Every mistake found in a recipe, reported together."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        lines = [
            f"{file}:{p.line}:{p.column}: {p.path + ': ' if p.path else ''}{p.message}"
            if p.line
            else f"{file}: {p.path + ': ' if p.path else ''}{p.message}"
            for p in self.problems
        ]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (RecipeError, (self.file, self.problems))


class VerificationError(EdgeoptError):
    """What was fetched or stored is not what it should be: digest, signature, or a gate that did not hold."""

    exit_code = 1


class CannotRunError(EdgeoptError):
    """Something that should have worked did not."""


class MissingPackageError(CannotRunError):
    """A plugin needs packages that are not installed."""


class StageError(CannotRunError):
    """A stage failed, crashed, hung or ran out of memory."""


class StoreError(CannotRunError):
    """The store cannot be read or written."""


class DeviceError(CannotRunError):
    """A device cannot be reached, or refused the job."""


class RemoteError(CannotRunError):
    """A registry, bucket or server cannot be reached, or refuses."""
