"""Finds plugins by name. The file name is the name: ``stages/to_onnx.py`` holds ``ToOnnx``.

Look-up order: ``package.module:Class`` (a user's own, no packaging needed), the entry point group
``edgeopt.<kind>``, the shipped module. There is no table to keep up to date.
"""

import difflib
import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from edgeopt.errors import UsageError
from edgeopt.model import file_digest
from edgeopt.plugin import Code, Connection, Dataset, Metric, Plugin, Stage

Kind = Literal["stages", "datasets", "metrics", "connections"]

BASES: dict[Kind, type[Plugin]] = {
    "stages": Stage,
    "datasets": Dataset,
    "metrics": Metric,
    "connections": Connection,
}

P = TypeVar("P", bound=Plugin)


def class_name(name: str) -> str:
    """``to_onnx`` -> ``ToOnnx``."""
    return "".join(part.capitalize() for part in name.split("_"))


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` or the list of what is known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


HOMES: dict[Kind, str] = {
    "stages": "edgeopt.stages",
    "datasets": "edgeopt.evaluation.datasets",
    "metrics": "edgeopt.evaluation.metrics",
    "connections": "edgeopt.devices.connections",
}


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """Names of all plugins of a kind, shipped and from entry points."""
    package = importlib.import_module(HOMES[kind])
    shipped = {module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"}
    return tuple(sorted(shipped | {name for of, name in _entry_points() if of == kind}))


@cache
def find(kind: Kind, name: str, roots: tuple[Path, ...] = ()) -> type[Plugin]:
    """The plugin class called ``name``.

    Raises:
        UsageError: there is none of that name, or it is not of this kind.
    """
    base = BASES[kind]
    if ":" in name:
        try:
            found = Code.model_validate(name, context={"roots": roots}).load()
        except ValueError as error:
            raise UsageError(f"no {kind[:-1]} {name!r}: {error}") from error
    else:
        found = _installed(kind, name) or _shipped(kind, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(
            f"{name!r} is not a {kind[:-1]}: it must be a subclass of edgeopt.plugin.{base.__name__}"
        )
    return found


def _installed(kind: Kind, name: str) -> Any:
    point = _entry_points().get((kind, name))
    return point and point.load()


@cache
def _entry_points() -> dict[tuple[Kind, str], importlib.metadata.EntryPoint]:
    """The plugins that other distributions bring. One look opens a file of each of them, so there is one."""
    every = importlib.metadata.entry_points()
    return {(kind, point.name): point for kind in BASES for point in every.select(group=f"edgeopt.{kind}")}


def _shipped(kind: Kind, name: str) -> Any:
    if name not in names(kind):
        raise UsageError(f"no {kind[:-1]} {name!r}{nearest(name, names(kind))}")
    return getattr(importlib.import_module(f"{HOMES[kind]}.{name}"), class_name(name))


def stages() -> dict[str, type[Stage]]:
    """All stages that can be found by name: what the planner searches."""
    return {name: cast(type[Stage], find("stages", name)) for name in names("stages")}


def code_digest(plugin: Plugin) -> str:
    """sha256 of the file that a user's own plugin lies in; '' for shipped ones, which have a revision."""
    module = sys.modules.get(type(plugin).__module__)
    if module is None or module.__name__.startswith("edgeopt.") or not module.__file__:
        return ""
    return file_digest(Path(module.__file__))


def plugin_name(plugin: Plugin) -> str:
    """The name under which a recipe finds this plugin."""
    kind = type(plugin)
    module = kind.__module__
    if module.startswith("edgeopt."):
        return module.rpartition(".")[2]
    return f"{module}:{kind.__qualname__}"
