"""Collection of all mistakes of a recipe, with line and column; rewording of pydantic's errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from edgeopt.config.nearest import nearest
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.config.yaml_source import Positions
from edgeopt.errors import Problem, RecipeError, shortened


class Problems:
    """Collects the mistakes of the recipe in ``file``; ``positions`` maps each key to line and column."""

    def __init__(self, file: Path, positions: Positions) -> None:
        self.file = file
        self.positions = positions
        self._problems: list[Problem] = []

    def __len__(self) -> int:
        return len(self._problems)

    def error(self) -> RecipeError:
        """All recorded mistakes as one error, in the order of the file."""
        return RecipeError(str(self.file), sorted(self._problems, key=lambda p: (p.line, p.column)))

    def refused(self, error: ValidationError, base: Loc, model: type[BaseModel]) -> None:
        """Record all validation errors of the value at ``base``, which should match ``model``."""
        for item in error.errors(include_url=False):
            loc = (*base, *item["loc"])
            if item["type"] == "extra_forbidden":
                known = _keys_at(model, item["loc"][:-1])
                message = f"unknown key {item['loc'][-1]!r}{nearest(str(item['loc'][-1]), known)}"
            elif item["type"] == "missing":
                message = f"{item['loc'][-1]!r} is missing"
                loc = loc[:-1]
            elif item["type"] == "value_error":
                message = str(item["ctx"]["error"])
            elif item["type"] == "too_short":
                message = "list at least one"
            elif item["type"] == "tuple_type":
                message = f"expected a list (got {short(item['input'])})"
            else:
                message = f"{item['msg'][0].lower()}{item['msg'][1:]} (got {short(item['input'])})"
            self.add(loc, message)

    def add(self, loc: Loc, message: str) -> None:
        """Record one mistake, at the position of ``loc`` or of its nearest parent in the file."""
        known = loc
        while known and known not in self.positions:
            known = known[:-1]
        line, column = self.positions.get(known, (0, 0))
        path = ".".join(str(part) for part in loc if (*known, part) and part in known)
        problem = Problem(message, line, column, path)
        if problem not in self._problems:
            self._problems.append(problem)


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that are valid at ``loc`` below ``model``."""
    node: Any = model
    by_name = False
    for part in (part for part in loc if isinstance(part, str)):
        if isinstance(node, type) and issubclass(node, BaseModel):
            fields = {(field.alias or name): field for name, field in node.model_fields.items()}
            if part in fields:
                by_name = _has_mapping(fields[part].annotation)
                node = _model_in(fields[part].annotation)
            elif not by_name:
                return []
    if isinstance(node, type) and issubclass(node, BaseModel):
        return [field.alias or name for name, field in node.model_fields.items()]
    return []


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside ``X | None``, ``tuple[X, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (model := _model_in(argument)) is not None:
            return model
    return None


def _has_mapping(annotation: Any) -> bool:
    """Whether a value may be a mapping from arbitrary names."""
    return get_origin(annotation) is dict or any(map(_has_mapping, get_args(annotation)))


def short(value: object) -> str:
    """The value in at most 40 characters."""
    return shortened(repr(value), 40)
