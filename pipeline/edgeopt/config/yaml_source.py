"""YAML with positions: the line and column of every value, for error messages."""

from typing import Any

import yaml

from edgeopt.errors import Problem, RecipeError

Path = tuple[str | int, ...]
Positions = dict[Path, tuple[int, int]]

MAX_DEPTH = 100
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError)
"""Exceptions of PyYAML's constructors: ``!!bool x`` is a KeyError, ``!!int ''`` an IndexError."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str, file: str) -> tuple[Any, Positions]:
    """Parse one YAML document safely into plain values and their positions.

    Duplicate keys and aliases are rejected: the former hide mistakes, the latter allow small files to expand
    without bound.

    Raises:
        RecipeError: the text is not valid YAML, with the position reported by the parser.
    """
    try:
        _check_depth(text, file)
        root = yaml.compose(text, Loader=_Loader)
    except UnicodeEncodeError as error:
        raise RecipeError(
            file, [Problem(f"not text: {error.reason} at character {error.start + 1}")]
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise RecipeError(file, [Problem(f"not valid YAML: {what}", line, column)]) from error
    if root is None:
        raise RecipeError(file, [Problem("the file is empty")])
    reader = _Reader()
    value = reader.read(root, ())
    if reader.problems:
        raise RecipeError(file, reader.problems)
    return value, reader.positions


def _check_depth(text: str, file: str) -> None:
    """Bound the nesting depth before recursive functions read the document.

    Raises:
        RecipeError: with the position of the first collection that is too deep.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark = event.start_mark
                problem = Problem(f"nested more than {MAX_DEPTH} levels deep", mark.line + 1, mark.column + 1)
                raise RecipeError(file, [problem])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    def __init__(self) -> None:
        self.positions: Positions = {}
        self.problems: list[Problem] = []
        self.seen: set[int] = set()
        self.scalars = yaml.SafeLoader("")

    def read(self, node: yaml.Node, path: Path) -> Any:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.positions.setdefault(path, (line, column))
        if id(node) in self.seen:
            self.problems.append(Problem("aliases are not supported: write the value out", line, column))
            return None
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return self.scalars.construct_object(node)
        except UNREADABLE as error:
            what = getattr(error, "problem", None) or f"not a {node.tag.rpartition(':')[2]}"
            self.problems.append(Problem(f"cannot be read: {what}", line, column))
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self.problems.append(Problem("a key must be plain text", line, column))
                continue
            if key in values:
                self.problems.append(Problem(f"key {key!r} is given twice", line, column))
                continue
            self.positions[(*path, key)] = (line, column)
            values[key] = self.read(value_node, (*path, key))
        return values


def set_value(document: Any, assignment: str, positions: Positions | None = None) -> None:
    """Apply ``--set a.b.0=value`` to a parsed document; the value is YAML.

    In ``positions``, the new value and its parts get the position 0, 0: they are not in the file.

    Raises:
        ValueError: the path does not exist, or there is no ``=``.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {assignment!r} is not of the form key.key=value")
    value, parts = read_yaml(text, f"--set {path}") if text.strip() else (None, {(): (0, 0)})
    *parents, last = path.split(".")
    node = document
    place: Path = ()
    for name in parents:
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            place = (*place, int(name))
            node = node[int(name)]
        elif isinstance(node, dict):
            place = (*place, name)
            node = node.setdefault(name, {})
        else:
            raise ValueError(f"--set {assignment!r}: {name!r} is not a key or index here")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        place = (*place, int(last))
        node[int(last)] = value
    elif isinstance(node, dict):
        place = (*place, last)
        node[last] = value
    else:
        raise ValueError(f"--set {assignment!r}: {last!r} is not a key or index here")
    if positions is not None:
        for old in [known for known in positions if known[: len(place)] == place]:
            del positions[old]
        positions.update(
            {place[:depth]: (0, 0) for depth in range(1, len(place)) if place[:depth] not in positions}
        )
        positions.update({(*place, *part): (0, 0) for part in parts})
