"""Finds what code is decided by, for tests that a name is known in one place only."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "pipeline" / "edgeopt"


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
