"""Attention masks in a TFLite graph."""

from collections.abc import Iterator

import numpy as np

from edgeopt.formats.masks import LOWEST, masking
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile

PASSING = frozenset(
    "ADD SUB MUL DIV SELECT SELECT_V2 MAXIMUM MINIMUM CAST RESHAPE TRANSPOSE BROADCAST_TO EXPAND_DIMS "
    "SQUEEZE SLICE STRIDED_SLICE SOFTMAX".split()
)
"""Operators through which a mask reaches a softmax."""


def masked(file: TfliteFile) -> list[str]:
    """The outputs of the operators between masks and softmax operators in the main graph, both included."""
    graph = graphs_of(file)[0]
    operations = graph.operations
    producers = {tensor.number: at for at, each in enumerate(operations) for tensor in each.outputs}

    def inputs(at: int) -> Iterator[int]:
        if operations[at].kind in PASSING:
            yield from (producers[t.number] for t in operations[at].present if t.number in producers)

    def masks(at: int) -> bool:
        if operations[at].kind not in PASSING:
            return False
        constants = [t for t in operations[at].present if t.is_constant and t.dtype == "float32"]
        values = (np.frombuffer(tensor.data, np.float32) for tensor in constants)
        return any(each.size > 0 and float(each.min()) <= LOWEST for each in values)

    softmaxes = [at for at, each in enumerate(operations) if each.kind == "SOFTMAX"]
    return [operations[at].outputs[0].name for at in masking(softmaxes, inputs, masks)]
