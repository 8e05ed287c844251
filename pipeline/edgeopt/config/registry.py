"""Look-up of plugins by name. The file name is the plugin name: ``stages/to_onnx.py`` defines ``ToOnnx``.

Look-up order: ``package.module:Class`` (user code, no packaging needed), the entry point group
``edgeopt.<kind>``, the shipped modules. There is no table to maintain.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import ValidationError

from edgeopt.config.files import file_digest
from edgeopt.config.nearest import nearest
from edgeopt.config.references import Code
from edgeopt.config.text import reason_of
from edgeopt.errors import UsageError, shortened

Kind = Literal["stages", "formats", "datasets", "metrics", "tasks", "decoders", "connections", "runtimes"]

PACKAGES: dict[Kind, str] = {
    "stages": "edgeopt.stages",
    "formats": "edgeopt.formats.*",
    "datasets": "edgeopt.evaluation.datasets",
    "metrics": "edgeopt.evaluation.metrics",
    "tasks": "edgeopt.evaluation.tasks",
    "decoders": "edgeopt.evaluation.decoders",
    "connections": "edgeopt.devices.connections",
    "runtimes": "edgeopt.devices.agent.runtimes",
}
"""Packages of the shipped plugins. A module whose name begins with ``_`` is shared code, not a plugin.

The star stands for every subpackage with a module of its own name: ``formats/onnx`` has ``onnx.py``, so its
modules are formats; ``formats/wire`` has no ``wire.py``, so its modules are not.
"""


class Base(Protocol):
    """The base class of a plugin kind."""

    plugin_kind: ClassVar[Kind]


P = TypeVar("P", bound=Base)


def class_name(name: str) -> str:
    """``to_onnx`` -> ``ToOnnx``."""
    return "".join(part.capitalize() for part in name.split("_"))


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """Names of all plugins of a kind, shipped and from entry points."""
    return tuple(sorted({*shipped(kind), *(name for of, name in entry_points() if of == kind)}))


def shipped(kind: Kind) -> tuple[str, ...]:
    """Names of the shipped plugins of a kind."""
    return tuple(sorted(_modules(kind)))


def find(base: type[P], name: str, roots: tuple[Path, ...] = ()) -> type[P]:
    """The plugin class called ``name`` of the kind of ``base``.

    Raises:
        UsageError: there is no plugin of that name, or it is of another kind.
    """
    kind = base.plugin_kind
    plugin = _load(kind, name, roots)
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise UsageError(
            f"{name!r} is not a {kind[:-1]}: it must be a subclass of edgeopt.plugin.{base.__name__}"
        )
    return plugin


def plugins(base: type[P]) -> dict[str, type[P]]:
    """All plugins of a kind that can be found by name."""
    return {name: find(base, name) for name in names(base.plugin_kind)}


def plugin_name(plugin: object) -> str:
    """The name of a plugin in recipes."""
    kind = type(plugin)
    name = kind.__module__.rpartition(".")[2]
    if _modules(kind.plugin_kind).get(name) == kind.__module__:  # type: ignore[attr-defined]
        return name
    place = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for (_, name), point in entry_points().items() if point.value == place), place)


def code_digest(plugin: object) -> str:
    """sha256 of the file of a user's plugin; '' for shipped plugins, which have a ``revision``."""
    module = sys.modules.get(type(plugin).__module__)
    if module is None or module.__name__.startswith("edgeopt.") or not module.__file__:
        return ""
    return file_digest(Path(module.__file__))


@cache
def _modules(kind: Kind) -> dict[str, str]:
    """The shipped modules of a kind by plugin name."""
    return {name.rpartition(".")[2]: name for name in _walk(PACKAGES[kind])}


def _walk(pattern: str) -> Iterator[str]:
    package = pattern.removesuffix(".*")
    spec = importlib.util.find_spec(package)
    modules = list(pkgutil.iter_modules(spec.submodule_search_locations if spec else None))
    if package != pattern:
        subpackages = [f"{package}.{module.name}" for module in modules if module.ispkg]
        contents = {subpackage: list(_walk(subpackage)) for subpackage in subpackages}
        yield from (
            name
            for subpackage, inside in contents.items()
            if f"{subpackage}.{subpackage.rpartition('.')[2]}" in inside
            for name in inside
        )
        return
    for module in modules:
        if not module.ispkg and not module.name.startswith("_"):
            yield f"{package}.{module.name}"


@cache
def _load(kind: Kind, name: str, roots: tuple[Path, ...]) -> Any:
    if ":" in name:
        try:
            code = Code.model_validate(name, context={"roots": roots})
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["ctx"]["error"]
            raise UsageError(f"no {kind[:-1]} {shortened(name, 60)!r}: {reason}") from error
        return code.load()
    if (point := entry_points().get((kind, name))) is not None:
        try:
            return point.load()
        except (Exception, SystemExit, GeneratorExit) as error:
            raise UsageError(
                f"{kind[:-1]} {name!r} of {point.value} cannot be loaded: {reason_of(error)}",
                fix="repair or uninstall its distribution",
            ) from error
    module = _modules(kind).get(name)
    if module is None:
        raise UsageError(f"no {kind[:-1]} {name!r}{nearest(name, names(kind))}")
    return getattr(importlib.import_module(module), class_name(name))


@cache
def entry_points() -> dict[tuple[Kind, str], importlib.metadata.EntryPoint]:
    """The plugins of other distributions; cached, because the look-up reads a file of each distribution."""
    installed = importlib.metadata.entry_points()
    return {
        (kind, point.name): point for kind in PACKAGES for point in installed.select(group=f"edgeopt.{kind}")
    }
