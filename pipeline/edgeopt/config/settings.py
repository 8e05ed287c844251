"""The base of everything that users write: recipes, device files, options of plugins, the project file."""

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from edgeopt.config.units import check_number
from edgeopt.errors import shortened

MAX_NAME = 64


def check_name(name: str) -> str:
    """Accept a name that becomes part of file names: of a variant, of a device.

    Raises:
        ValueError: it is empty, too long, or has characters with a meaning in paths or commands.
    """
    if not name.translate(dict.fromkeys(map(ord, "-_."))).isalnum() or name.startswith((".", "-")):
        raise ValueError(
            f"the name {shortened(name, MAX_NAME)!r} may only contain letters, digits, '-', '_' and '.', "
            "and starts with a letter, a digit or '_'"
        )
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"the name {shortened(name, MAX_NAME)!r} is longer than {MAX_NAME} bytes")
    return name


FileName: TypeAlias = Annotated[str, AfterValidator(check_name)]


class Settings(BaseModel):
    """Immutable settings without unknown keys; a number is finite, and no boolean.

    Pydantic alone reads ``true`` as 1, so that ``max_drop: true`` would allow a drop of 100 points.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _real_numbers(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None  # a field validator
        if _is_numeric(cls, info.field_name):
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, bool):
                    raise ValueError(f"{str(item).lower()} is not a number")
                if isinstance(item, int | float):
                    check_number(item)
        return value


@cache
def _is_numeric(model: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers, and no booleans."""
    types = set(_leaves(model.model_fields[field].annotation))
    return bool(types & {int, float}) and not types & {bool, Any}


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types inside ``X | None``, ``tuple[X, ...]`` and the like."""
    if arguments := get_args(annotation):
        for argument in arguments:
            yield from _leaves(argument)
    else:
        yield annotation
