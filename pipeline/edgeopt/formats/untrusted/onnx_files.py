"""Tensors of an ONNX file that are stored in a file outside its folder.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .protobuf import fields, mapped, messages, text

_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""The fields of each message that may contain tensors."""
_EXTERNAL = 13


def findings(path: Path) -> list[str]:
    """The locations of external data outside the folder of the file.

    Raises:
        ValueError: the file is damaged.
    """
    folder = path.resolve().parent
    found = [
        f"the tensor {name!r} is stored in {location!r}, outside the folder"
        for name, location in external(path)
        if not inside(location, folder)
    ]
    return list(dict.fromkeys(found))


def external(path: Path) -> list[tuple[str, str]]:
    """The name of each tensor that is stored in another file, and the location of that file.

    Raises:
        ValueError: the file is damaged.
    """
    with mapped(path) as data:
        return list(_external(data))


def _external(model: memoryview) -> Iterator[tuple[str, str]]:
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        nested = _NESTED[kind]
        for number, value in fields(message):
            if isinstance(value, memoryview) and number in nested:
                waiting.append((nested[number], value))
        if kind == "tensor":
            for entry in messages(message, _EXTERNAL):
                if b"location" in (bytes(key) for key in messages(entry, 1)):
                    # Every occurrence of a field: protobuf readers take the last one.
                    for location in messages(entry, 2):
                        yield text(message, 8), bytes(location).decode()


def inside(location: str, folder: Path) -> bool:
    """Whether a location of external data is in the resolved folder of the file."""
    # '*' begins the marker with which ONNX Runtime takes the offset for an address in memory.
    if not location or re.search(r"^[/\\]|^\w:|\*|\0", location) or ".." in re.split(r"[/\\]", location):
        return False
    place = (folder / location).resolve()
    return folder in place.parents
