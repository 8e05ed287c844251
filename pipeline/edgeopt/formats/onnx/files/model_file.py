"""ONNX model files: loading, input and output specs, opset conversion, removal of metadata."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files.header import SINGLE_FILE
from edgeopt.formats.untrusted import onnx_files
from edgeopt.model import Layout, TensorSpec

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with nearly all weights and MACs of a network."""

LARGE = 1024
"""Bytes from which equal constants are stored once; biases, whose int8 scales differ, stay apart."""


def load(path: Path) -> Any:
    """Load a file as a ``ModelProto``.

    Raises:
        StageError: the file is not an ONNX model, or reads tensors from outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        outside = onnx_files.findings(path)
        if outside:
            raise StageError(f"{path.name} is rejected: {outside[0]}", fix=SINGLE_FILE)
        model = onnx.load(str(path))
    except (DecodeError, ValueError) as error:
        raise StageError(f"{path.name} is not an ONNX model: {error}") from error
    if not model.graph.output:
        raise StageError(f"{path.name} is not an ONNX model: it has no graph outputs")
    return model


def specs(model: Any, layout: Layout | None = None) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of the inputs and outputs in graph order; ``layout`` applies to inputs of rank 4."""
    # Before IR version 4, initializers had to be listed among the graph inputs.
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value, layout) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_spec(value, None) for value in model.graph.output)


def _spec(value: Any, layout: Layout | None) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, shape=shape, dtype=dtype, layout=layout if len(shape) == 4 else None)


def count(model: Any, kind: str) -> int:
    """The number of nodes of an operator type, such as ``Transpose``."""
    return Counter(node.op_type for node in model.graph.node)[kind]


def float_weighted(model: Any) -> list[str]:
    """Convolutions and matrix products whose input or weights do not come from a DequantizeLinear."""
    producer = {output: node for node in model.graph.node for output in node.output}
    unquantized = []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        sources = [producer.get(name) for name in node.input[:2]]
        if any(source is None or source.op_type != "DequantizeLinear" for source in sources):
            unquantized.append(f"{node.op_type} {node.name or node.output[0]}")
    return unquantized


def fix_sizes(model: Any, inputs: Sequence[TensorSpec]) -> None:
    """Give the free axes of a model's inputs the sizes in ``inputs``, and all axes of the same symbol."""
    by_name = {spec.name: spec.shape for spec in inputs}
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        shape = by_name.get(value.name, ())
        for dimension, size in zip(dimensions, shape, strict=False):
            if size is not None and not dimension.HasField("dim_value"):
                sizes[dimension.dim_param] = size
                dimension.dim_value = size
    sizes.pop("", None)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]


def share_constants(model: Any) -> None:
    """Store large constants that are equal once, under the name of the first.

    A layer that is called twice, with a batch norm folded into it, has one for each call.
    """
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    kept = []
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= LARGE and tensor.name not in fixed:
            same = first.setdefault((tensor.data_type, tuple(tensor.dims), tensor.raw_data), tensor.name)
            if same != tensor.name:
                names[tensor.name] = same
                continue
        kept.append(type(tensor).FromString(tensor.SerializeToString()))
    if names:
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        _rename_inputs(model.graph, names)


def _rename_inputs(graph: Any, names: Mapping[str, str]) -> None:
    """Let the nodes of a graph and of its subgraphs read other names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_inputs(attribute.g, names)


def strip(model: Any) -> None:
    """Remove traces of how the file was made: inferred shapes, tool metadata, stack traces, paths."""
    for owner in (model, model.graph, *model.graph.node):
        del owner.metadata_props[:]
        owner.doc_string = ""
    del model.graph.value_info[:]


def at_opset(model: Any, version: int, reason: str) -> Any:
    """Convert the model to at least this opset version; ``reason`` names the feature that requires it.

    Raises:
        StageError: an operator cannot be converted.
    """
    from onnx import version_converter
    from onnx.onnx_cpp2py_export.version_converter import ConvertError

    current = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if current >= version:
        return model
    try:
        return version_converter.convert_version(model, version)
    except (ConvertError, RuntimeError, ValueError) as error:
        raise StageError(
            f"the model cannot be converted to ONNX opset {version}, required for {reason}: {error}",
            fix="choose another scheme, or export the model with a newer opset",
        ) from error
