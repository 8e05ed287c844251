"""What tf2onnx needs to convert the graphs of Keras: constants, inlined functions, and further operators."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

Handler: TypeAlias = Callable[[Any, Any, str, Any], None]
COMPILED = ("_XlaMustCompile", "_noinline")
"""Attributes of functions, and of their calls, that keep TensorFlow from inlining them."""


def convert(function: Any, opset: int) -> Any:
    """The ONNX model of a concrete function of TensorFlow; operators without a counterpart keep their names.

    Tensors that the function has captured, such as the mean of a ``Normalization`` layer, become constants:
    tf2onnx makes inputs of them. Functions that TensorFlow compiles with XLA, such as Keras' grouped
    convolutions, are inlined.
    """
    import tf2onnx
    from tf2onnx import tf_loader

    captured = {inner.name: outer for outer, inner in function.graph.captures if inner.dtype != "resource"}
    tensors = [t.name for t in function.inputs if t.dtype != "resource"]
    inputs, outputs = [t for t in tensors if t not in captured], [t.name for t in function.outputs]
    graph = tf_loader.from_function(function, tensors, outputs)
    for node in graph.node:
        if (value := captured.get(f"{node.name}:0")) is not None and node.op == "Placeholder":
            _make_constant(node, value.numpy())
    for element in (
        *graph.node,
        *graph.library.function,
        *(n for f in graph.library.function for n in f.node_def),
    ):
        for name in COMPILED:
            element.attr.pop(name, None)
    proto, _ = tf2onnx.convert.from_graph_def(
        graph,
        name="model",
        input_names=inputs,
        output_names=outputs,
        opset=opset,
        custom_op_handlers={kind: (handler, []) for kind, handler in HANDLERS.items()},
        tensors_to_rename=tf2onnx.convert.tensor_names_from_structed(function, inputs, outputs),
    )
    return proto


def _make_constant(node: Any, value: Any) -> None:
    """Turn a placeholder of a graph into a constant, in place."""
    import tensorflow as tf

    shapes = node.attr.get("_output_shapes")
    node.op = "Const"
    node.attr.clear()
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    if shapes is not None:
        node.attr["_output_shapes"].CopyFrom(shapes)


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """``1 - erf(x)``."""
    _replace(graph, node, "Sub", [_one(graph, node, name), _same(graph, node, "Erf", node.input)])


def _expm1(graph: Any, node: Any, name: str, _: Any) -> None:
    """``exp(x) - 1``."""
    _replace(graph, node, "Sub", [_same(graph, node, "Exp", node.input), _one(graph, node, name)])


def _log1p(graph: Any, node: Any, name: str, _: Any) -> None:
    """``log(1 + x)``."""
    _replace(graph, node, "Log", [_same(graph, node, "Add", [node.input[0], _one(graph, node, name)])])


def _bucketize(graph: Any, node: Any, name: str, _: Any) -> None:
    """The number of boundaries that are not above each value."""
    from onnx import TensorProto

    boundaries = np.asarray(node.get_attr_value("boundaries"), np.float32)
    values = graph.make_node("Cast", node.input, attr={"to": TensorProto.FLOAT}, name=f"{name}/Cast").output[
        0
    ]
    axis = graph.make_const(f"{name}/axis", np.array([-1], np.int64)).output[0]
    edges = graph.make_const(f"{name}/boundaries", boundaries).output[0]
    column = graph.make_node("Unsqueeze", [values, axis], name=f"{name}/Unsqueeze").output[0]
    above = graph.make_node("GreaterOrEqual", [column, edges], name=f"{name}/GreaterOrEqual").output[0]
    counted = graph.make_node("Cast", [above], attr={"to": TensorProto.INT32}, name=f"{name}/Count").output[0]
    _replace(graph, node, "ReduceSum", [counted, axis], {"keepdims": 0})


def _one(graph: Any, node: Any, name: str) -> str:
    from tf2onnx import utils

    kind = utils.map_onnx_to_numpy_type(graph.get_dtype(node.input[0]))
    constant: str = graph.make_const(f"{name}/one", np.array(1, kind)).output[0]
    return constant


def _same(graph: Any, node: Any, kind: str, inputs: list[str]) -> str:
    """The output of a new operator, of the shape and type of a node's."""
    shapes, types = node.output_shapes, node.output_dtypes
    made = graph.make_node(kind, inputs, name=f"{node.name}/{kind}", shapes=shapes, dtypes=types)
    output: str = made.output[0]
    return output


def _replace(
    graph: Any, node: Any, kind: str, inputs: list[str], attributes: Mapping[str, Any] | None = None
) -> None:
    shapes, types = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    graph.make_node(
        kind, inputs, attr=attributes, name=node.name, outputs=node.output, shapes=shapes, dtypes=types
    )


HANDLERS: Mapping[str, Handler] = {"Erfc": _erfc, "Expm1": _expm1, "Log1p": _log1p, "Bucketize": _bucketize}
"""Operators of TensorFlow that tf2onnx lacks, in terms of those of ONNX."""
