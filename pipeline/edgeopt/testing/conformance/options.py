"""Contract of all plug-ins: their options."""

from typing import Any

from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.plugin import Plugin


class Nonconformance(AssertionError):
    """A plug-in violates the contract of its kind."""


def demand(holds: bool, message: str) -> None:
    if not holds:
        raise Nonconformance(message)


def check_options(plugin: Plugin) -> None:
    """Check that options survive JSON, unknown ones are rejected, and each has a description.

    Raises:
        Nonconformance: the options violate the contract.
    """
    kind, name = type(plugin), type(plugin).__name__
    again = kind.model_validate(plugin.options())
    demand(again == plugin, f"{name}: its options change when read back: {plugin!r}, {again!r}")
    try:
        kind.model_validate(plugin.options() | {"no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise Nonconformance(f"{name} accepts an unknown option")
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
            f"{plugin.__name__} has required options: {error.error_count()} are missing",
            fix="provide an instance: cases(package, instances=[...])",
        ) from error
