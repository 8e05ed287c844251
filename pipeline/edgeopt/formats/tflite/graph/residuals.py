"""Residual streams between normalizations in a TFLite graph, which has no operator for a normalization."""

from collections.abc import Sequence

from edgeopt.formats.residuals import streams
from edgeopt.formats.tflite.files.graphs import Operation, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile

ROOTS = frozenset({"RSQRT", "SQRT"})
SQUARES = frozenset({"SQUARED_DIFFERENCE", "SQUARE"})
WITHIN = ROOTS | SQUARES | frozenset("ADD SUB MUL DIV MEAN SUM RESHAPE".split())
"""Operators of a normalization."""
MOVES = frozenset(
    "RESHAPE TRANSPOSE SQUEEZE EXPAND_DIMS SLICE STRIDED_SLICE CONCATENATION PACK UNPACK SPLIT".split()
)
"""Operators that only move values."""


def residual(file: TfliteFile) -> list[str]:
    """The outputs of the operators of residual streams and their normalizations in the main graph."""
    graph = _Flow(graphs_of(file)[0].operations)
    normalizations = {square: graph.normalization(square) for square in graph.squares()}
    inner = {at for each in normalizations.values() for at in each}

    def inputs(at: int) -> list[int]:
        own = normalizations.get(at, ())
        return [
            source
            for source in graph.sources(at)
            if source not in own and (source in inner or graph.operations[source].kind in MOVES | {"ADD"})
        ]

    def is_sum(at: int) -> bool:
        return graph.operations[at].kind == "ADD" and len(graph.computed(at)) == 2 and at not in inner

    kept = streams(list(normalizations), inputs, is_sum)
    whole = {at for start in kept for at in normalizations.get(start, ())} | set(kept)
    return [graph.operations[at].outputs[0].name for at in sorted(whole)]


class _Flow:
    """The operators of a graph, by which values they read and make."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self.producers = {tensor.number: at for at, each in enumerate(operations) for tensor in each.outputs}

    def computed(self, at: int) -> list[int]:
        """The numbers of the tensors that an operator reads and that are not constant."""
        return [tensor.number for tensor in self.operations[at].present if not tensor.is_constant]

    def sources(self, at: int) -> list[int]:
        """The operators whose results an operator reads."""
        return [self.producers[tensor] for tensor in self.computed(at) if tensor in self.producers]

    def squares(self) -> list[int]:
        """The squares of differences whose root is taken."""
        found: set[int] = set()
        waiting = [at for at, each in enumerate(self.operations) if each.kind in ROOTS]
        while waiting:
            at = waiting.pop()
            if self.operations[at].kind in SQUARES:
                found.add(at)
            elif self.operations[at].kind in WITHIN and len(set(self.computed(at))) == 1:
                waiting.extend(self.sources(at))
        return sorted(found)

    def normalization(self, square: int) -> set[int]:
        """The operators that make a normalization of what is squared: they read nothing else."""
        given = {tensor for tensor in self.computed(square) if not self._is_mean(tensor)}
        known, closed = set(given), set[int]()
        for at, each in enumerate(self.operations):
            if each.kind in WITHIN and (read := self.computed(at)) and known.issuperset(read):
                closed.add(at)
                known.update(tensor.number for tensor in each.outputs)
        after = self._reach(closed, {square}, forward=True)
        return self._reach(closed, after, forward=False)

    def _is_mean(self, tensor: int) -> bool:
        at = self.producers.get(tensor)
        while at is not None and self.operations[at].kind == "RESHAPE":
            at = next(iter(self.sources(at)), None)
        return at is not None and self.operations[at].kind == "MEAN"

    def _reach(self, within: set[int], start: set[int], *, forward: bool) -> set[int]:
        """``start`` and what depends on it, or what it depends on, among some operators."""
        found = set(start)
        for at in sorted(within, reverse=not forward):
            readers = self.sources(at) if forward else ()
            if forward and found.intersection(readers):
                found.add(at)
            elif not forward and at in found:
                found.update(within.intersection(self.sources(at)))
        return found
