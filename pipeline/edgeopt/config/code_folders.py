"""Where user code is looked up: beside the recipe, in its project, in ``src`` folders, on PYTHONPATH."""

import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path

SOURCES = "src"
"""Folder of the packages of a project in the ``src`` layout."""
MARKERS = ("pyproject.toml", "setup.cfg", "setup.py", ".git")
"""Entries of the top folder of a project."""


def code_folders(roots: Iterable[Path]) -> tuple[Path, ...]:
    """The folders that user code is imported from, in order of precedence; only those that exist.

    They are each root and its ``src`` folder, the project that contains the first root and its ``src``
    folder, and the folders of PYTHONPATH that hold code of the user, not installed distributions.
    """
    given = [root.resolve() for root in roots]
    found = [folder for root in given for folder in _with_sources(root)]
    if given and (project := project_of(given[0])) is not None:
        found += _with_sources(project)
    found += [folder for folder in python_path() if not _has_distributions(folder)]
    return tuple(dict.fromkeys(folder for folder in found if folder.is_dir()))


def user_folder(file: Path, depth: int) -> Path | None:
    """The folder that a module of the user is imported from; None for one of an installed distribution.

    That of a package installed in editable mode is its own folder, whose code may change.

    Args:
        file: the source of the module.
        depth: number of parts of the module's name.
    """
    parents = file.resolve().parents
    folder = parents[depth if file.name == "__init__.py" else depth - 1]
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    own = Path(__file__).resolve().parents[2]
    return None if folder in {*installed, own} or _has_distributions(folder) else folder


def python_path() -> list[Path]:
    """The folders of PYTHONPATH, as absolute paths: a process may run in another folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [Path(entry).resolve() for entry in entries if entry]


def _with_sources(folder: Path) -> list[Path]:
    """A folder with code and its ``src`` folder, or such a folder and the one that contains it."""
    return [folder, folder.parent if folder.name == SOURCES else folder / SOURCES]


def project_of(folder: Path) -> Path | None:
    """The nearest folder around ``folder`` that is the top of a project."""
    return next(
        (place for place in (folder, *folder.parents) if any((place / name).exists() for name in MARKERS)),
        None,
    )


def _has_distributions(folder: Path) -> bool:
    """Whether distributions are installed in a folder: their code is known by name and version."""
    return any(folder.glob("*.dist-info"))
