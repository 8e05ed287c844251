"""Every mistake of one recipe, each with its line and column, told in the words of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from edgeopt.config.nearest import nearest
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.config.yaml_source import Positions
from edgeopt.errors import Problem, RecipeError


class Problems:
    """Collects the mistakes of the recipe in ``file``; ``positions`` tells where each key is written."""

    def __init__(self, file: Path, positions: Positions) -> None:
        self.file = file
        self.positions = positions
        self._found: list[Problem] = []

    def __len__(self) -> int:
        return len(self._found)

    def error(self) -> RecipeError:
        """All that was noted, in the order of the file."""
        return RecipeError(str(self.file), sorted(self._found, key=lambda p: (p.line, p.column)))

    def refused(self, error: ValidationError, base: Loc, model: type[BaseModel]) -> None:
        """Note everything that pydantic found wrong with the value at ``base``, which ``model`` describes."""
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
                message = f"expected a list (got {_short(item['input'])})"
            else:
                message = f"{item['msg'][0].lower()}{item['msg'][1:]} (got {_short(item['input'])})"
            self.add(loc, message)

    def add(self, loc: Loc, message: str) -> None:
        """Note one mistake; where ``loc`` is not written in the file, the nearest place above it is told."""
        known = loc
        while known and known not in self.positions:
            known = known[:-1]
        line, column = self.positions.get(known, (0, 0))
        path = ".".join(str(part) for part in loc if (*known, part) and part in known)
        problem = Problem(message, line, column, path)
        if problem not in self._found:
            self._found.append(problem)


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that may stand at ``loc`` below ``model``."""
    here: Any = model
    for part in (part for part in loc if isinstance(part, str)):
        if isinstance(here, type) and issubclass(here, BaseModel):
            fields = {(field.alias or name): field for name, field in here.model_fields.items()}
            if part not in fields:
                return []
            here = _model_in(fields[str(part)].annotation)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [field.alias or name for name, field in here.model_fields.items()]
    return []


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside ``X | None``, ``tuple[X, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
