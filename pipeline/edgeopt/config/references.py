"""What options refer to: files, and code of the user. Both are looked for beside the recipe first.

The folders to look in come with the validation, as ``context={"roots": (folder, ...)}``.
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
    looked = " or ".join(str(c) for c in candidates)
    if len(roots) == 1 and not path.is_absolute():
        looked += " (and there is no other place to look: neither --data-root nor EDGEOPT_DATA is set)"
    raise ValueError(f"no such file: {looked}")


ExistingPath: TypeAlias = Annotated[Path, BeforeValidator(_existing)]


class Code(BaseModel):
    """A user's own function or class, written ``package.module:name`` in a recipe.

    The module is looked for beside the recipe first. It is imported only when it is used.
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
                looked = " or ".join(str(root) for root in roots) or "the Python path"
                raise ValueError(f"no module {module!r} in {looked}")
            return {"target": value}
        return value

    def load(self) -> Any:
        """Import the module and return what the name stands for."""
        module, _, name = self.target.partition(":")
        if self.folder is not None and str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"cannot load {self.target!r}: {error}") from error
        return found

    def digest(self) -> str:
        """sha256 of the module's file, or of every Python file of its package, and of what lies beside it.

        That is: of every module or package of the same folder that these files import, or that those do.
        """
        if self.folder is None:
            return hashlib.sha256(self.target.encode()).hexdigest()
        files = sorted(_files(self.folder, self.target.partition(":")[0].partition(".")[0]))
        lines = [f"{file.relative_to(self.folder)}\0{file_digest(file)}" for file in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(folder: Path, name: str) -> set[Path]:
    """The Python files of ``folder`` that importing ``name`` can run."""
    found: set[Path] = set()
    pending, known = [name], set[str]()
    while pending:
        top = folder / (name := pending.pop())
        known.add(name)
        for file in {top.with_suffix(".py"), *top.rglob("*.py")}:  # a folder of data may have its name
            if file.is_file():
                found.add(file)
                pending += _imported(file) - known
    return found


def _imported(file: Path) -> set[str]:
    """The first words of all that a file imports."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return set()  # importing it will say what is wrong with it
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.partition(".")[0] for name in names}
