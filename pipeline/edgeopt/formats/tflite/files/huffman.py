"""Huffman codes of int8 values, as the DECODE operator of TensorFlow Lite Micro reads them.

The bits of a code select an entry of a table. An entry holds a value and how many of the bits that were read
belong to its code, or the distance to the next table and how many more bits select its entry.

Source: tflite-micro, ``kernels/decode_state_huffman.{h,cc}``, 16-bit tables ("Xtensa format").
"""

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError

FOUND = 0x8000
COUNT_SHIFT = 11
COUNT = 0x0F
DISTANCE = 0x07FF
WIDEST = 8
"""Most bits that select an entry of one table: a table of 256 entries is read in one step."""
WORD = 4
"""The decoder reads words of this many bytes."""

Node: TypeAlias = "int | tuple[Node, Node]"
"""A value, or the nodes below the bits 0 and 1."""


class Code(NamedTuple):
    """The code of each value, as its bits, and their number."""

    bits: dict[int, int]
    lengths: dict[int, int]
    root: Node

    @property
    def tables(self) -> "Tables":
        """The smallest tables that decode it."""
        layout = _Layout()
        first = layout.place(self.root)
        return Tables(first, np.asarray(layout.entries, "<u2").tobytes())


class Tables(NamedTuple):
    """Tables as stored; ``first`` is the number of bits that select an entry of the first one."""

    first: int
    content: bytes


def lengths_of(counts: Mapping[int, float]) -> dict[int, int]:
    """The number of bits of the code of each value, for the fewest bits in total.

    A value alone has a code of one bit. Source: Huffman 1952; ties are broken by the values, so that equal
    counts always give the same code.
    """
    heap: list[tuple[float, int, tuple[int, ...]]] = [
        (count, number, (value,)) for number, (value, count) in enumerate(sorted(counts.items()))
    ]
    heapq.heapify(heap)
    lengths = dict.fromkeys(counts, 0)
    number = len(heap)
    while len(heap) > 1:
        (first, _, low), (second, _, high) = heapq.heappop(heap), heapq.heappop(heap)
        for value in (*low, *high):
            lengths[value] += 1
        heapq.heappush(heap, (first + second, number, (*low, *high)))
        number += 1
    return lengths if len(lengths) > 1 else dict.fromkeys(lengths, 1)


def code_of(lengths: Mapping[int, int]) -> Code:
    """The canonical code with these lengths: short codes first, and in the order of the values."""
    bits: dict[int, int] = {}
    following, before = 0, 0
    for value, length in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        following <<= length - before
        bits[value] = following
        following, before = following + 1, length
    return Code(bits, dict(lengths), _tree([(value, bits[value], lengths[value]) for value in bits], 0))


def _tree(codes: list[tuple[int, int, int]], depth: int) -> Node:
    """The tree of codes ``(value, bits, length)`` with the same first ``depth`` bits."""
    if len(codes) == 1 and codes[0][2] == depth:
        return codes[0][0]
    below: tuple[list[tuple[int, int, int]], ...] = ([], [])
    for code in codes:
        below[code[1] >> (code[2] - 1 - depth) & 1].append(code)
    # The code of a value alone has an unused branch.
    zero, one = (_tree(part or codes, depth + 1) for part in below)
    return zero, one


class _Layout:
    """Places the tables of a code one after the other."""

    def __init__(self) -> None:
        self.entries: list[int] = []
        self.known: dict[int, tuple[int, int]] = {}

    def place(self, node: Node) -> int:
        """Append the tables that decode ``node``; returns the bits that select an entry of the first one."""
        width = -self._cheapest(node)[1]
        start = len(self.entries)
        self.entries += [0] * (1 << width)
        for at, (inner, depth) in enumerate(_entries(node, width), start):
            if isinstance(inner, int):
                self.entries[at] = FOUND | depth << COUNT_SHIFT | (inner & 0xFF)
            else:
                distance = len(self.entries) - at
                self.entries[at] = (self.place(inner) - 1) << COUNT_SHIFT | distance
        return width

    def _cheapest(self, node: Node) -> tuple[int, int]:
        """The fewest entries of tables that decode ``node``, and minus the bits of the first one."""
        if id(node) not in self.known:
            costs = []
            for width in range(1, WIDEST + 1):
                inner = [each for each, _ in _entries(node, width) if not isinstance(each, int)]
                costs.append(((1 << width) + sum(self._cheapest(each)[0] for each in inner), -width))
                if not inner:
                    break
            self.known[id(node)] = min(costs)
        return self.known[id(node)]


def _entries(node: Node, width: int, depth: int = 0) -> Iterable[tuple[Node, int]]:
    """The entries of a table of ``width`` bits: the node of each, and how many bits lead to it."""
    if isinstance(node, int) or width == depth:
        for _ in range(1 << (width - depth)):
            yield node, depth
    else:
        for part in node:
            yield from _entries(part, width, depth + 1)


def encoded(values: NDArray[np.int8], code: Code) -> bytes:
    """The codes of ``values``, one after the other, and as many zeros as the decoder may read ahead."""
    codes, lengths = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for value, bits in code.bits.items():
        codes[value & 0xFF], lengths[value & 0xFF] = bits, code.lengths[value]
    flat = values.reshape(-1).view(np.uint8)
    each = lengths[flat]
    total = int(each.sum())
    starts = np.cumsum(each) - each
    shifts = each.repeat(each) - 1 - (np.arange(total) - starts.repeat(each))
    packed = np.packbits((codes[flat].repeat(each) >> shifts & 1).astype(np.uint8)).tobytes()
    size = -(-(total + WIDEST) // (8 * WORD)) * WORD
    return packed + bytes(size - len(packed))


def decoded(stream: bytes, first: int, tables: bytes, count: int, name: str) -> NDArray[np.int8]:
    """``count`` values; ``first`` bits select an entry of the first table.

    Raises:
        StageError: the codes or the tables are damaged; the message begins with ``name``.
    """
    entries = np.frombuffer(tables, "<u2", len(tables) // 2).tolist()
    size, at = 8 * len(stream), 0
    values = bytearray()
    try:
        while len(values) < count:
            taken, place = first, 0
            while True:
                if at + taken > size:
                    raise IndexError
                # At most 7 bits before and 16 bits of the code: three bytes.
                part = int.from_bytes(stream[at >> 3 : (at >> 3) + 3].ljust(3, b"\0"), "big")
                place += part >> (24 - (at & 7) - taken) & ((1 << taken) - 1)
                at += taken
                entry = entries[place]
                if entry & FOUND:
                    break
                taken = (entry >> COUNT_SHIFT & COUNT) + 1
                place += entry & DISTANCE
            at -= taken - (entry >> COUNT_SHIFT & COUNT)
            values.append(entry & 0xFF)
    except IndexError:
        raise StageError(
            f"{name} is damaged: its compressed weights are incomplete", fix="export the file again"
        ) from None
    return np.frombuffer(bytes(values), np.int8)
