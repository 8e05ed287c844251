"""A float ONNX graph whose layers quantize their inputs at run time, made by onnxruntime."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph.layers import DYNAMIC_SUFFIX
from edgeopt.formats.onnx.quantize.overflow import rows_of, safe_scales

INT8_MAX = 127
MATMUL_SUFFIX = "_MatMul"


def make(prepared: Path, target: Path, left: Sequence[str], per_channel: bool) -> Any:
    """The graph with 8-bit weights in all layers but ``left``.

    Weights are symmetric. Those of a convolution are stored as uint8 with zero point 128, which is what its
    kernel takes; those of a matrix product as int8 whose scales keep pairs of products below overflow on
    every x86 (`onnx_overflow`); those of a recurrent layer as int8 with 7 bits.

    Raises:
        StageError: onnxruntime cannot do it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            str(prepared),
            str(target),
            per_channel=False,
            # For what is not stored anew below: the int8 weights of recurrent layers.
            reduce_range=True,
            weight_type=QuantType.QUInt8,
            # A Gemm becomes a MatMul of another name before the exclusions are looked at.
            nodes_to_exclude=[*left, *(name + MATMUL_SUFFIX for name in left)],
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise StageError(f"onnxruntime cannot quantize {prepared.name}: {error}") from error
    proto = onnx_model_file.load(target)
    onnx_model_file.strip(proto)
    source = onnx_model_file.load(prepared)
    for gemm in (node.name for node in source.graph.node if node.op_type == "Gemm"):
        for node in proto.graph.node:
            if node.name in (gemm + MATMUL_SUFFIX, gemm + MATMUL_SUFFIX + DYNAMIC_SUFFIX):
                node.name = node.name.replace(gemm + MATMUL_SUFFIX, gemm)
    _store(proto, source, per_channel)
    return proto


def _store(model: Any, prepared: Any, per_channel: bool) -> None:
    from onnx import numpy_helper
    from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX as SUFFIX

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    # The library transposes what a Gemm with transB had.
    floats = {t.name: numpy_helper.to_array(t) for t in prepared.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("ConvInteger", "MatMulInteger") or node.input[1] not in constants:
            continue
        name = node.input[1].removesuffix(SUFFIX)
        scale = constants[f"{name}_scale"]
        values = floats.get(name)
        if values is None or tuple(constants[node.input[1]].dims) != values.shape:
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
            # Multiplied with outputs [n, channels, *space].
            scales = scales.reshape(-1, *[1] * (values.ndim - 2)) if scales.ndim else scales
        else:
            _put(constants, node.input[1], steps.astype(np.int8))
            _put(constants, node.input[3], np.asarray(0, np.int8))
        _put(constants, scale.name, scales)


def _quantize(
    values: NDArray[np.float32], axis: int, per_channel: bool, safe: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    rows = rows_of(values.astype(np.float64), axis)
    scales = np.abs(rows).max(axis=1) / INT8_MAX
    if safe:
        # A hair wider, so that rounding does not bring a pair of exactly the limit above it.
        scales = safe_scales(rows) * (1 + 1 / 128)
    scales = np.maximum(scales, np.finfo(np.float32).tiny).astype(np.float32)
    if not per_channel:
        scales = np.full_like(scales, scales.max())
    steps = np.clip(np.rint(rows / scales[:, np.newaxis]), -INT8_MAX, INT8_MAX)
    shape = np.moveaxis(values, axis, 0).shape
    stored = np.ascontiguousarray(np.moveaxis(steps.reshape(shape), 0, axis))
    return stored, scales if per_channel else np.asarray(scales.max())


def _put(constants: dict[str, Any], name: str, values: Any) -> None:
    from onnx import numpy_helper

    constants[name].CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    )
