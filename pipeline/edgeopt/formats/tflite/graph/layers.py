"""The weighted layers of a TFLite file: their names in the source framework, and their data types.

A layer has its name in the framework if a tensor name contains it: Keras' ``conv2d_1`` is taken from
``model/activation_1/Relu;model/conv2d_1/BiasAdd;model/conv2d_1/Conv2D1``. Otherwise it is named by kind and
execution order: ``conv_2d_7`` is the eighth convolution.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import NamedTuple

from edgeopt.formats.layer_names import calls, keras_layer, layer_of_scope
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
"""Operators that may have weights, and the index of that input."""
DATA_AT = {"TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2}
"""Index of the data input, where it is not 0."""
LOOK_UP = frozenset({"EMBEDDING_LOOKUP", "GATHER"})
"""Operators whose input consists of row indices instead of values."""


class Step(NamedTuple):
    """One operator as ai-edge-quantizer identifies it: by its kind and the names of its outputs."""

    kind: str
    outputs: tuple[str, ...]


class WeightedLayer(NamedTuple):
    """One operator with weights. ``weight`` is their storage type, also if an operator unpacks them."""

    name: str
    step: Step
    weight: str
    elements: int
    """Number of weights; 0 if they are computed by other operators."""
    row: int
    """Size of the last dimension of the weights."""
    input: str
    output: str
    inner: bool = False
    """Whether it is in another graph than the main one, such as the body of a loop."""
    followers: tuple[Step, ...] = ()
    """Operators without weights that process its output, up to the next layer; for the first layer also the
    operators before it."""

    @property
    def kind(self) -> str:
        return self.step.kind

    @property
    def tensor(self) -> str:
        """Name of its first output in the file."""
        return self.step.outputs[0]

    @property
    def activation(self) -> str:
        """The type of its input and output, or both types if they differ."""
        same = self.kind in LOOK_UP or self.input == self.output
        return self.output if same else f"{self.input} to {self.output}"

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}"


def read(path: Path) -> list[WeightedLayer]:
    """The layers of all graphs of a file, in execution order.

    Raises:
        StageError: the file is not a TFLite model, or is damaged.
    """
    return _named(
        [
            layer._replace(inner=number > 0)
            for number, graph in enumerate(graphs_of(load(path)))
            for layer in _of_graph(graph)
        ]
    )


def inner_tensors(file: TfliteFile) -> list[str]:
    """Names of the tensors of all graphs except the main one."""
    return [tensor.name for graph in graphs_of(file)[1:] for tensor in graph.tensors]


class Joined(NamedTuple):
    """An operator after the last layers that joins values of several layers in an output, or follows one."""

    output: str
    inputs: tuple[str, ...]


def joined_outputs(file: TfliteFile) -> list[Joined]:
    """The operators of the main graph that join values of several layers in an output; often none."""
    graph = graphs_of(file)[0]
    layers = {layer.step.outputs for layer in _of_graph(graph)}
    readers: dict[int, list[Operation]] = {}
    for operation in graph.operations:
        for tensor in operation.present:
            readers.setdefault(tensor.number, []).append(operation)
    outputs = {tensor.number for tensor in graph.outputs}
    after: dict[int, Operation] = {}
    for operation in reversed(graph.operations):
        written_to = [tensor.number for tensor in operation.outputs]
        following = [reader for number in written_to for reader in readers.get(number, ())]
        is_layer = tuple(tensor.name for tensor in operation.outputs) in layers
        ends = bool(following) or not outputs.isdisjoint(written_to)
        if not is_layer and ends and all(id(reader) in after for reader in following):
            after[id(operation)] = operation
    joined, written = list[Joined](), set[int]()
    for operation in reversed(after.values()):
        if operation.kind == "CONCATENATION" or written & {tensor.number for tensor in operation.present}:
            written.update(tensor.number for tensor in operation.outputs)
            inputs = operation.present if operation.kind == "CONCATENATION" else ()
            joined.append(Joined(operation.outputs[0].name, tuple(tensor.name for tensor in inputs)))
    return joined


def _named(layers: list[WeightedLayer]) -> list[WeightedLayer]:
    """The layers with unique names."""
    known = [_known(layer.tensor) or layer.name for layer in layers]
    kinds: Counter[str] = Counter()
    names = []
    for layer, known_name in zip(layers, known, strict=True):
        names.append(known_name or f"{layer.kind.lower()}_{kinds[layer.kind]}")
        kinds[layer.kind] += 1
    return [layer._replace(name=name) for layer, name in zip(layers, calls(names), strict=True)]


def _of_graph(graph: Graph) -> list[WeightedLayer]:
    """The layers of one graph, named after their weights in Keras; without a name if that is unknown."""
    layers: list[WeightedLayer] = []
    followers: list[list[Step]] = []
    before: list[Step] = []
    owner: dict[int, int] = {}
    unpacked: dict[int, Tensor] = {}
    for operation in graph.operations:
        inputs, outputs = operation.inputs, operation.outputs
        step = Step(operation.kind, tuple(tensor.name for tensor in outputs))
        # Weight-only files store weights in float16 or integers and unpack them before the layer.
        if operation.kind == "DEQUANTIZE" and inputs[0] is not None:
            unpacked[outputs[0].number] = inputs[0]
        weights = _weights(operation, unpacked)
        if weights is None or not outputs:
            # It follows the last of the layers whose outputs it reads.
            owners = (owner[tensor.number] for tensor in operation.present if tensor.number in owner)
            index = max(owners, default=None)
            (before if index is None else followers[index]).append(step)
        else:
            index = len(layers)
            # Computed weights, such as the second operand of an attention product, are not parameters.
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
        if index is not None:
            owner |= dict.fromkeys((tensor.number for tensor in outputs), index)
    return [layer._replace(followers=tuple(steps)) for layer, steps in zip(layers, followers, strict=True)]


def _weights(operation: Operation, unpacked: dict[int, Tensor]) -> Tensor | None:
    """The stored tensor with the weights of an operator; None if it has no weights."""
    kind, index = operation.kind, WEIGHTS_AT.get(operation.kind)
    weights = operation.inputs[index] if index is not None and index < len(operation.inputs) else None
    if weights is None:
        return None
    stored = unpacked.get(weights.number, weights)
    if not stored.is_constant:
        return weights if kind in WEIGHTED else None
    # A lookup in a table of shapes or indices, not in an embedding.
    is_lookup_table = kind == "GATHER" and stored.dtype in ("int32", "int64", "bool", "string")
    return None if is_lookup_table else stored


def _known(tensor: str) -> str:
    """The layer in the name of an output or of weights; empty if it contains none."""
    # The converter joins the names of fused operators. Of PyTorch's, the first is the layer: a second one is
    # the reshape of an input that layers share. Of Keras's, the layer with the weights comes last.
    parts = tensor.split(";")
    scoped = next(filter(None, map(layer_of_scope, parts)), "")
    return scoped or next(filter(None, map(keras_layer, reversed(parts))), "")
