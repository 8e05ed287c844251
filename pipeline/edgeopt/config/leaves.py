"""The values of a document by the keys that lead to them, to tell two documents apart in words."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from edgeopt.errors import shortened

ABSENT = "–"
"""The value of a key that only the other document has."""
LONGEST = 60
"""Characters of a value that are told."""


def leaves(document: object, at: str = "") -> dict[str, str]:
    """Every value as text, by its key, such as ``model.preprocess.scale``; a list is one value.

    Of an absolute path only the last part is told: the same file is elsewhere on another machine.
    """
    if isinstance(document, dict) and document:
        parts = (leaves(value, f"{at}.{key}" if at else str(key)) for key, value in document.items())
        return {key: value for part in parts for key, value in part.items()}
    value = _portable(document)
    return {at: value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)}


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_portable(part) for part in value]
    if not isinstance(value, str):
        return value
    posix, windows = PurePosixPath(value), PureWindowsPath(value)
    return windows.name if posix.is_absolute() or windows.is_absolute() else value


def told_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """``key old -> new`` for every value that differs."""
    keys = dict.fromkeys([*before, *after])
    sides = ((key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys)
    return [f"{key} {_cut(old)} -> {_cut(new)}" for key, old, new in sides if old != new]


def _cut(value: str) -> str:
    return shortened(value, LONGEST)
