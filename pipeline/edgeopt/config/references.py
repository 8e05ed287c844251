"""References of options to files and to user code; both are looked up beside the recipe first.

The search folders are passed as validation context: ``context={"roots": (folder, ...)}``. For code,
`edgeopt.config.code_folders` adds those of the project.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator

from edgeopt.config.code_folders import SOURCES, code_folders, user_folder
from edgeopt.config.files import file_digest
from edgeopt.config.nearest import nearest
from edgeopt.config.text import reason_of
from edgeopt.errors import UsageError, shortened

NO_FILE = "no such file"
"""Beginning of the message for a path that does not exist."""


def _existing(value: object, info: ValidationInfo) -> object:
    """Resolve a relative path beside the recipe, then under the data root."""
    if not isinstance(value, str | Path):
        return value
    path = Path(os.path.expanduser(value))  # unlike Path.expanduser, keeps the ~ of an unknown user
    roots: Sequence[Path] = (info.context or {}).get("roots", ())
    candidates = [path] if path.is_absolute() else [root / path for root in roots] or [path]
    for candidate in candidates:
        try:
            if candidate.exists():
                return candidate.resolve()
        except OSError as error:
            raise ValueError(f"{shortened(str(value), 60)!r}: {error.strerror}") from error
    searched = " or ".join(str(c) for c in candidates)
    if len(roots) == 1 and not path.is_absolute():
        searched += " (no other folder is searched: neither --data-root nor EDGEOPT_DATA is set)"
    raise ValueError(f"{NO_FILE}: {searched}")


UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OSError)
"""Exceptions of ``ast.parse``; the last but one are for expressions that are nested too deeply."""

ExistingPath: TypeAlias = Annotated[Path, BeforeValidator(_existing)]


DYNAMIC = frozenset({"*", "__getattr__", "globals", "vars", "exec"})
"""What can define names that the source of a module does not show."""
MAX_NAME = 200
"""Longest name of a module: file systems allow 255 bytes, with the suffix."""


class Code(BaseModel):
    """A function or class of the user, written ``package.module:name`` or ``file.py:name`` in a recipe.

    The module is looked up beside the recipe first, then in its project and on the Python path, and imported
    only on use. A file that belongs to a package is imported as a part of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    folder: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            module, colon, name = value.partition(":")
            if module.endswith(".py"):
                file = Path(str(_existing(module, info)))
                folder, module = _import_of(file)
                value, roots = f"{module}:{name}", (folder,)
            else:
                roots = (info.context or {}).get("roots", ())
            parts = module.split(".")
            if not colon or not all(part.isidentifier() for part in (*parts, *name.split("."))):
                raise ValueError(f"{shortened(value, 60)!r} is not of the form 'module:name'")
            if max(len(part.encode()) for part in parts) > MAX_NAME:
                raise ValueError(f"the name of the module {shortened(module, 60)!r} is too long")
            folders = code_folders(roots)
            for folder in folders:
                for file in _sources(folder.joinpath(*parts)):
                    _check_defined(file, name.partition(".")[0])
                    return {"target": value, "folder": folder}
            spec = importlib.util.find_spec(parts[0])
            if spec is None:
                raise ValueError(_not_found(module, folders))
            # Of a package, only the source is read: importing its parent would run code.
            inside = [Path(folder, *parts[1:]) for folder in spec.submodule_search_locations or ()]
            sources = (
                [file for place in inside for file in _sources(place)] if inside else [spec.origin or ""]
            )
            if sources and str(sources[0]).endswith(".py"):
                _check_defined(Path(sources[0]), name.partition(".")[0])
                return {"target": value, "folder": user_folder(Path(sources[0]), len(parts))}
            return {"target": value}
        return value

    def load(self) -> Any:
        """Import the module and return the object.

        Raises:
            UsageError: the module cannot be imported, or has no such attribute.
        """
        module, _, name = self.target.partition(":")
        if self.folder is not None:
            first, *others = map(str, import_path(self.folder))
            sys.path[:0] = [first] * (first not in sys.path)
            sys.path += [folder for folder in others if folder not in sys.path]
        try:
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
        except ModuleNotFoundError as error:
            searched = ", ".join(map(str, import_path(self.folder))) if self.folder else "the Python path"
            raise UsageError(
                f"cannot load {self.target!r}: {error}: neither in {searched}, nor among the installed "
                "packages",
                fix=f"install it, or add the folder that contains it to PYTHONPATH ({SOURCES} folders of the "
                "project are searched too)",
            ) from error
        except (ImportError, AttributeError) as error:
            raise UsageError(f"cannot load {self.target!r}: {error}") from error
        except (Exception, SystemExit, GeneratorExit) as error:  # the module is user code
            raise UsageError(
                f"cannot load {self.target!r}: its module fails when it is imported: {reason_of(error)}",
                fix="keep what a script does below: if __name__ == '__main__':",
            ) from error
        return target

    def source(self) -> Path | None:
        """The file of the module; None for one of an installed package."""
        parts = self.target.partition(":")[0].split(".")
        return None if self.folder is None else next(iter(_sources(self.folder.joinpath(*parts))), None)

    def files(self) -> dict[Path, Path]:
        """The source files that the reference depends on, by their path in the folder to import from."""
        if self.folder is None:
            return {}
        return _files(import_path(self.folder), self.target.partition(":")[0].partition(".")[0])

    def digest(self) -> str:
        """sha256 of the source code that the reference depends on.

        It covers the module's file or all files of its package, and every module or package beside it, or in
        another folder of the user's code, that these import, directly or indirectly.
        """
        if self.folder is None:
            return hashlib.sha256(self.target.encode()).hexdigest()
        lines = [f"{place}\0{file_digest(file)}" for place, file in sorted(self.files().items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def import_path(folder: Path) -> tuple[Path, ...]:
    """The folders that the code in ``folder`` may import from, which is the first of them."""
    return code_folders((folder,)) or (folder,)


def _not_found(module: str, folders: Sequence[Path]) -> str:
    searched = ", ".join(str(folder) for folder in folders) or "the Python path"
    top = module.partition(".")[0]
    return (
        f"no module {module!r} in {searched}, nor among the installed packages: put {top}.py or the package "
        f"{top} beside the recipe or in a folder {SOURCES} beside it or in its project, or add the folder "
        "that contains it to PYTHONPATH"
    )


def _import_of(file: Path) -> tuple[Path, str]:
    """The folder that a source file is imported from, outside of its package, and the name of its module."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts, folder = [folder.name, *parts], folder.parent
    return folder, ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _sources(place: Path) -> list[Path]:
    """The source of the module at ``place``, a file or a package; empty if there is none."""
    return [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()]


def _check_defined(file: Path, name: str) -> None:
    """Look for a name in the source of a module, without running it.

    Raises:
        ValueError: nothing in the module can define it.
    """
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except UNPARSABLE:
        return  # reported with its cause when it is imported
    known: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in DYNAMIC):
            known.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            known |= {part for alias in node.names for part in (alias.asname or alias.name).split(".")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known.add(node.value)  # setattr(module, "name", ...)
    if name not in known and not known & DYNAMIC:
        names = [each for each in known if each.isidentifier()]
        raise ValueError(f"{file} does not define {shortened(name, 60)!r}{nearest(name, names)}")


def _files(folders: Sequence[Path], name: str) -> dict[Path, Path]:
    """The Python files of ``folders`` that an import of ``name`` can run, by their path in the folder.

    Of a module that several folders have, the first counts.
    """
    files: dict[Path, Path] = {}
    pending, known = [name], set[str]()
    while pending:
        if (name := pending.pop()) in known:
            continue
        known.add(name)
        for folder in folders:
            top = folder / name
            # A data folder may have the same name, and be large: only that of the code itself is searched.
            if folder != folders[0] and not top.with_suffix(".py").is_file() and not any(top.glob("*.py")):
                continue
            found = [file for file in {top.with_suffix(".py"), *top.rglob("*.py")} if file.is_file()]
            for file in found:
                files[file.relative_to(folder)] = file
                pending += _imported(file) - known
            if found:
                break
    return files


def _imported(file: Path) -> set[str]:
    """The top-level names of all imports of a file."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except UNPARSABLE:
        return set()  # reported when it is imported
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.partition(".")[0] for name in names}
