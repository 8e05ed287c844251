"""What is true of one format stands in that format's room and nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from edgeopt.formats.known import formats
from edgeopt.plugin import Worker

PACKAGE = Path(__file__).resolve().parent.parent.parent / "pipeline" / "edgeopt"
OWN = ("formats", "stages", "devices/agent/runtimes", "testing/workshop.py")
"""Code that belongs to single formats: the formats, what converts and runs them, and their toys."""


def keyed(tree: ast.AST) -> Iterator[ast.Constant]:
    """Texts that something is decided by: keys of a dict, sides of a comparison, cases."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Dict):
            parts += node.keys
        elif isinstance(node, ast.Compare):
            parts += [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts += node.args if node.func.attr in ("get", "startswith", "endswith") else []
        for part in parts:
            inner = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
            for each in inner:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each


def test_nothing_outside_a_format_is_decided_by_its_name() -> None:
    names = {*formats(), *(suffix for each in formats().values() for suffix in each.suffixes)}
    names -= set(get_args(Worker))  # the name of a framework as well
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        if where.startswith(OWN):
            continue
        for constant in keyed(ast.parse(file.read_text("utf-8"))):
            if constant.value in names:
                found.append(f"{where}:{constant.lineno}: {constant.value!r}")
    assert found == []
