"""Semantic comparison of graphs: independent of tensor names, numbering and position in the file.

The digest of a tensor covers the operator that produces it, the options of that operator and the digests of
its inputs, down to graph inputs and constants (a Merkle tree). It depends on every weight, shape, type and
option, and not on names or on the order of independent operators.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """One operator. ``options`` is a digest; omitted optional inputs are None."""

    kind: str
    options: str
    inputs: tuple[Hashable | None, ...]
    outputs: tuple[Hashable, ...]
    bodies: tuple["Graph", ...] = ()
    """Subgraphs, which may read tensors of the enclosing graph."""


class Graph(NamedTuple):
    """Operators in topological order. Tensors are identified by arbitrary keys and described by digests.

    ``facts`` cover type, shape and quantization; ``constants`` also cover the values.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    constants: Mapping[Hashable, str]
    facts: Mapping[Hashable, str]
    versions: str = ""
    """Digest of the operator set versions."""


def digest(*parts: object) -> str:
    """sha256 of values with an unambiguous ``repr``: strings, numbers, bytes and tuples of these."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def digest_of_graphs(format_name: str, graphs: Sequence[Graph]) -> str:
    """sha256 over the semantics of all graphs of one file."""
    return digest(format_name, *(_graph_digest(graph, {}) for graph in graphs))


def first_difference(before: Sequence[Graph], after: Sequence[Graph]) -> str:
    """A description of the first difference between the graphs of two files; empty if they are equal."""
    if len(before) != len(after):
        return f"{len(after)} graphs instead of {len(before)}"
    pairs = zip(before, after, strict=True)
    return next((difference for graphs in pairs for difference in _differences(*graphs)), "")


def reads(graphs: Sequence[Graph]) -> tuple[tuple[int, ...], ...]:
    """For every operator of all graphs, in order, the positions of those whose results it reads.

    -1 is an input of its graph: without any, what it computes is constant.
    """
    found: list[tuple[int, ...]] = []
    for graph in graphs:
        producers: dict[Hashable, int] = dict.fromkeys(graph.inputs, -1)
        for node in graph.nodes:
            found.append(tuple(dict.fromkeys(producers[key] for key in _read(node) if key in producers)))
            producers |= dict.fromkeys(node.outputs, len(found) - 1)
    return tuple(found)


def _read(node: Node) -> Iterator[Hashable]:
    """The tensors that an operator reads, also within its subgraphs."""
    yield from (key for key in node.inputs if key is not None)
    for body in node.bodies:
        for inner in body.nodes:
            yield from _read(inner)


def _graph_digest(graph: Graph, enclosing: Mapping[Hashable, str]) -> str:
    known = {**enclosing, **graph.constants}
    for index, key in enumerate(graph.inputs):
        known[key] = digest("input", index, graph.facts.get(key))
    node_digests = []
    for node in graph.nodes:
        # A tensor without a producer so far is the state of a variable.
        inputs = [key if key is None else known.get(key, graph.facts.get(key)) for key in node.inputs]
        bodies = [_graph_digest(body, known) for body in node.bodies]
        outputs = [graph.facts.get(key) for key in node.outputs]
        node_digests.append(digest(node.kind, node.options, *inputs, "gives", *outputs, "within", *bodies))
        for index, key in enumerate(node.outputs):
            known[key] = digest(node_digests[-1], index)
    ends = [(known.get(key), graph.facts.get(key)) for key in graph.outputs]
    # All operators count, as those without a path to an output may have side effects; sorted, because the
    # order of independent operators has no meaning.
    return digest(graph.versions, len(graph.inputs), *ends, *sorted(node_digests))


def _differences(old: Graph, new: Graph) -> Iterator[str]:
    """Descriptions of all differences, operator by operator in file order."""
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
            yield from (f"{difference} within {where}" for difference in _differences(*bodies))
    if len(old.nodes) != len(new.nodes):
        yield f"{len(new.nodes)} operators instead of {len(old.nodes)}"
    elif _graph_digest(old, {}) != _graph_digest(new, {}):
        yield "the connections between operators"
