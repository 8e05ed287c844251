"""The tables that ship with edgeopt and that device files name: operators, speed of kernels, size of code."""

from importlib import resources
from pathlib import Path

from edgeopt.config.nearest import nearest

LIMITS = Path(str(resources.files("edgeopt"))) / "devices" / "limits"


def operator_tables() -> dict[str, Path]:
    """The operators that each runtime supports, by name; `edgeopt.devices.lint` reads them."""
    return _tables(LIMITS)


def speed_tables() -> dict[str, Path]:
    """Published speed of kernels on a processor, by name; `edgeopt.devices.estimates` reads them."""
    return _tables(LIMITS / "speed")


def code_tables() -> dict[str, Path]:
    """Published code sizes of runtimes, by runtime; `edgeopt.devices.estimates` reads them."""
    return _tables(LIMITS / "code")


def known_operator_table(value: str | None) -> str | None:
    """Accept the name of an operator table.

    Raises:
        ValueError: there is none of that name.
    """
    return _known(value, operator_tables(), "operator table")


def known_speed_table(value: str) -> str:
    """Accept the name of a speed table.

    Raises:
        ValueError: there is none of that name.
    """
    _known(value, speed_tables(), "speed table")
    return value


def _tables(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def _known(value: str | None, known: dict[str, Path], what: str) -> str | None:
    if value is not None and value not in known:
        raise ValueError(f"no {what} {value!r}{nearest(value, list(known))}")
    return value
