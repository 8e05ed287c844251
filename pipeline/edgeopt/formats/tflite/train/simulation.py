"""A TFLite file as a PyTorch module, so that it can be trained: integer arithmetic, simulated in float.

Tensors are real numbers in the file's layout, NHWC, with any batch size. Where the file has 8-bit integers,
values are rounded to their scale and clipped, and gradients pass straight through (Jacob et al. 2018,
arXiv:1712.05877). The kernels of the runtimes round products of scales as well: few values differ by a step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import Graph, Operation, Tensor
from edgeopt.formats.wire.flatbuffer import Table

if TYPE_CHECKING:
    import torch

Values: TypeAlias = "list[torch.Tensor]"
Kernel: TypeAlias = Callable[[Operation, Table, Values], Any]

NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
"""Activations that are fused into an operator."""
SAME = 0
"""Padding with which outputs have as many positions as inputs, divided by the stride."""
INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


class Simulation:
    """The main graph of a file, as a function of tensors.

    Args:
        graph: of the file.
        name: of the file, for messages.

    Raises:
        StageError: the graph has an operator that is not simulated.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        missing = sorted({each.kind for each in graph.operations} - KERNELS.keys())
        if missing:
            raise StageError(
                f"{name} has {', '.join(missing)}, which training does not simulate",
                fix=f"leave 'distill' out; it knows {', '.join(sorted(KERNELS))}",
            )
        self.constants = {
            tensor.number: _real(tensor)
            for operation in graph.operations
            for tensor in operation.present
            if tensor.is_constant
        }
        """Constants by the number of their tensor, as real numbers; those of layers may be replaced."""

    def run(
        self, inputs: Values, outputs: Sequence[int], replaced: "Mapping[int, torch.Tensor] | None" = None
    ) -> Values:
        """Some tensors of the graph, by number.

        Args:
            inputs: of the graph, real numbers with the batch axis first.
            outputs: numbers of the tensors.
            replaced: constants to use instead of those of the file.
        """
        known = {**self.constants, **(replaced or {})}
        for tensor, value in zip(self.graph.inputs, inputs, strict=True):
            known[tensor.number] = _rounded(value, tensor)
        for operation in self.graph.operations:
            if all(number in known for number in outputs):
                break
            values = [known[tensor.number] for tensor in operation.present]
            options = operation.table.table("builtin_options") or Table("", {})
            result = KERNELS[operation.kind](operation, options, values)
            (tensor,) = operation.outputs
            known[tensor.number] = _rounded(_activated(result, options), tensor)
        return [known[number] for number in outputs]


def scales_of(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The scales of a quantized tensor, shaped to multiply its values; empty without any."""
    quantization = tensor.table.table("quantization")
    vector = quantization.vector("scale") if quantization is not None else None
    scales = np.asarray(vector.numbers() if vector is not None else (), np.float64)
    if len(scales) > 1 and quantization is not None:
        shape = [1] * len(tensor.shape)
        shape[quantization.integer("quantized_dimension")] = -1
        scales = scales.reshape(shape)
    return scales


def _real(tensor: Tensor) -> "torch.Tensor":
    """A constant as real numbers; integers without a scale, such as shapes and axes, stay as they are."""
    import torch

    values = np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
    scales = scales_of(tensor)
    if not scales.size or tensor.dtype.startswith("float"):
        return torch.from_numpy(values.copy())
    quantization = tensor.table.table("quantization")
    zeros = quantization.numbers("zero_point") if quantization is not None else []
    shifted = values.astype(np.float64) - (zeros[0] if zeros else 0)
    return torch.from_numpy((shifted * scales).astype(np.float32))


def _rounded(value: Any, tensor: Tensor) -> Any:
    """A result as its tensor can represent it."""
    import torch

    if tensor.dtype not in INTEGERS or tensor.scale is None:
        return value
    lowest, highest = INTEGERS[tensor.dtype]
    return torch.fake_quantize_per_tensor_affine(value, tensor.scale, tensor.zero_point or 0, lowest, highest)


def _activated(value: Any, options: Table) -> Any:
    kind = options.integer("fused_activation_function")
    if kind == NONE:
        return value
    return {RELU: value.relu(), RELU_N1_TO_1: value.clamp(-1, 1), RELU6: value.clamp(0, 6)}[kind]


def _padding(options: Table, sizes: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Zeros before and after the axes of width and height, in the order of torch."""
    padding = [0, 0, 0, 0]
    if options.integer("padding") != SAME:
        return padding
    for place, letter, size, taps in zip((2, 0), "hw", sizes, kernel, strict=True):
        stride = options.integer(f"stride_{letter}")
        extent = (taps - 1) * options.integer(f"dilation_{letter}factor", 1) + 1
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        padding[place : place + 2] = total // 2, total - total // 2
    return padding


def _convolution(operation: Operation, options: Table, values: Values) -> Any:
    import torch

    data, weights, *bias = values
    depthwise = operation.kind == "DEPTHWISE_CONV_2D"
    image = data.permute(0, 3, 1, 2)
    kernel = weights.permute(3, 0, 1, 2) if depthwise else weights.permute(0, 3, 1, 2)
    image = torch.nn.functional.pad(image, _padding(options, data.shape[1:3], weights.shape[1:3]))
    result = torch.nn.functional.conv2d(
        image,
        kernel,
        *bias,
        stride=(options.integer("stride_h"), options.integer("stride_w")),
        dilation=(options.integer("dilation_hfactor", 1), options.integer("dilation_wfactor", 1)),
        groups=image.shape[1] // kernel.shape[1],
    )
    return result.permute(0, 2, 3, 1)


def _dense(operation: Operation, options: Table, values: Values) -> Any:
    import torch

    data, weights, *bias = values
    if not options.integer("keep_num_dims"):
        data = data.reshape(-1, weights.shape[1])
    return torch.nn.functional.linear(data, weights, *bias)


def _pool(operation: Operation, options: Table, values: Values) -> Any:
    import torch

    (data,) = values
    kernel = options.integer("filter_height"), options.integer("filter_width")
    stride = options.integer("stride_h"), options.integer("stride_w")
    padding = _padding(options, data.shape[1:3], kernel)
    image = data.permute(0, 3, 1, 2)
    if operation.kind == "MAX_POOL_2D":
        image = torch.nn.functional.pad(image, padding, value=-torch.inf)
        return torch.nn.functional.max_pool2d(image, kernel, stride).permute(0, 2, 3, 1)
    image = torch.nn.functional.pad(image, padding)
    result = torch.nn.functional.avg_pool2d(image, kernel, stride)
    if any(padding):  # zeros do not count
        ones = torch.nn.functional.pad(torch.ones_like(data[:1, :, :, :1]).permute(0, 3, 1, 2), padding)
        result = result / torch.nn.functional.avg_pool2d(ones, kernel, stride)
    return result.permute(0, 2, 3, 1)


def _reshape(operation: Operation, options: Table, values: Values) -> Any:
    shape = list(operation.outputs[0].shape)
    return values[0].reshape(-1, *shape[1:])


def _mean(operation: Operation, options: Table, values: Values) -> Any:
    data, axes = values
    return data.mean(dim=axes.reshape(-1).tolist(), keepdim=bool(options.integer("keep_dims")))


def _pad(operation: Operation, options: Table, values: Values) -> Any:
    import torch

    data, amounts, *constant = values
    flat = [int(each) for row in reversed(amounts.tolist()) for each in row]
    return torch.nn.functional.pad(data, flat, value=float(constant[0]) if constant else 0.0)


def _concatenation(operation: Operation, options: Table, values: Values) -> Any:
    import torch

    return torch.cat(values, dim=options.integer("axis"))


def _strided_slice(operation: Operation, options: Table, values: Values) -> Any:
    data, *limits = values
    begin, end, stride = (each.tolist() for each in limits)
    masks = [options.integer(f"{name}_mask") for name in ("begin", "end")]
    index = []
    for axis in range(len(begin)):
        first = None if masks[0] >> axis & 1 else begin[axis]
        last = None if masks[1] >> axis & 1 else end[axis]
        # The file has a batch of one.
        index.append(slice(None) if axis == 0 else slice(first, last, stride[axis]))
    return data[tuple(index)]


def _slice(operation: Operation, options: Table, values: Values) -> Any:
    data, begin, size = values
    index = [
        # The file has a batch of one.
        slice(first, None if count < 0 or axis == 0 else first + count)
        for axis, (first, count) in enumerate(zip(begin.tolist(), size.tolist(), strict=True))
    ]
    return data[tuple(index)]


def _transpose(operation: Operation, options: Table, values: Values) -> Any:
    data, order = values
    return data.permute(*order.tolist())


def _same(operation: Operation, options: Table, values: Values) -> Any:
    return values[0]


KERNELS: Mapping[str, Kernel] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), _convolution),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), _pool),
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    **dict.fromkeys(("QUANTIZE", "DEQUANTIZE"), _same),
    "FULLY_CONNECTED": _dense,
    "RESHAPE": _reshape,
    "MEAN": _mean,
    "CONCATENATION": _concatenation,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": _transpose,
    "ADD": lambda operation, options, values: values[0] + values[1],
    "SUB": lambda operation, options, values: values[0] - values[1],
    "MUL": lambda operation, options, values: values[0] * values[1],
    "RELU": lambda operation, options, values: values[0].relu(),
    "RELU6": lambda operation, options, values: values[0].clamp(0, 6),
    "LOGISTIC": lambda operation, options, values: values[0].sigmoid(),
    "TANH": lambda operation, options, values: values[0].tanh(),
    "SOFTMAX": lambda operation, options, values: values[0].softmax(-1),
    "LOG_SOFTMAX": lambda operation, options, values: values[0].log_softmax(-1),
}
