"""A part of a recipe: some of its variants, formats and devices, with the gates that judge them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgeopt.config.nearest import nearest
from edgeopt.config.yaml_source import Positions
from edgeopt.devices.device import HOST
from edgeopt.errors import UsageError
from edgeopt.recipe.document import GatePart

FILTERS = {"variants": "optimize", "formats": "formats", "devices": "devices"}
"""The filters of a gate, and the keys of a recipe whose entries they name."""


class Selection(NamedTuple):
    """What to build and measure; empty: all that the recipe names.

    Variants are those of the recipe; formats and devices replace the recipe's, and may be others.
    """

    variants: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def apply(self, data: dict[str, Any], positions: Positions) -> None:
        """Leave only the selected parts in a parsed recipe.

        Raises:
            UsageError: the recipe has no such variant.
        """
        known = _entries(data, "variants")
        for name in self.variants:
            if name not in known:
                raise UsageError(
                    f"--variant {name}: the recipe has no such variant{nearest(name, known)}",
                    fix="variants are the entries of 'optimize'; float is always built",
                )
        if self.variants:
            bodies = data.get("optimize") or {}
            data["optimize"] = {name: bodies.get(name) or {} for name in dict.fromkeys(self.variants)}
        for key, names in (("formats", self.formats), ("devices", self.devices)):
            if names:
                data[key] = list(dict.fromkeys(names))
                positions |= dict.fromkeys([(key,), *((key, at) for at in range(len(names)))], (0, 0))


EVERYTHING = Selection()


def declared(data: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What each filter of a gate may name in a parsed recipe."""
    return {key: _entries(data, key) for key in FILTERS}


def narrow_gates(
    data: dict[str, Any], positions: Positions, before: Mapping[str, Sequence[str]]
) -> list[str]:
    """Remove from the gates what the recipe named ``before`` it was narrowed; returns a note for each.

    A gate that judges nothing else is removed. Names that the recipe never had are mistakes, and stay.
    """
    gates = data.get("gates")
    left_out = {
        key: set(before[key]) - set(names) for key, names in declared(data).items() if before[key] != names
    }
    if not isinstance(gates, list) or not any(left_out.values()):
        return []
    notes: list[str] = []
    kept: list[Any] = []
    places: dict[str | int, int] = {}
    for index, gate in enumerate(gates):
        narrowed, gone = _without(gate, left_out) if isinstance(gate, dict) else (gate, [])
        title = f"gate {index + 1} ({gate.get('metric')})" if gone else ""
        if narrowed is None:
            notes.append(f"{title} is left out: it judges only {gone[0]}")
            continue
        if gone:
            notes.append(f"{title} does not judge {', '.join(gone)} in this run")
        places[index] = len(kept)
        kept.append(narrowed)
    data["gates"] = kept
    moved = {
        place: positions.pop(place) for place in list(positions) if place[:1] == ("gates",) and place[1:]
    }
    for (_, at, *rest), where in moved.items():
        if at in places:
            positions["gates", places[at], *rest] = where
    return notes


def _entries(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The names that one filter of a gate may have."""
    value = data.get(FILTERS[key])
    if key == "variants":
        return tuple(dict.fromkeys(["float", *(value if isinstance(value, dict) else ())]))
    if value is None:
        return (HOST,) if key == "devices" else ()
    return tuple(name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))


def _without(
    gate: dict[str, Any], left_out: Mapping[str, set[str]]
) -> tuple[dict[str, Any] | None, list[str]]:
    """A gate without the names that are left out, and these; None for a gate that has no other names."""
    narrowed, gone = dict(gate), list[str]()
    singular = {several: one for one, several in GatePart.SINGULAR.items()}
    for several, names in left_out.items():
        for key in (several, singular[several]):
            value = gate.get(key)
            given = value if isinstance(value, list) else [value] if isinstance(value, str) else []
            absent = [name for name in given if isinstance(name, str) and name in names]
            if not absent:
                continue
            if len(absent) == len(given):
                return None, [f"{key} {', '.join(absent)}"]
            narrowed[key] = [name for name in given if name not in absent]
            gone += [f"{singular[several]} {name}" for name in absent]
    return narrowed, gone
