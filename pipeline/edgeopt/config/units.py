"""Numbers with units in recipes: ``64 KiB``, ``12 ms``, ``0.5 %``."""

import math
import re
import sys
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
HERTZ = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9}

FACTORS = {"bytes": BYTES, "ms": MILLISECONDS, "": FRACTIONS, "Hz": HERTZ}
"""Accepted units of a limit, by the unit of its metric."""

LARGEST = 1e18
"""Magnitude that no setting reaches: 30 years in nanoseconds, a million terabytes in bytes."""

_QUANTITY = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*")


def quantity(value: object, unit: str) -> float:
    """Convert ``value`` to a number in ``unit`` (``bytes``, ``ms`` or ``''`` for a fraction).

    Raises:
        ValueError: it is not a finite number, or its unit is of another dimension.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return check_number(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a number with a unit")
    number, suffix = match.groups()
    if not suffix:
        return check_number(float(number))
    known = FACTORS.get(unit, {})
    if suffix not in known:
        expected = ", ".join(known) or f"no unit other than {unit}"
        raise ValueError(f"unit {suffix!r} is not valid here; expected {expected}")
    return check_number(float(number) * known[suffix])


def check_number(value: float) -> float:
    """The number as a float.

    Raises:
        ValueError: it is NaN, infinite, or larger than any setting.
    """
    if math.isnan(value):
        raise ValueError("NaN is not a number")
    if abs(value) > LARGEST:
        raise ValueError(f"the number is infinite, or larger than any setting ({LARGEST:.0e})")
    return float(value)


def _as_bytes(value: object) -> object:
    return int(quantity(value, "bytes"))


Bytes = Annotated[int, BeforeValidator(_as_bytes)]


def _as_hertz(value: object) -> object:
    return quantity(value, "Hz")


Hertz = Annotated[float, BeforeValidator(_as_hertz)]


def show_bytes(value: float) -> str:
    """Size as text, in the largest binary unit that it reaches: ``84.6 KiB``."""
    for unit, factor in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if abs(value) >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def show_time(milliseconds: float) -> str:
    """Time as text, with at least three digits: ``125 µs``, ``1.250 ms``, ``12.5 ms``."""
    micro = abs(milliseconds) * 1e3
    if micro < 999.5:
        return f"{milliseconds * 1e3:.{0 if micro >= 99.5 else 1 if micro >= 9.95 else 2}f} µs"
    return f"{milliseconds:.3f} ms" if abs(milliseconds) < 10 else f"{milliseconds:.1f} ms"


# Plugins may still import it by its former name.
sys.modules.setdefault("edgeopt.units", sys.modules[__name__])
