"""Page data of the graphs of files: their operators, and what colours these in the graph of a result."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from edgeopt.formats.layer_names import DERIVED
from edgeopt.reports.pagedata.findings import Data, bytes_of, cut, sensitivity
from edgeopt.results import Breakdown, GraphNode, Report, Result, Scalar

MAX_NODES = 6000
"""Operators of all graphs in a page together."""
COSTS = {"ms": "ms", "cycles": "cycles", "npu_cycles": "NPU cycles"}
"""Keys of what runtimes and compilers say that an operator takes, with their units."""


Key: TypeAlias = tuple[str, str]
"""Variant and format of a file."""


def files(report: Report) -> list[Data]:
    """Size breakdown and graph of every file, once for all devices; without graphs beyond ``MAX_NODES``."""
    shown, room = [], MAX_NODES
    for (variant, form), breakdown in breakdowns(report).items():
        graph = breakdown.graph if len(breakdown.graph) <= room else ()
        room -= len(graph)
        data = {"variant": cut(variant), "format": cut(form), "graph": nodes_of(graph)}
        shown.append(data | bytes_of(breakdown))
    return shown


def breakdowns(report: Report) -> dict[Key, Breakdown]:
    """The breakdown of every file that has one."""
    found: dict[Key, Breakdown] = {}
    for row in report.results:
        if row.artifact is not None and row.artifact.breakdown is not None:
            found.setdefault((row.variant, row.format), row.artifact.breakdown)
    return found


def colours_of(result: Result, breakdown: Breakdown | None) -> Data:
    """What colours the graph of a result beside its bytes: times, and the errors by layer of a search."""
    graph = breakdown.graph if breakdown is not None else ()
    removed = ((layer, share) for layer, share, _ in sensitivity(result.trials))
    errors, _ = matched(graph, removed)
    known = any(value is not None for value in errors)
    return {"times": times_of(result, graph), "errors": errors if known else None}


def nodes_of(graph: Sequence[GraphNode]) -> list[list[object]]:
    """Name, kind, bytes, MACs and the operators that it reads."""
    return [
        [cut(node.name), cut(node.kind), node.size_bytes, node.macs, _earlier(node.reads, at)]
        for at, node in enumerate(graph)
    ]


def _earlier(reads: Iterable[int], at: int) -> list[int]:
    """The operators before this one: a report may be untrusted, and no other ones can be drawn."""
    return [one for one in reads if 0 <= one < at]


def times_of(result: Result, graph: Sequence[GraphNode]) -> Data | None:
    """What each operator of the graph takes, and the rest, of operators that the runtime alone knows."""
    key = next((key for key in COSTS if any(key in layer for layer in result.layers)), None)
    if key is None or not graph:
        return None
    values, rest = matched(graph, ((str(layer.get("layer")), layer.get(key)) for layer in result.layers))
    known = [value for value in values if value is not None]
    return {"unit": COSTS[key], "values": values, "rest": rest} if known else None


def matched(
    graph: Sequence[GraphNode], rows: Iterable[tuple[str, Scalar]]
) -> tuple[list[float | None], float]:
    """The values of the operators by their names, and the sum of those without an operator.

    Runtimes append to the names of operators that they fuse or rewrite.
    """
    places: dict[str, list[int]] = {}
    for at, node in enumerate(graph):
        places.setdefault(node.name, []).append(at)
    values: list[float | None] = [None] * len(graph)
    rest = 0.0
    for name, value in rows:
        if not isinstance(value, int | float) or not math.isfinite(value):
            continue
        name = name.partition(";")[0]  # converters join the names of operators that they fuse
        derived = DERIVED.fullmatch(name)
        found = places.get(name) or (places.get(derived["layer"]) if derived is not None else None)
        if not found:
            rest += value
            continue
        # Of several operators with one name, each row is the next one; further rows belong to the last.
        at = next((at for at in found if values[at] is None), found[-1])
        values[at] = (values[at] or 0.0) + value
    return values, rest
