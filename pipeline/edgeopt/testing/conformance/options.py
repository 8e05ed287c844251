"""What all kinds of plug-ins keep to."""

from typing import Any

from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.plugin import Plugin


class Nonconformance(AssertionError):
    """A plug-in does not do what its kind promises."""


def demand(holds: bool, message: str) -> None:
    if not holds:
        raise Nonconformance(message)


def check_options(plugin: Plugin) -> None:
    """Options survive JSON, an unknown one is refused, and each says what it is for.

    Raises:
        Nonconformance: they do not.
    """
    kind, name = type(plugin), type(plugin).__name__
    again = kind.model_validate(plugin.options())
    demand(again == plugin, f"{name}: its options read again are other ones: {plugin!r}, {again!r}")
    try:
        kind.model_validate(plugin.options() | {"no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise Nonconformance(f"{name} takes an option that it does not have")
    for option, field in kind.model_fields.items():
        demand(bool(field.description), f"{name}.{option} has no description")
    demand(bool(kind.__doc__), f"{name} has no docstring")


def instance_of(plugin: Any) -> Any:
    if not isinstance(plugin, type):
        return plugin
    try:
        return plugin()
    except ValidationError as error:
        raise UsageError(
            f"{plugin.__name__} needs options to exist: {error.error_count()} are missing",
            fix="give one to test with: cases(package, instances=[...])",
        ) from error
