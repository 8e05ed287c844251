"""What a TFLite or ONNX file computes, without what its parts are called or where they lie in it."""

import hashlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import MissingPackageError
from edgeopt.formats.onnx.files import model_file as onnx_file
from edgeopt.formats.tflite.files.model_file import data_of, kind_of, load
from edgeopt.formats.tflite.files.slimming import plain
from edgeopt.formats.wire.flatbuffer import Table, Vector


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


def of_tflite(path: Path) -> tuple[Graph, ...]:
    """The graphs of a TFLite file.

    Left out: names, minimum and maximum from calibration, signatures, metadata, buffer numbers.

    Raises:
        StageError: the file is damaged.
    """
    model = load(path).model
    codes = [
        (kind_of(code), digest(code.integer("version", 1), code.text("custom_code")))
        for code in model.tables("operator_codes")
    ]
    buffers = [data_of(buffer) for buffer in model.tables("buffers")]
    return tuple(_tflite_graph(subgraph, codes, buffers) for subgraph in model.tables("subgraphs"))


def _tflite_graph(subgraph: Table, codes: list[tuple[str, str]], buffers: list[bytes]) -> Graph:
    constants: dict[Hashable, str] = {}
    facts: dict[Hashable, str] = {}
    for number, tensor in enumerate(subgraph.tables("tensors")):
        facts[number] = _tflite_facts(tensor)
        if content := buffers[tensor.integer("buffer")]:
            constants[number] = digest(facts[number], content)
    nodes = []
    for operator in subgraph.tables("operators"):
        kind, version = codes[operator.integer("opcode_index")]
        bare = operator.but("opcode_index", "inputs", "outputs", "debug_metadata_index")
        nodes.append(
            Node(
                kind,
                digest(version, plain(_without_empty(bare))),
                tuple(None if number < 0 else number for number in operator.numbers("inputs")),
                tuple(operator.numbers("outputs")),
            )
        )
    ends = tuple(subgraph.numbers("inputs")), tuple(subgraph.numbers("outputs"))
    return Graph(tuple(nodes), *ends, constants, facts)


def _tflite_facts(tensor: Table) -> str:
    bare = tensor.but("buffer", "name", "quantization", "shape_signature")
    quantization = tensor.table("quantization")
    known = quantization and quantization.but("min", "max")
    shape = tensor.numbers("shape_signature")
    return digest(
        plain(_without_empty(bare)),
        plain(_without_empty(known))
        if known and (known.numbers("scale") or known.table("details"))
        else None,
        tuple(shape) if shape != tensor.numbers("shape") else (),
    )


def _without_empty(table: Table) -> Table:
    """A vector without elements says the same as none."""
    empty = [name for name, part in table.fields.items() if isinstance(part, Vector) and not part.data]
    return table.but(*empty)


def of_onnx(path: Path) -> tuple[Graph, ...]:
    """The graph of an ONNX file, and the functions that it brings.

    Left out: names, who made it, documentation, metadata, shapes in between, names of free dimensions.

    Raises:
        StageError: the file is damaged.
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "comparing ONNX files needs onnx", fix="pip install 'edgeopt[onnx]'"
        ) from error
    model = onnx_file.load(path)
    versions = sorted((entry.domain, entry.version) for entry in model.opset_import)
    return (_onnx_graph(model.graph, digest(*versions)), *map(_onnx_function, model.functions))


def _onnx_graph(graph: Any, versions: str = "") -> Graph:
    constants: dict[Hashable, str] = {tensor.name: _onnx_tensor(tensor) for tensor in graph.initializer}
    for sparse in graph.sparse_initializer:
        indices = tuple(sparse.dims), _onnx_tensor(sparse.indices)
        constants[sparse.values.name] = digest(indices, _onnx_tensor(sparse.values))
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    ends = [*graph.input, *graph.output]
    facts: dict[Hashable, str] = {value.name: digest(_onnx_type(value.type)) for value in ends}
    nodes = tuple(map(_onnx_node, graph.node))
    outputs = tuple(value.name for value in graph.output)
    return Graph(nodes, inputs, outputs, constants, facts, versions)


def _onnx_function(function: Any) -> Graph:
    nodes = tuple(map(_onnx_node, function.node))
    name = digest(function.domain, function.name)
    facts: dict[Hashable, str] = dict.fromkeys([*function.input, *function.output], name)
    return Graph(nodes, tuple(function.input), tuple(function.output), {}, facts)


def _onnx_node(node: Any) -> Node:
    attributes = sorted(node.attribute, key=lambda attribute: str(attribute.name))
    bodies = [
        graph
        for entry in attributes
        for graph in [*([entry.g] if entry.HasField("g") else []), *entry.graphs]
    ]
    return Node(
        f"{node.domain}:{node.op_type}" if node.domain else str(node.op_type),
        digest(*map(_onnx_attribute, attributes)),
        tuple(name or None for name in node.input),
        tuple(node.output),
        tuple(map(_onnx_graph, bodies)),
    )


def _onnx_attribute(attribute: Any) -> tuple[object, ...]:
    """All of an attribute but the graphs in it, of which the number counts here."""
    numbers = (attribute.f, attribute.i, *attribute.floats, *attribute.ints)
    tensors = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    texts = (attribute.s, *attribute.strings)
    return (
        attribute.name,
        attribute.type,
        attribute.ref_attr_name,
        numbers,
        texts,
        tuple(map(_onnx_tensor, tensors)),
        len(attribute.graphs),
    )


def _onnx_tensor(tensor: Any) -> str:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.STRING:
        return digest(tuple(tensor.dims), tuple(tensor.string_data))
    return digest(tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())


def _onnx_type(kind: Any) -> tuple[object, ...]:
    if not kind.HasField("tensor_type"):
        return (kind.WhichOneof("value"),)
    tensor = kind.tensor_type
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return (tensor.elem_type, tuple(sizes), tensor.HasField("shape"))
