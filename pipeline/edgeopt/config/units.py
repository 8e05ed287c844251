"""Numbers with units, as people write them in recipes: ``64 KiB``, ``12 ms``, ``0.5 %``."""

import re
from typing import Annotated

from pydantic import BeforeValidator

BYTES = {
    "B": 1.0,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
FRACTIONS = {"%": 1e-2}

FACTORS = {"bytes": BYTES, "ms": MILLISECONDS, "": FRACTIONS}
"""Unit of a metric -> the units that a limit on it may be written in."""

_QUANTITY = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*")


def quantity(value: object, unit: str) -> float:
    """Read ``value`` as a number of ``unit`` (``bytes``, ``ms`` or ``''`` for a fraction).

    Raises:
        ValueError: when it is not a number, or its unit measures something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a number with a unit")
    number, written = match.groups()
    if not written:
        return float(number)
    known = FACTORS.get(unit, {})
    if written not in known:
        expected = ", ".join(known) or f"no unit but {unit}"
        raise ValueError(f"unit {written!r} does not fit; expected {expected}")
    return float(number) * known[written]


def _as_bytes(value: object) -> object:
    return int(quantity(value, "bytes"))


Bytes = Annotated[int, BeforeValidator(_as_bytes)]


def show_bytes(value: float) -> str:
    """``86,592 B`` below 10 KiB's worth of reading effort, otherwise KiB or MiB."""
    for unit, factor in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if abs(value) >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"
