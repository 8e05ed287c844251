"""The operators of a TFLite file as a runtime meets them: version, types, and the memory that one takes."""

from edgeopt.formats.tflite.files.graphs import Operation, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile
from edgeopt.plugin.contents import Operator

IN_PLACE = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
"""Operators whose output may lie where their input does."""


def operators_of(file: TfliteFile) -> tuple[Operator, ...]:
    """The operators of all graphs, in the order of the file."""
    return tuple(_operator(operation) for graph in graphs_of(file) for operation in graph.operations)


def _operator(operation: Operation) -> Operator:
    inputs, outputs = operation.present, operation.outputs
    # A tensor that is read twice lies in memory once.
    read = {tensor.number: tensor.memory for tensor in inputs if not tensor.is_constant}
    written = {tensor.number: tensor.memory for tensor in outputs}
    both = sum(read.values()), sum(written.values())
    return Operator(
        kind=operation.kind,
        name=operation.name,
        version=operation.version,
        custom=operation.is_custom,
        inputs=tuple(tensor.dtype for tensor in inputs),
        constant=tuple(tensor.is_constant for tensor in inputs),
        outputs=tuple(tensor.dtype for tensor in outputs),
        working=max(both) if operation.kind in IN_PLACE else sum(both),
        shapes=tuple(tensor.signature for tensor in outputs),
    )


def output_steps_of(file: TfliteFile) -> tuple[float | None, ...]:
    """The step of each real output that is made of stored integers by the last operator."""
    graph = graphs_of(file)[0]
    made_by = {tensor.number: operation for operation in graph.operations for tensor in operation.outputs}
    steps: list[float | None] = []
    for output in graph.outputs:
        maker = made_by.get(output.number)
        unpacked = maker.inputs[0] if maker is not None and maker.kind == "DEQUANTIZE" else None
        steps.append(unpacked.scale if unpacked is not None else None)
    return tuple(steps)
