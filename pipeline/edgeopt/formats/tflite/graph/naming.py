"""Names of the operators of a TFLite file for users: their layers, and numbers for what has no name."""

import re
from collections import Counter
from pathlib import Path

from edgeopt.formats.layer_names import layer_of_scope
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.graph import layers as tflite_layers

MADE = re.compile(r"^(litert_torch|torch|tfl)\.|^$")
"""Names that a converter makes of its own classes."""


def operator_names(path: Path) -> list[str]:
    """The names of the operators of all graphs, in file order.

    An operator with weights has the name of its layer; one without that of its output, if the converter took
    it from the source. Others are numbered by kind: ``add_0``. A slimmed file has no names but the last ones.

    Raises:
        StageError: the file is damaged.
    """
    known = {layer.step: layer.name for layer in tflite_layers.read(path)}
    kinds: Counter[str] = Counter()
    names = []
    for graph in graphs_of(load(path)):
        for operation in graph.operations:
            kind = operation.kind.lower()
            step = tflite_layers.Step(operation.kind, tuple(tensor.name for tensor in operation.outputs))
            # Without names of tensors, only their order tells the layers apart.
            name = known.get(step, "") if step.outputs and any(step.outputs) else ""
            names.append(name or _of_output(operation.name, kind) or f"{kind}_{kinds[kind]}")
            kinds[kind] += 1
    return names


def _of_output(tensor: str, kind: str) -> str:
    """A name from that of an output, such as ``gru/slice``; empty if that is the converter's own."""
    parts = tensor.split(";")
    if layer := next(filter(None, map(layer_of_scope, parts)), ""):
        return f"{layer}/{kind}"
    return "" if MADE.match(parts[0]) else tensor
