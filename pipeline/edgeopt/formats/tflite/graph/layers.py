"""The layers of a TFLite file: operators with weights, under names that their author knows, and their types.

A layer is called what the framework called it where the file still says so: Keras' ``conv2d_1`` out of
``model/activation_1/Relu;model/conv2d_1/BiasAdd;model/conv2d_1/Conv2D1``. Otherwise, as in files from
PyTorch, it is called by kind and place: ``conv_2d_7`` is the eighth convolution that runs.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import NamedTuple

from edgeopt.formats.layer_names import calls, keras_layer, layer_told
from edgeopt.formats.tflite.files.graphs import WEIGHTED, Graph, Operation, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile, load

WEIGHTS_AT = {
    **dict.fromkeys(sorted(WEIGHTED), 1),
    **dict.fromkeys(
        (
            "CONV_3D_TRANSPOSE",
            "BATCH_MATMUL",
            "EMBEDDING_LOOKUP",
            "LSTM",
            "RNN",
            "SVDF",
            "UNIDIRECTIONAL_SEQUENCE_LSTM",
            "BIDIRECTIONAL_SEQUENCE_LSTM",
            "UNIDIRECTIONAL_SEQUENCE_RNN",
            "BIDIRECTIONAL_SEQUENCE_RNN",
        ),
        1,
    ),
    "GATHER": 0,
}
"""Operators that may have weights, and which input these are."""
DATA_AT = {"TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2}
LOOK_UP = frozenset({"EMBEDDING_LOOKUP", "GATHER"})
"""Operators that take numbers of rows, not values."""


class Step(NamedTuple):
    """One operator as a quantizer knows it: by its kind and the names of its outputs."""

    kind: str
    outputs: tuple[str, ...]


class WeightedLayer(NamedTuple):
    """One operator with weights. ``weight`` is their type in the file, though an operator may lie between."""

    name: str
    step: Step
    weight: str
    elements: int
    """How many weights; 0 where they are computed by other operators."""
    row: int
    """How many of them belong together: the last dimension."""
    input: str
    output: str
    inner: bool = False
    """Whether it lies in a graph of its own, such as the body of a loop."""
    followers: tuple[Step, ...] = ()
    """Operators without weights that work on its output, up to the next layer; for the first layer also
    those before it."""

    @property
    def kind(self) -> str:
        return self.step.kind

    @property
    def tensor(self) -> str:
        """Name of its output in the file."""
        return self.step.outputs[0]

    @property
    def activation(self) -> str:
        """The type it works in, or both if it takes another than it gives."""
        same = self.kind in LOOK_UP or self.input == self.output
        return self.output if same else f"{self.input} to {self.output}"

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}"


def read(path: Path) -> list[WeightedLayer]:
    """The layers of all graphs of a file, in the order in which they run.

    Raises:
        StageError: when it is no TFLite file, or a damaged one.
    """
    return _named(
        [
            layer._replace(inner=number > 0)
            for number, graph in enumerate(graphs_of(load(path)))
            for layer in _of_graph(graph)
        ]
    )


def inner_tensors(file: TfliteFile) -> list[str]:
    """Names of the tensors of all graphs but the main one."""
    return [tensor.name for graph in graphs_of(file)[1:] for tensor in graph.tensors]


def _named(layers: list[WeightedLayer]) -> list[WeightedLayer]:
    """The layers under names that are unique."""
    known = [_known(layer.tensor) or layer.name for layer in layers]
    kinds: Counter[str] = Counter()
    names = []
    for layer, given in zip(layers, known, strict=True):
        names.append(given or f"{layer.kind.lower()}_{kinds[layer.kind]}")
        kinds[layer.kind] += 1
    return [layer._replace(name=name) for layer, name in zip(layers, calls(names), strict=True)]


def _of_graph(graph: Graph) -> list[WeightedLayer]:
    """The layers of one graph, called what their weights are called in Keras, or nothing."""
    layers: list[WeightedLayer] = []
    followers: list[list[Step]] = []
    before: list[Step] = []
    owner: dict[int, int] = {}
    unpacked: dict[int, Tensor] = {}
    for operation in graph.operations:
        inputs, outputs = operation.inputs, operation.outputs
        step = Step(operation.kind, tuple(tensor.name for tensor in outputs))
        if operation.kind == "DEQUANTIZE" and inputs[0] is not None:
            unpacked[outputs[0].number] = inputs[0]
        weights = _weights(operation, unpacked)
        if weights is None or not outputs:
            owners = (owner[tensor.number] for tensor in operation.present if tensor.number in owner)
            place = max(owners, default=None)
            (before if place is None else followers[place]).append(step)
        else:
            place = len(layers)
            shape = weights.shape if weights.is_constant else (0,)
            data = inputs[DATA_AT.get(operation.kind, 0)]
            layers.append(
                WeightedLayer(
                    _known(weights.name),
                    step,
                    weights.dtype,
                    prod(shape),
                    shape[-1],
                    data.dtype if data is not None else "none",
                    outputs[0].dtype,
                )
            )
            followers.append(before)
            before = []
        if place is not None:
            owner |= dict.fromkeys((tensor.number for tensor in outputs), place)
    return [layer._replace(followers=tuple(steps)) for layer, steps in zip(layers, followers, strict=True)]


def _weights(operation: Operation, unpacked: dict[int, Tensor]) -> Tensor | None:
    """The tensor with the weights of an operator as they are stored; None if it has none."""
    kind, place = operation.kind, WEIGHTS_AT.get(operation.kind)
    given = operation.inputs[place] if place is not None and place < len(operation.inputs) else None
    if given is None:
        return None
    stored = unpacked.get(given.number, given)
    if not stored.is_constant:
        return given if kind in WEIGHTED else None
    numbers_of_places = kind == "GATHER" and stored.dtype in ("int32", "int64", "bool", "string")
    return None if numbers_of_places else stored


def _known(tensor: str) -> str:
    """What a tensor's name tells of the layer that gives it, or that it is the weights of; else empty."""
    parts = reversed(tensor.split(";"))
    return next((name for part in parts if (name := layer_told(part) or keras_layer(part))), "")
