"""What a graph computes, without what its parts are called or where they lie in the file.

A graph's digest is that of its outputs, each told by the operator that makes it, its options and the
digests of what goes in, down to inputs and constants. So names, numbers and the order of independent
operators do not matter, and every weight, shape, type and option does.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """One operator. ``options`` is a digest; inputs that are left out are None."""

    kind: str
    options: str
    inputs: tuple[Hashable | None, ...]
    outputs: tuple[Hashable, ...]
    bodies: tuple["Graph", ...] = ()
    """Graphs inside of it, which may take tensors of the graph around it."""


class Graph(NamedTuple):
    """Operators in an order in which they can run; tensors are known by any key, and told by a digest.

    ``facts`` are type, shape and quantization; ``constants`` hold values as well.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    constants: Mapping[Hashable, str]
    facts: Mapping[Hashable, str]
    versions: str = ""
    """Of the sets that the operators are from; a digest."""


def digest(*parts: object) -> str:
    """sha256 of values that have an unambiguous ``repr``: texts, numbers, bytes and tuples of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def digest_of_graphs(format_name: str, graphs: Sequence[Graph]) -> str:
    """sha256 of what the graphs of one file compute."""
    return digest(format_name, *(_graph_digest(graph, {}) for graph in graphs))


def first_difference(before: Sequence[Graph], after: Sequence[Graph]) -> str:
    """The first part in which the graphs of two files differ, in words; nothing if there is none."""
    if len(before) != len(after):
        return f"{len(after)} graphs instead of {len(before)}"
    pairs = zip(before, after, strict=True)
    return next((difference for graphs in pairs for difference in _differences(*graphs)), "")


def _graph_digest(graph: Graph, around: Mapping[Hashable, str]) -> str:
    known = {**around, **graph.constants}
    for index, key in enumerate(graph.inputs):
        known[key] = digest("input", index, graph.facts.get(key))
    made = []
    for node in graph.nodes:
        # What nobody has made yet is the state of a variable.
        inputs = [key if key is None else known.get(key, graph.facts.get(key)) for key in node.inputs]
        bodies = [_graph_digest(body, known) for body in node.bodies]
        outputs = [graph.facts.get(key) for key in node.outputs]
        made.append(digest(node.kind, node.options, *inputs, "gives", *outputs, "within", *bodies))
        for index, key in enumerate(node.outputs):
            known[key] = digest(made[-1], index)
    ends = [(known.get(key), graph.facts.get(key)) for key in graph.outputs]
    # Operators that lead to no output may have an effect all the same.
    return digest(graph.versions, len(graph.inputs), *ends, *sorted(made))


def _differences(old: Graph, new: Graph) -> Iterator[str]:
    """What differs between two graphs, operator by operator in the order of the files."""
    if old.versions != new.versions:
        yield "the versions of the operator sets"
    for number, (before, after) in enumerate(zip(old.nodes, new.nodes, strict=False)):
        where = f"operator {number} ({before.kind})"
        if before.kind != after.kind:
            yield f"{where} is {after.kind}"
        if before.options != after.options or len(before.inputs) != len(after.inputs):
            yield f"the options of {where}"
        for index, (a, b) in enumerate(zip(before.inputs, after.inputs, strict=False)):
            if old.constants.get(a) != new.constants.get(b):
                yield f"the constant input {index} of {where}"
            elif old.facts.get(a) != new.facts.get(b):
                yield f"the type, shape or quantization of input {index} of {where}"
        for a, b in zip(before.outputs, after.outputs, strict=False):
            if old.facts.get(a) != new.facts.get(b):
                yield f"the type, shape or quantization of the output of {where}"
        for bodies in zip(before.bodies, after.bodies, strict=False):
            yield from (f"{told} within {where}" for told in _differences(*bodies))
    if len(old.nodes) != len(new.nodes):
        yield f"{len(new.nodes)} operators instead of {len(old.nodes)}"
    elif _graph_digest(old, {}) != _graph_digest(new, {}):
        yield "how operators are connected"
