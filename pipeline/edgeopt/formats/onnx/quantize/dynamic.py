"""Dynamic quantization of ONNX graphs by onnxruntime: layers quantize their inputs at run time."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph.layers import DYNAMIC_SUFFIX, RECURRENT
from edgeopt.formats.onnx.quantize import recurrent as onnx_recurrent
from edgeopt.formats.onnx.quantize.overflow import rows_of, safe_scales

INT8_MAX = 127
MATMUL_SUFFIX = "_MatMul"
"""Suffix of the MatMul that onnxruntime splits from a Gemm."""


def make(prepared: Path, target: Path, left: Sequence[str], per_channel: bool) -> Any:
    """Quantize the weights of all layers except ``left`` to 8 bits, symmetrically.

    Convolutions get uint8 weights with zero point 128, the only type that their kernel supports; matrix
    products get int8 weights with scales that prevent overflow of pairs of products on every x86 processor
    (see `overflow`); LSTMs get int8 weights limited to 7 bits, other recurrent layers int8 weights that are
    dequantized.

    Raises:
        StageError: onnxruntime cannot quantize the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            str(prepared),
            str(target),
            per_channel=False,
            # Matters for the weights that `_store` does not requantize: int8 in recurrent layers.
            reduce_range=True,
            weight_type=QuantType.QUInt8,
            # A Gemm is split into MatMul and Add, with new names, before the exclusions are evaluated.
            nodes_to_exclude=[*left, *(name + MATMUL_SUFFIX for name in left)],
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise StageError(f"onnxruntime cannot quantize {prepared.name}: {error}") from error
    proto = onnx_model_file.load(target)
    onnx_model_file.strip(proto)
    source = onnx_model_file.load(prepared)
    # Restore the names of the split Gemm nodes, by which recipes select layers.
    for gemm in (node.name for node in source.graph.node if node.op_type == "Gemm"):
        for node in proto.graph.node:
            if node.name in (gemm + MATMUL_SUFFIX, gemm + MATMUL_SUFFIX + DYNAMIC_SUFFIX):
                node.name = node.name.replace(gemm + MATMUL_SUFFIX, gemm)
    _store(proto, source, per_channel)
    rest = {node.name or node.output[0] for node in proto.graph.node if node.op_type in RECURRENT}
    onnx_recurrent.store_int8(proto, rest.difference(left))
    return proto


def _store(model: Any, prepared: Any, per_channel: bool) -> None:
    """Requantize the weights of convolutions and matrix products from their float values."""
    from onnx import numpy_helper
    from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX as SUFFIX

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = {t.name: numpy_helper.to_array(t) for t in prepared.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("ConvInteger", "MatMulInteger") or node.input[1] not in constants:
            continue
        name = node.input[1].removesuffix(SUFFIX)
        scale = constants[f"{name}_scale"]
        values = floats.get(name)
        if values is None or tuple(constants[node.input[1]].dims) != values.shape:
            # onnxruntime transposed the weights of a Gemm with transB and renamed them. The original is the
            # float tensor of the transposed shape whose name is a prefix; otherwise dequantize the result.
            quantized = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
            zero = numpy_helper.to_array(constants[node.input[3]]).astype(np.float32)
            values = (quantized - zero) * numpy_helper.to_array(scale)
            source = next(
                (w for n, w in floats.items() if name.startswith(n) and w.T.shape == values.shape), None
            )
            values = source.T if source is not None else values
        convolution = node.op_type == "ConvInteger"
        steps, scales = _quantize(values, 0 if convolution else values.ndim - 1, per_channel, not convolution)
        if convolution:
            _put(constants, node.input[1], (steps + 128).astype(np.uint8))
            _put(constants, node.input[3], np.asarray(128, np.uint8))
            # The scales are broadcast over outputs [n, channels, *spatial].
            scales = scales.reshape(-1, *[1] * (values.ndim - 2)) if scales.ndim else scales
        else:
            _put(constants, node.input[1], steps.astype(np.int8))
            _put(constants, node.input[3], np.asarray(0, np.int8))
        _put(constants, scale.name, scales)


def _quantize(
    values: NDArray[np.float32], axis: int, per_channel: bool, safe: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Symmetric integers and scales; ``safe`` scales prevent overflow of pairs of products."""
    rows = rows_of(values.astype(np.float64), axis)
    scales = np.abs(rows).max(axis=1) / INT8_MAX
    if safe:
        # Slightly wider: rounding must not lift a pair at exactly the limit above it.
        scales = safe_scales(rows) * (1 + 1 / 128)
    scales = np.maximum(scales, np.finfo(np.float32).tiny).astype(np.float32)
    if not per_channel:
        scales = np.full_like(scales, scales.max())
    steps = np.clip(np.rint(rows / scales[:, np.newaxis]), -INT8_MAX, INT8_MAX)
    shape = np.moveaxis(values, axis, 0).shape
    stored = np.ascontiguousarray(np.moveaxis(steps.reshape(shape), 0, axis))
    return stored, scales if per_channel else np.asarray(scales.max())


def _put(constants: dict[str, Any], name: str, values: Any) -> None:
    """Replace the values of an initializer."""
    from onnx import numpy_helper

    constants[name].CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    )
