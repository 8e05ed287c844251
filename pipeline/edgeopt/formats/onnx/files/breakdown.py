"""Size breakdown of an ONNX file by protobuf message, and the MACs of its layers."""

from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import MissingPackageError, install
from edgeopt.formats.arithmetic import product, sparsity, total_macs
from edgeopt.formats.onnx.files.model_file import load
from edgeopt.plugin.contents import LayerSize, SizeBreakdown

_ROLES: dict[str, dict[int, str]] = {
    "Conv": {1: "weights", 2: "biases"},
    "ConvTranspose": {1: "weights", 2: "biases"},
    "ConvInteger": {1: "weights", 3: "quantization parameters"},
    "Gemm": {0: "weights", 1: "weights", 2: "biases"},
    "MatMul": {0: "weights", 1: "weights"},
    "MatMulInteger": {1: "weights", 3: "quantization parameters"},
    "MatMulNBits": {1: "weights", 2: "quantization parameters", 3: "quantization parameters", 5: "biases"},
    "QLinearConv": {
        3: "weights",
        8: "biases",
        **dict.fromkeys((1, 2, 4, 5, 6, 7), "quantization parameters"),
    },
    "QLinearMatMul": {3: "weights", **dict.fromkeys((1, 2, 4, 5, 6, 7), "quantization parameters")},
    "QuantizeLinear": dict.fromkeys((1, 2), "quantization parameters"),
    "DequantizeLinear": dict.fromkeys((1, 2), "quantization parameters"),
    "LSTM": {1: "weights", 2: "weights", 3: "biases"},
    "GRU": {1: "weights", 2: "weights", 3: "biases"},
    "RNN": {1: "weights", 2: "weights", 3: "biases"},
    "Gather": {0: "weights"},
    "BatchNormalization": dict.fromkeys((1, 2, 3, 4), "weights"),
    "PRelu": {1: "weights"},
}
"""Role of an initializer, by the operator and the input index that read it; otherwise ``constants``."""
_KERNEL = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
_MATRIX = {"Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}


class _Value(NamedTuple):
    dtype: str
    shape: tuple[int | None, ...]


def read(path: Path) -> SizeBreakdown:
    """Break an ONNX file down by message.

    Raises:
        StageError: the file is not an ONNX model.
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError("reading an ONNX file requires onnx", fix=install("onnx")) from error
    model = load(path)
    size = path.stat().st_size
    notes = []
    external = [
        tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    if external:
        notes.append(f"{len(external)} tensors are stored in other files and not included in the size")
    values = _values(model, notes)
    roles = _roles(model.graph)
    stored = {tensor.name: _payload(tensor) for tensor in model.graph.initializer}
    layers = tuple(_layer(node, values, roles, stored) for node in model.graph.node)
    if any(layer.macs is None for layer in layers):
        notes.append("the MACs of layers with a free dimension are unknown")
    kinds = ("weights", "biases")
    return SizeBreakdown(
        file=path.name,
        format="onnx",
        size_bytes=size,
        parts=_parts(model, roles, size),
        layers=layers,
        parameters=sum(prod(t.dims) for t in model.graph.initializer if roles.get(t.name) in kinds),
        macs=total_macs(layers),
        sparsity=sparsity(_weights(model, roles)),
        notes=tuple(notes),
    )


def _roles(graph: Any) -> dict[str, str]:
    """The role of each initializer, traced through operators that only change its layout or type."""
    constants = {tensor.name for tensor in graph.initializer}
    origin = {name: name for name in constants}
    roles: dict[str, str] = {}
    for node in graph.node:
        known = _ROLES.get(node.op_type, {})
        for index, name in enumerate(node.input):
            source = origin.get(name)
            if source is None:
                continue
            if (
                node.op_type in ("DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity")
                and index == 0
            ):
                origin.update(dict.fromkeys(node.output, source))
            # One use as weights is decisive: a shared initializer may also be read as a plain constant.
            elif roles.get(source) != "weights":
                roles[source] = known.get(index, "constants")
    return roles


def _parts(model: Any, roles: dict[str, str], size: int) -> dict[str, int]:
    """Bytes of each part of the file; the sum is exactly ``size``."""
    import onnx

    sums: dict[str, int] = defaultdict(int)
    seen: set[bytes] = set()
    for tensor in model.graph.initializer:
        payload = _payload(tensor)
        header = tensor.ByteSize() - payload
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower().replace("float", "float32")
        dtype = dtype.replace("float3216", "float16")
        part = f"{roles.get(tensor.name, 'unused')} {dtype}"
        # Shorter payloads, such as scalars, are often equal without being redundant.
        if len(tensor.raw_data) >= 32:
            if tensor.raw_data in seen:
                part = "duplicates"
            seen.add(tensor.raw_data)
        sums[part] += payload
        sums["names and shapes of constants"] += header
    sums["graph structure"] = sum(node.ByteSize() for node in model.graph.node)
    ends = (*model.graph.input, *model.graph.output)
    sums["inputs and outputs"] = sum(value.ByteSize() for value in ends)
    sums["shape annotations"] = sum(value.ByteSize() for value in model.graph.value_info)
    texts = (
        model.producer_name,
        model.producer_version,
        model.domain,
        model.doc_string,
        model.graph.doc_string,
    )
    sums["metadata"] = sum(entry.ByteSize() for entry in model.metadata_props) + sum(
        len(text.encode()) for text in texts
    )
    sums["functions"] = sum(function.ByteSize() for function in model.functions)
    # The rest: tags and lengths of the top-level fields.
    sums["framing"] = size - sum(sums.values())
    return {part: count for part, count in sums.items() if count}


def _payload(tensor: Any) -> int:
    """Bytes of an initializer's values, without its name and shape."""
    import onnx

    bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type).ByteSize()
    return max(int(tensor.ByteSize()) - int(bare), 0)


def _values(model: Any, notes: list[str]) -> dict[str, _Value]:
    """Type and shape of every tensor, as far as shape inference determines them."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        notes.append(f"shapes could not be inferred: {str(error).splitlines()[0]}")
        inferred = model
    graph = inferred.graph
    values = {}
    for tensor in graph.initializer:
        values[tensor.name] = _Value(_dtype(tensor.data_type), tuple(tensor.dims))
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        # A free batch dimension counts as 1.
        shape = (1, *shape[1:]) if shape and shape[0] is None else shape
        values.setdefault(value.name, _Value(_dtype(kind.elem_type), shape))
    return values


def _weights(model: Any, roles: dict[str, str]) -> Iterator[NDArray[np.generic]]:
    """The stored values of all weights in the file."""
    import onnx

    for tensor in model.graph.initializer:
        if roles.get(tensor.name) == "weights" and tensor.data_location != onnx.TensorProto.EXTERNAL:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype.kind in "fiu":
                yield values


def _dtype(number: int) -> str:
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(number).name)
    except KeyError:
        return f"type {number}"


def _layer(node: Any, values: dict[str, _Value], roles: dict[str, str], stored: dict[str, int]) -> LayerSize:
    inputs = [values.get(name) for name in node.input]
    output = values.get(node.output[0]) if node.output else None
    parameters = [name for name in node.input if roles.get(name) in ("weights", "biases") and name in values]
    return LayerSize(
        name=node.name or (node.output[0] if node.output else ""),
        kind=node.op_type,
        types=tuple(value.dtype for value in (*inputs, output) if value is not None),
        shape=output.shape if output else (),
        macs=_macs(node.op_type, inputs, output),
        parameters=sum(product(values[name].shape) or 0 for name in parameters),
        weight_bytes=sum(stored.get(name, 0) for name in parameters),
    )


def _macs(kind: str, inputs: list[_Value | None], output: _Value | None) -> int | None:
    """MACs of a convolution or matrix product; 0 for other operators, None with a free dimension."""
    if kind not in _KERNEL and kind not in _MATRIX:
        return 0
    if kind in _KERNEL:
        kernel = inputs[_KERNEL[kind]] if _KERNEL[kind] < len(inputs) else None
        # A convolution applies the kernel once per output position, a transposed one once per input position.
        counted = inputs[0] if kind == "ConvTranspose" else output
        if kernel is None or counted is None or not kernel.shape:
            return None
        total, each = product(counted.shape), product(kernel.shape[1:])
        return None if total is None or each is None else total * each
    first = inputs[_MATRIX[kind][0]] if inputs else None
    second = inputs[_MATRIX[kind][1]] if len(inputs) > _MATRIX[kind][1] else None
    if first is None or second is None or output is None or not second.shape:
        return None
    total = product(output.shape)
    if kind == "Gemm":
        # Either operand may be stored transposed: the inner dimension follows from the size of the second.
        rows, columns, kernel_size = first.shape, output.shape, product(second.shape)
        if kernel_size is None or total is None or not columns or not columns[-1] or not rows:
            return None
        return total * (kernel_size // columns[-1])
    inner = first.shape[-1] if first.shape else None
    return None if total is None or inner is None else total * inner
