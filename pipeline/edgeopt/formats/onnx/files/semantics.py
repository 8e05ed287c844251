"""ONNX files as semantic graphs, independent of names and positions."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from edgeopt.errors import MissingPackageError, install
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.semantic_graph import Graph, Node, digest


def graphs_of(path: Path) -> tuple[Graph, ...]:
    """The main graph of an ONNX file and its local functions.

    Ignored: names, producer, documentation, metadata, inferred shapes, names of free dimensions.

    Raises:
        StageError: the file is damaged.
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("comparing ONNX files requires onnx", fix=install("onnx")) from error
    model = onnx_model_file.load(path)
    versions = sorted((entry.domain, entry.version) for entry in model.opset_import)
    return (_graph(model.graph, digest(*versions)), *map(_function, model.functions))


def _graph(graph: Any, versions: str = "") -> Graph:
    constants: dict[Hashable, str] = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    for sparse in graph.sparse_initializer:
        indices = tuple(sparse.dims), _tensor(sparse.indices)
        constants[sparse.values.name] = digest(indices, _tensor(sparse.values))
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    ends = [*graph.input, *graph.output]
    facts: dict[Hashable, str] = {value.name: digest(_type(value.type)) for value in ends}
    nodes = tuple(map(_node, graph.node))
    outputs = tuple(value.name for value in graph.output)
    return Graph(nodes, inputs, outputs, constants, facts, versions)


def _function(function: Any) -> Graph:
    nodes = tuple(map(_node, function.node))
    name = digest(function.domain, function.name)
    facts: dict[Hashable, str] = dict.fromkeys([*function.input, *function.output], name)
    return Graph(nodes, tuple(function.input), tuple(function.output), {}, facts)


def _node(node: Any) -> Node:
    # The order of attributes has no meaning.
    attributes = sorted(node.attribute, key=lambda attribute: str(attribute.name))
    bodies = [
        graph
        for entry in attributes
        for graph in [*([entry.g] if entry.HasField("g") else []), *entry.graphs]
    ]
    return Node(
        f"{node.domain}:{node.op_type}" if node.domain else str(node.op_type),
        digest(*map(_attribute, attributes)),
        tuple(name or None for name in node.input),
        tuple(node.output),
        tuple(map(_graph, bodies)),
    )


def _attribute(attribute: Any) -> tuple[object, ...]:
    """The values of an attribute; of its subgraphs only the number, as they are compared as ``bodies``."""
    numbers = (attribute.f, attribute.i, *attribute.floats, *attribute.ints)
    tensors = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    texts = (attribute.s, *attribute.strings)
    return (
        attribute.name,
        attribute.type,
        attribute.ref_attr_name,
        numbers,
        texts,
        tuple(map(_tensor, tensors)),
        len(attribute.graphs),
    )


def _tensor(tensor: Any) -> str:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.STRING:
        return digest(tuple(tensor.dims), tuple(tensor.string_data))
    return digest(tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())


def _type(kind: Any) -> tuple[object, ...]:
    if not kind.HasField("tensor_type"):
        return (kind.WhichOneof("value"),)
    tensor = kind.tensor_type
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return (tensor.elem_type, tuple(sizes), tensor.HasField("shape"))
