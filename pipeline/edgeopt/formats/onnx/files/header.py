"""Inputs, outputs and operators of an ONNX file, read from the wire format without the onnx package.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.formats.specs import tensor
from edgeopt.formats.untrusted import onnx_files
from edgeopt.formats.untrusted.protobuf import fields, integers, mapped, messages, number, text
from edgeopt.model import Layout, Model, TensorSpec
from edgeopt.plugin.contents import Source

SINGLE_FILE = "load the model where it was made and save it as a single file: onnx.save(model, 'model.onnx')"
FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
"""Field numbers of ModelProto."""
IMAGE_OPERATORS = frozenset(
    "AveragePool BatchNormalization Conv ConvTranspose GlobalAveragePool GroupNormalization "
    "InstanceNormalization MaxPool".split()
)
"""Operators whose axis 1 is that of the channels."""
SAME_SHAPE = frozenset("Add Cast Div Identity Mul Pad Sub".split())
"""Operators that usually prepare an image, and keep the order of its axes."""
TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}


def is_onnx(path: Path) -> bool:
    """Whether the file is a ModelProto: a plausible IR version, a graph, and known fields only."""
    # Protobuf has no magic number, and many binary files parse as some message.
    version, graph = 0, False
    with mapped(path) as data:
        try:
            for field, value in fields(data):
                if field not in FIELDS:
                    return False
                if field == 1:
                    version = value if isinstance(value, int) else 0
                graph = graph or (field == 7 and isinstance(value, memoryview))
        except ValueError:
            return False
    return 0 < version < 1000 and graph


def files(path: Path) -> tuple[Path, ...]:
    """The file, and those beside it that hold weights.

    Locations elsewhere are no files of the model, and a damaged file names none: `read` rejects both.

    Raises:
        UsageError: a file with weights is missing.
    """
    try:
        others = sorted({location for _, location in onnx_files.external(path) if _is_beside(path, location)})
    except ValueError:
        return (path,)
    for location in others:
        if not (path.parent / location).is_file():
            raise UsageError(
                f"{path} has weights in {location}, which is missing", fix=f"copy it to {path.parent}"
            )
    return (path, *(path.parent / location for location in others))


def _is_beside(path: Path, location: str) -> bool:
    return onnx_files.inside(location, path.resolve().parent) and not re.search(r"[/\\]", location)


def read(path: Path) -> Source:
    """The model in an ONNX file.

    Raises:
        UsageError: tensors are stored outside the folder of the file, or in a file that is missing.
    """
    if outside := onnx_files.findings(path):
        raise UsageError(f"{path} is rejected: {outside[0]}", fix=SINGLE_FILE)
    for _, location in onnx_files.external(path):
        if not _is_beside(path, location):
            raise UsageError(f"{path} has weights in {location}, in another folder", fix=SINGLE_FILE)
    files(path)
    with mapped(path) as data:
        graph = next(messages(data, 7))
        weights = {text(weight, 8) for weight in messages(graph, 5)}
        operators = Counter(text(node, 4) for node in messages(graph, 1))
        inputs = tuple(
            spec.model_copy(update={"layout": _layout(graph, spec.name) if len(spec.shape) == 4 else None})
            for spec in _specs(graph, 11)
            if spec.name not in weights
        )
        model = Model(format="onnx", path=path, inputs=inputs, outputs=_specs(graph, 12))
    return Source(model=model, layers=dict(operators))


class Node(NamedTuple):
    """A node of the main graph."""

    name: str
    """Its name; without one, that of its first output."""
    operator: str
    domain: str


def nodes(path: Path) -> tuple[Node, ...]:
    """The nodes of the main graph, without those that call a function of the file."""
    with mapped(path) as data:
        functions = {(text(each, 1), text(each, 10)) for each in messages(data, 25)}
        found = [
            Node(text(node, 3) or _first_output(node), kind, domain)
            for node in messages(next(messages(data, 7)), 1)
            if ((kind := text(node, 4)), (domain := text(node, 7))) not in functions
        ]
    return tuple(found)


def _first_output(node: memoryview) -> str:
    return next((bytes(name).decode() for name in messages(node, 2)), "")


def _layout(graph: memoryview, name: str) -> Layout | None:
    """The layout of an image, by the first node that tells it; None if none does.

    Convolutions and pooling of ONNX take NCHW; exporters from TensorFlow transpose an input to that.
    """
    names = {name}
    for node in messages(graph, 1):
        first = next((bytes(value).decode() for value in messages(node, 1)), "")
        if first not in names:
            continue
        kind = text(node, 4)
        if kind in IMAGE_OPERATORS:
            return "NCHW"
        if kind == "Transpose":
            orders = (
                integers(attribute, 8) for attribute in messages(node, 5) if text(attribute, 1) == "perm"
            )
            return "NHWC" if next(orders, []) == [0, 3, 1, 2] else None
        if kind not in SAME_SHAPE:
            return None
        names.add(_first_output(node))
    return None


def _specs(graph: memoryview, field: int) -> tuple[TensorSpec, ...]:
    specs = []
    for info in messages(graph, field):
        shape = tuple(number(dimension, 1) or None for dimension in messages(info, 2, 1, 2, 1))
        element = next((number(kind, 1) for kind in messages(info, 2, 1)), 0)
        specs.append(tensor(text(info, 1), shape, TYPES.get(element, "unknown"), None))
    return tuple(specs)
