"""References of options to files and to user code; both are looked up beside the recipe first.

The search folders are passed as validation context: ``context={"roots": (folder, ...)}``.
"""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError


def _existing(value: object, info: ValidationInfo) -> object:
    """Resolve a relative path beside the recipe, then under the data root."""
    if not isinstance(value, str | Path):
        return value
    path = Path(value).expanduser()
    roots: Sequence[Path] = (info.context or {}).get("roots", ())
    candidates = [path] if path.is_absolute() else [root / path for root in roots] or [path]
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    searched = " or ".join(str(c) for c in candidates)
    if len(roots) == 1 and not path.is_absolute():
        searched += " (no other folder is searched: neither --data-root nor EDGEOPT_DATA is set)"
    raise ValueError(f"no such file: {searched}")


ExistingPath: TypeAlias = Annotated[Path, BeforeValidator(_existing)]


class Code(BaseModel):
    """A function or class of the user, written ``package.module:name`` in a recipe.

    The module is looked up beside the recipe first, and imported only on use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    folder: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            module, colon, name = value.partition(":")
            if not (colon and module and name):
                raise ValueError(f"{value!r} is not of the form 'module:name'")
            roots: Sequence[Path] = (info.context or {}).get("roots", ())
            relative = Path(*module.split("."))
            for root in roots:
                if (root / relative).with_suffix(".py").exists() or (
                    root / relative / "__init__.py"
                ).exists():
                    return {"target": value, "folder": root.resolve()}
            top = module.partition(".")[0]
            if importlib.util.find_spec(top) is None:
                searched = " or ".join(str(root) for root in roots) or "the Python path"
                raise ValueError(f"no module {module!r} in {searched}")
            return {"target": value}
        return value

    def load(self) -> Any:
        """Import the module and return the object.

        Raises:
            UsageError: the module cannot be imported, or has no such attribute.
        """
        module, _, name = self.target.partition(":")
        if self.folder is not None and str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        try:
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"cannot load {self.target!r}: {error}") from error
        return target

    def digest(self) -> str:
        """sha256 of the source code that the reference depends on.

        It covers the module's file or all files of its package, and every module or package in the same
        folder that these import, directly or indirectly.
        """
        if self.folder is None:
            return hashlib.sha256(self.target.encode()).hexdigest()
        files = sorted(_files(self.folder, self.target.partition(":")[0].partition(".")[0]))
        lines = [f"{file.relative_to(self.folder)}\0{file_digest(file)}" for file in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(folder: Path, name: str) -> set[Path]:
    """The Python files of ``folder`` that an import of ``name`` can run."""
    files: set[Path] = set()
    pending, known = [name], set[str]()
    while pending:
        top = folder / (name := pending.pop())
        known.add(name)
        for file in {top.with_suffix(".py"), *top.rglob("*.py")}:  # a data folder may have the same name
            if file.is_file():
                files.add(file)
                pending += _imported(file) - known
    return files


def _imported(file: Path) -> set[str]:
    """The top-level names of all imports of a file."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return set()  # reported when it is imported
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.partition(".")[0] for name in names}
