"""Squares whose root is taken, and cubes inside a tanh, among the operators of a graph.

Layer normalization and GELU out of single operators, as JAX and TensorFlow write them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

NOTE = "variances of normalizations and the cubes of GELU stay in float, which adds no bytes"
WITHIN = frozenset({"add", "mul", "div", "max", "mean", "shape"})
"""Kinds of operators of one computed operand between a square and its root."""
LARGEST = 10
"""Upper bound on the number of operators of a cube."""


class Step(NamedTuple):
    """An operator: its kind, the values that it computes with, constants left out, and its result."""

    kind: str
    """add, sub, mul, div, max, mean or sum, shape if it only moves values, root, inverse, tanh, or empty."""
    operands: tuple[object, ...]
    result: object


def powers(steps: Sequence[Step]) -> list[int]:
    """The places of the operators from squares to their roots, and from cubes to a tanh.

    A square has twice as many digits as its operand, a cube three times as many, of which 8 bits keep the
    first ones: the reciprocal of a small variance, and tanh near 0, depend on the others. The mean whose
    square is subtracted from the mean of squares stays in float, too.
    """
    producers = {step.result: at for at, step in enumerate(steps)}
    found: set[int] = set()
    for at, step in enumerate(steps):
        if step.kind == "root":
            found |= _variance(at, steps, producers)
        elif step.kind == "tanh":
            found |= _cube(at, steps, producers)
    return sorted(found)


def _is_square(step: Step) -> bool:
    return step.kind == "mul" and len(step.operands) == 2 and len(set(step.operands)) == 1


def _variance(root: int, steps: Sequence[Step], producers: Mapping[object, int]) -> set[int]:
    """A root, what makes its operand out of squares, and its inverse; empty for the root of other values."""
    chain, waiting = {root}, list(steps[root].operands)
    while waiting:
        value = waiting.pop()
        if value not in producers:
            return set()
        step = steps[producers[value]]
        chain.add(producers[value])
        if _is_square(step):
            chain |= _mean(step, steps, producers)
        elif step.operands and (step.kind == "sub" or (step.kind in WITHIN and len(step.operands) == 1)):
            waiting += step.operands
        else:
            return set()
    at = root
    while True:
        readers = [place for place, step in enumerate(steps) if steps[at].result in step.operands]
        if len(readers) != 1 or steps[readers[0]].kind not in ("shape", "inverse"):
            return chain
        at = readers[0]
        chain.add(at)


def _mean(square: Step, steps: Sequence[Step], producers: Mapping[object, int]) -> set[int]:
    """The mean that is squared, with its division; empty for the square of another value."""
    chain: set[int] = set()
    value = square.operands[0]
    while value in producers:
        step = steps[producers[value]]
        if step.kind not in WITHIN or len(step.operands) != 1:
            break
        chain.add(producers[value])
        if step.kind == "mean":
            return chain
        value = step.operands[0]
    return set()


def _cube(tanh: int, steps: Sequence[Step], producers: Mapping[object, int]) -> set[int]:
    """The operators of ``tanh(c * (x + d * x * x * x))``; empty for another tanh."""
    chain, leaves, products = {tanh}, set(), 0
    waiting = list(steps[tanh].operands)
    while waiting:
        value = waiting.pop()
        at = producers.get(value)
        step = Step("", (), value) if at is None else steps[at]
        if at is None or not (
            step.kind in ("mul", "shape") or (step.kind == "add" and len(step.operands) == 2)
        ):
            leaves.add(value)
        elif at not in chain:
            chain.add(at)
            products += step.kind == "mul" and len(step.operands) == 2
            waiting += step.operands
        if len(chain) > LARGEST:
            return set()
    return chain if products == 2 and len(leaves) == 1 else set()
