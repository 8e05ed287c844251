"""Portable recipes: without the absolute paths of the machine on which they ran."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

import yaml

from edgeopt.config.yaml_source import read_yaml

_NOT_PATHS: Final = (("model", "labels"), ("gates",))
"""Sections of a recipe whose texts are never paths."""


def portable(document: str) -> str:
    """Shorten the absolute paths of a recipe to their last component.

    Paths that would become equal keep the components that distinguish them.
    """
    data, _ = read_yaml(document, "the recipe of the run")
    absolute = {text for text in _texts(data, ()) if _is_absolute(text)}
    short = {path: _tail(path, absolute) for path in absolute}
    if not short:
        return document
    return str(yaml.safe_dump(_replaced(data, (), short), sort_keys=False, allow_unicode=True))


def _texts(value: object, path: tuple[object, ...]) -> Iterator[str]:
    """All texts of a recipe that may be paths."""
    if path in _NOT_PATHS:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, (*path, key))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, path)


def _replaced(value: Any, path: tuple[object, ...], short: Mapping[str, str]) -> Any:
    if path in _NOT_PATHS:
        return value
    if isinstance(value, dict):
        return {key: _replaced(part, (*path, key), short) for key, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, path, short) for part in value]
    return short.get(value, value) if isinstance(value, str) else value


def _is_absolute(text: str) -> bool:
    if "\n" in text:
        return False
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    return (posix.is_absolute() or windows.is_absolute() or text.startswith("~/")) and bool(windows.name)


def _tail(path: str, others: set[str]) -> str:
    """The shortest end of a path that distinguishes it from the others."""
    parts = [part.replace("\\", "/").rstrip("/").split("/") for part in (path, *others - {path})]
    mine = parts[0]
    for count in range(1, len(mine)):
        if all(other[-count:] != mine[-count:] for other in parts[1:]):
            return "/".join(mine[-count:])
    return "/".join(mine[1:])
