"""The exception hierarchy: failures that are reported to the user with their cause and a fix.

EdgeoptError            base class: a message and a fix
├── UsageError          exit 2: the command line, a file or a setting is wrong
│   └── RecipeError     exit 2: all mistakes of a recipe, with line and column
├── VerificationError   exit 1: a digest, signature or gate check failed
└── CannotRunError      exit 3: a valid command could not be completed
    ├── MissingPackageError  a plugin's packages are not installed
    ├── DataError       the code of a dataset failed, exited or crashed
    ├── StageError      a stage failed, crashed, hung or ran out of memory
    ├── StoreError      the store cannot be read or written
    ├── RemoteError     a registry, bucket or server is unreachable or rejects the request
    └── DeviceError     a device is unreachable or rejected the job
        └── DeviceLostError  a device is unreachable: not because of the job
"""

import importlib.metadata
import json
from collections.abc import Sequence
from typing import NamedTuple

MAX_LINE = 1000
"""Longest line of a message: parsers of other packages quote whole headers."""
MAX_PROBLEMS = 20
"""Most mistakes of one file that are listed."""


def shortened(text: str, length: int) -> str:
    """The text in at most ``length`` characters: the start, and the number of characters in all."""
    if len(text) <= length:
        return text
    ending = f"... ({len(text):,} characters)" if length > 100 else "..."
    return text[: length - len(ending)] + ending


def first_line(text: str) -> str:
    """The first line of a message, with the next one if it ends in a colon and so says nothing by itself."""
    first, *others = map(str.strip, text.splitlines() or [""])
    return f"{first} {others[0]}" if first.endswith(":") and others else first


def printable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot encode: bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class EdgeoptError(Exception):
    """A failure reported to the user as a message and a fix instead of a traceback."""

    exit_code = 3

    def __init__(self, message: str, *, fix: str = "") -> None:
        message = printable("\n".join(shortened(line, MAX_LINE) for line in message.split("\n")))
        super().__init__(message)
        self.message = message
        self.fix = printable(fix)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The default pickling between processes drops keyword-only arguments.
        return (_rebuild, (type(self), self.message, self.fix))


def install(extra: str) -> str:
    """How to install an extra: from where edgeopt itself was installed, as anyone may own its name elsewhere.

    Source: PEP 610, which records the origin of an installation that is not from an index.
    """
    try:
        record = importlib.metadata.distribution("edgeopt").read_text("direct_url.json")
        origin = json.loads(record) if record else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {"dir_info": {}}
    if "dir_info" in origin:
        return f"in a checkout of edgeopt: pip install '.[{extra}]'"
    if "url" not in origin:
        return f"pip install 'edgeopt[{extra}]'"
    version = origin.get("vcs_info", {})
    url = f"{version['vcs']}+{origin['url']}@{version['commit_id']}" if version else origin["url"]
    return f"pip install 'edgeopt[{extra}] @ {url}'"


def _rebuild(error_type: type[EdgeoptError], message: str, fix: str) -> EdgeoptError:
    return error_type(message, fix=fix)


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
            for p in self.problems[:MAX_PROBLEMS]
        ]
        if len(self.problems) > MAX_PROBLEMS:
            lines.append(f"{file}: and {len(self.problems) - MAX_PROBLEMS} further mistakes")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (RecipeError, (self.file, self.problems))


class VerificationError(EdgeoptError):
    """A check of fetched or stored data failed: a digest, a signature or a gate."""

    exit_code = 1


class CannotRunError(EdgeoptError):
    """A valid command could not be completed."""


class MissingPackageError(CannotRunError):
    """A plugin needs packages that are not installed."""


class StageError(CannotRunError):
    """A stage failed, crashed, hung or ran out of memory."""


class DataError(CannotRunError):
    """The user code of a dataset failed, exited or crashed."""


class StoreError(CannotRunError):
    """The store cannot be read or written."""


class DeviceError(CannotRunError):
    """A device is unreachable or rejected the job."""


class DeviceLostError(DeviceError):
    """A device is unreachable, or was lost during a job, for reasons that are none of the job's."""


class RemoteError(CannotRunError):
    """A registry, bucket or server is unreachable or rejects the request."""
