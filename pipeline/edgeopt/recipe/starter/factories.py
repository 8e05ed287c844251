"""Functions and classes that may build the network of a checkpoint, found without running any code."""

import ast
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from edgeopt.config.code_folders import SOURCES
from edgeopt.config.references import UNPARSABLE

MAX_FILES = 300
MAX_SHOWN = 4
PREFIXES = ("build", "create", "make", "get_model", "load_model")
"""Beginnings of the names of functions that build networks."""


def candidates(*folders: Path) -> list[str]:
    """``file.py:name`` of the networks in the Python files of some folders, the most likely first."""
    found: dict[str, int] = {}
    files = dict.fromkeys(file for folder in folders for file in _files(folder))
    for file in islice(files, MAX_FILES):
        try:
            tree = ast.parse(file.read_bytes())
        except UNPARSABLE:
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(_is_module(base) for base in node.bases):
                # Blocks of a network take arguments, the network itself often none.
                found[f"{file}:{node.name}"] = _required_arguments(node)
            elif isinstance(node, ast.FunctionDef) and node.name.startswith(PREFIXES):
                found[f"{file}:{node.name}"] = _required(node.args, 0)
    return sorted(found, key=lambda name: found[name])[:MAX_SHOWN]


def _files(folder: Path) -> Iterator[Path]:
    """The Python files of a folder and of the packages in it, without tests and hidden folders."""
    for place in (folder, folder / SOURCES):
        for pattern in ("*.py", "*/*.py", "*/*/*.py"):
            for file in sorted(place.glob(pattern)):
                inside = file.relative_to(place).parts
                if not any(part.startswith((".", "test")) or part == "site-packages" for part in inside):
                    yield file


def _is_module(base: ast.expr) -> bool:
    name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
    return name in ("Module", "LightningModule")


def _required_arguments(node: ast.ClassDef) -> int:
    """The number of arguments that its constructor requires."""
    functions = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    return _required(functions[0].args, 1) if functions else 0


def _required(arguments: ast.arguments, implicit: int) -> int:
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) - implicit
    return positional + sum(default is None for default in arguments.kw_defaults)
