"""Nodes whose integer kernels in onnxruntime are wrong, or do not exist."""

from typing import Any


def rounded_up_averages(model: Any) -> list[str]:
    """The names of average pools that round the size of their result up.

    QLinearAveragePool of onnxruntime 1.32 divides the last windows by the wrong number of values: 10 dB where
    the same file computes 31 dB with its QuantizeLinear nodes as written.
    """
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "AveragePool" and any(a.name == "ceil_mode" and a.i for a in node.attribute)
    ]


def grouped_transposed_convolutions(model: Any) -> list[Any]:
    """The transposed convolutions whose groups share the channel axis of the weights.

    The weights ``[inputs, outputs / groups, *kernel]`` have no axis of all outputs, so that they cannot have
    one scale per output.
    """
    return [
        node
        for node in model.graph.node
        if node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
