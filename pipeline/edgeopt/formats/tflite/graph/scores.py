"""Where the scores behind an output are: activations such as softmax hide what happens before them."""

from edgeopt.formats.tflite.files.graphs import Graph, Tensor

SHARP = frozenset({"SOFTMAX", "LOG_SOFTMAX", "LOGISTIC"})
"""Operators that hide small changes of their input."""
PASSING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE"})


def before_sharp(graph: Graph, tensor: Tensor) -> Tensor:
    """The tensor that an activation such as softmax makes an output from; else the output itself."""
    producers = {each.number: operation for operation in graph.operations for each in operation.outputs}
    current = tensor
    while (operation := producers.get(current.number)) is not None:
        data = operation.inputs[0] if operation.inputs else None
        if operation.kind not in SHARP | PASSING or data is None or data.is_constant:
            break
        current = data
        if operation.kind in SHARP:
            return current
    return tensor
