"""Stands in for NumPy and SciPy where they are not installed: to plan and to fetch, nothing is computed.

A plug-in declares its options, formats and packages next to code that computes with arrays. With this module,
the declarations can be read without the arrays: names of an absent package are accepted where code is only
defined, such as in annotations, and refused where it runs.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, NoReturn

from edgeopt.errors import MissingPackageError, install

NUMERICS: Final = ("numpy", "scipy")


class _Name:
    """A name of an absent package, or what an annotation makes of it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "_Name":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self._name}.{name}")

    def __getitem__(self, item: object) -> "_Name":
        return self

    def __or__(self, other: object) -> "_Name":
        return self

    __ror__ = __or__

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise missing(self._name)


class _Package(ModuleType):
    """An absent package or a module of it."""

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    """Finds the absent packages and their modules, after all that are installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in NUMERICS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass  # every name is made on use


def missing(name: str) -> MissingPackageError:
    """The error for a use of a name of an absent package."""
    package = name.partition(".")[0]
    return MissingPackageError(f"this needs {package}, which is not installed", fix=install("numerics"))


def require() -> None:
    """Refuse to go on without the numerics.

    Raises:
        MissingPackageError: they are not installed.
    """
    if not installed():
        raise missing(NUMERICS[0])


def installed() -> bool:
    """Whether the numerics are installed, and not replaced by this module."""
    found = map(importlib.util.find_spec, NUMERICS)
    return all(spec is not None and not isinstance(spec.loader, _Finder) for spec in found)


def stand_in() -> None:
    """Let code that computes with arrays be imported where NumPy and SciPy are not installed."""
    if not installed():
        sys.meta_path.append(_Finder())
