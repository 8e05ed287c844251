"""Inputs, outputs and operators of an ONNX file, read from the wire format without the onnx package.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections import Counter
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.specs import tensor
from edgeopt.formats.untrusted import onnx_files
from edgeopt.formats.untrusted.protobuf import fields, mapped, messages, number, text
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin.contents import Source

SINGLE_FILE = "load the model where it was made and save it as a single file: onnx.save(model, 'model.onnx')"
FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
"""Field numbers of ModelProto."""
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


def read(path: Path) -> Source:
    """The model in an ONNX file.

    Raises:
        UsageError: tensors are stored outside the folder of the file.
    """
    outside = onnx_files.findings(path)
    if outside:
        raise UsageError(f"{path} is rejected: {outside[0]}", fix=SINGLE_FILE)
    with mapped(path) as data:
        graph = next(messages(data, 7))
        weights = {text(weight, 8) for weight in messages(graph, 5)}
        operators = Counter(text(node, 4) for node in messages(graph, 1))
        inputs = tuple(spec for spec in _specs(graph, 11) if spec.name not in weights)
        model = Model(format="onnx", path=path, inputs=inputs, outputs=_specs(graph, 12))
    return Source(model=model, layers=dict(operators))


def _specs(graph: memoryview, field: int) -> tuple[TensorSpec, ...]:
    specs = []
    for info in messages(graph, field):
        shape = tuple(number(dimension, 1) or None for dimension in messages(info, 2, 1, 2, 1))
        element = next((number(kind, 1) for kind in messages(info, 2, 1)), 0)
        # The layout is unknown: both NCHW and NHWC are common in ONNX files.
        specs.append(tensor(text(info, 1), shape, TYPES.get(element, "unknown"), None))
    return tuple(specs)
