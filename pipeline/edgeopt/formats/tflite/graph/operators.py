"""The operators of a TFLite file from the view of a runtime: version, types and memory."""

from edgeopt.formats.tflite.files.graphs import Operation, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile
from edgeopt.plugin.contents import Operator

IN_PLACE = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
"""Operators whose output may share the memory of their input."""


def operators_of(file: TfliteFile) -> tuple[Operator, ...]:
    """The operators of all graphs, in file order."""
    return tuple(_operator(operation) for graph in graphs_of(file) for operation in graph.operations)


def _operator(operation: Operation) -> Operator:
    inputs, outputs = operation.present, operation.outputs
    # By number: a tensor that is read twice is in memory once.
    read = {tensor.number: tensor.memory for tensor in inputs if not tensor.is_constant}
    written = {tensor.number: tensor.memory for tensor in outputs}
    sizes = sum(read.values()), sum(written.values())
    return Operator(
        kind=operation.kind,
        name=operation.name,
        version=operation.version,
        custom=operation.is_custom,
        inputs=tuple(tensor.dtype for tensor in inputs),
        constant=tuple(tensor.is_constant for tensor in inputs),
        outputs=tuple(tensor.dtype for tensor in outputs),
        working=max(sizes) if operation.kind in IN_PLACE else sum(sizes),
        shapes=tuple(tensor.signature for tensor in outputs),
    )


def output_steps_of(file: TfliteFile) -> tuple[float | None, ...]:
    """The quantization step of each float output that a DEQUANTIZE produces; None for other outputs."""
    graph = graphs_of(file)[0]
    producers = {tensor.number: operation for operation in graph.operations for tensor in operation.outputs}
    steps: list[float | None] = []
    for output in graph.outputs:
        producer = producers.get(output.number)
        quantized = producer.inputs[0] if producer is not None and producer.kind == "DEQUANTIZE" else None
        steps.append(quantized.scale if quantized is not None else None)
    return tuple(steps)
