"""Options that give a source for each input: in the model's order, or by the names of the model's inputs."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

SomeNames: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1)]
ByName: TypeAlias = Annotated[dict[str, str], Field(min_length=1)]


def or_by_name(form: Any) -> WrapValidator:
    """Validate a mapping as one from input names to sources, anything else as ``form``.

    A union would report every mistake once for each of its members.
    """

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        return _adapter(ByName if isinstance(value, Mapping) else form).validate_python(value)

    return WrapValidator(validate)


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def sources(given: str | Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
    """The sources of the inputs, in the order in which they are given."""
    if isinstance(given, str):
        return (given,)
    return tuple(given.values()) if isinstance(given, Mapping) else tuple(given)


def input_names(given: str | Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
    """The names of the inputs in the same order; empty if they are given in the model's order."""
    return tuple(given) if isinstance(given, Mapping) else ()
