"""The graph of the operators of a file, for a report."""

from pathlib import Path

from edgeopt.errors import EdgeoptError
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.plugin.contents import SizeBreakdown
from edgeopt.plugin.format import Format
from edgeopt.results import GraphNode

MAX_NODES = 1000
"""Operators of a graph that can be drawn; larger ones are left out."""


def graph_of(kind: Format, path: Path, sizes: SizeBreakdown) -> tuple[GraphNode, ...]:
    """The operators of a file in its order; empty if its format does not say how they are connected.

    Operators that only convert types, and those whose results are constant, are left out: what they read is
    read by the operator after them, to which the size of their constants is added. Otherwise, quantized ONNX
    graphs would be mostly these.
    """
    try:
        reads = kind.reads(path)
    except (EdgeoptError, *MALFORMED):  # a missing package, or a damaged file, which its runtime reports
        return ()
    if len(reads) != len(sizes.layers):
        return ()
    nodes: list[GraphNode] = []
    origins: list[
        tuple[int, ...]
    ] = []  # of each operator, the nodes that its result comes from; -1: an input
    carried: list[int] = []  # bytes of constants that the next operator takes over
    for layer, read in zip(sizes.layers, reads, strict=True):
        sources = tuple(dict.fromkeys(node for at in read for node in (origins[at] if at >= 0 else (at,))))
        before = [at for at in read if at >= 0]
        size = layer.weight_bytes + sum(carried[at] for at in before)
        for at in before:
            carried[at] = 0  # counted once, also if several operators read it
        if layer.kind in kind.casts or not sources:
            origins.append(sources)
            carried.append(size)
            continue
        origins.append((len(nodes),))
        carried.append(0)
        name, read_nodes = layer.name.partition(";")[0], tuple(at for at in sources if at >= 0)
        nodes.append(
            GraphNode(name=name, kind=layer.kind, size_bytes=size, macs=layer.macs, reads=read_nodes)
        )
    return tuple(nodes) if len(nodes) <= MAX_NODES else ()
