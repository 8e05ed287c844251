"""Squares whose root is taken, and cubes inside a tanh, in an ONNX graph.

Layer normalization and GELU out of single operators, as JAX and TensorFlow write them.
"""

from collections.abc import Callable
from typing import Any

WITHIN = frozenset("Add Mul Div Max ReduceMean ReduceSum GlobalAveragePool Reshape Expand Squeeze".split())
"""Operators of one computed operand between a square and its root."""
NOTE = "variances of normalizations and the cubes of GELU stay in float, which adds no bytes"


def powers(model: Any) -> list[str]:
    """The names of the nodes from squares to their roots, and from cubes to a tanh; every node has a name.

    A square has twice as many digits as its operand, a cube three times as many, of which 8 bits keep the
    first ones: the reciprocal of a small variance, and tanh near 0, depend on the others. The mean whose
    square is subtracted from the mean of squares stays in float, too.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    producers = {output: node for node in model.graph.node for output in node.output}

    def sources(node: Any) -> list[Any]:
        return [producers[value] for value in _computed(node, constants) if value in producers]

    found: dict[str, None] = {}
    for node in model.graph.node:
        chain: list[Any] = []
        if node.op_type == "Sqrt":
            readers = [each for each in model.graph.node if node.output[0] in each.input]
            inside = sources(node)
            chain += [node, *(each for each in readers if each.op_type == "Reciprocal")]
            if not inside or not all(_variance(each, sources, constants, chain) for each in inside):
                chain = []
        elif node.op_type == "Tanh":
            chain = _cube(node, sources, constants)
        found |= dict.fromkeys(each.name for each in chain)
    return [node.name for node in model.graph.node if node.name in found]


def _computed(node: Any, constants: set[str]) -> list[str]:
    """The values that a node reads and that depend on an input, each once."""
    return list(dict.fromkeys(value for value in node.input if value and value not in constants))


def _is_square(node: Any, constants: set[str]) -> bool:
    return node.op_type == "Mul" and len(node.input) == 2 and node.input[0] == node.input[1]


def _variance(node: Any, sources: Callable[[Any], list[Any]], constants: set[str], chain: list[Any]) -> bool:
    """Whether a value is made of squares alone; ``chain`` gets their nodes and the means that are squared."""
    chain.append(node)
    if _is_square(node, constants):
        chain += _mean(node, sources, constants)
        return True
    if node.op_type == "Sub" or (node.op_type in WITHIN and len(_computed(node, constants)) == 1):
        inner = sources(node)
        return bool(inner) and all(_variance(each, sources, constants, chain) for each in inner)
    return False


def _mean(square: Any, sources: Callable[[Any], list[Any]], constants: set[str]) -> list[Any]:
    """The nodes of the mean that is squared; empty for the square of another value."""
    chain: list[Any] = []
    inner = sources(square)
    while len(inner) == 1 and inner[0].op_type in WITHIN and len(_computed(inner[0], constants)) == 1:
        chain.append(inner[0])
        if inner[0].op_type.startswith("Reduce"):
            return chain
        inner = sources(inner[0])
    return []


def _cube(tanh: Any, sources: Callable[[Any], list[Any]], constants: set[str]) -> list[Any]:
    """The nodes of ``tanh(c * (x + d * x * x * x))``; empty for another tanh."""
    chain, waiting, leaves = [tanh], list(sources(tanh)), set()
    products = 0
    while waiting and len(chain) <= 8:
        node = waiting.pop()
        if node.name in {each.name for each in chain}:
            continue
        several = len(_computed(node, constants)) > 1 or _is_square(node, constants)
        is_scaled = node.op_type == "Mul" and not several
        if not (is_scaled or (node.op_type in ("Add", "Mul") and several)):
            leaves.add(node.name)
            continue
        products += node.op_type == "Mul" and several
        chain.append(node)
        waiting += sources(node)
    return chain if products == 2 and len(leaves) == 1 and not waiting else []
