"""The int8 weights of a TFLite file as parameters to train, whose values stay those that the file has.

A weight is a real number, rounded in the forward pass; gradients pass straight through (Bengio et al. 2013,
arXiv:1308.3432). It becomes the value with the least sum of its squared error and a price for the bits of its
code, as when the codes were chosen, so that the codes do not get longer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.tflite.files import huffman
from edgeopt.formats.tflite.files.graphs import Graph
from edgeopt.formats.tflite.files.model_file import IDENTIFIER, TfliteFile
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.tflite.files.weight_coding import Layer, without_unused
from edgeopt.formats.tflite.quantize.rate_distortion import SPREAD
from edgeopt.formats.tflite.train.simulation import scales_of
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack

if TYPE_CHECKING:
    import torch

Numbers = NDArray[np.float64]

PRICE = 1 / SPREAD**2
"""Of a bit, in squared steps: what it costs with the best step for a rate."""


class Codes:
    """The weights and the bias of one layer.

    Args:
        graph: of the file.
        layer: one of its layers with int8 weights and activations.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        import torch

        operation = graph.operations[layer.operator]
        self.tensor, self.steps = layer.tensor, _float32(scales_of(layer.tensor))
        levels, edges = priced(layer.values)
        self._levels, self._edges = _float32(levels), _float32(edges)
        self.weights = torch.nn.Parameter(_float32(layer.values))
        """In steps, as real numbers; shaped as their tensor."""
        bias = operation.inputs[2] if len(operation.inputs) > 2 else None
        self.bias_tensor = bias if bias is not None and bias.is_constant and bias.dtype == "int32" else None
        self.bias: torch.nn.Parameter | None = None
        """In steps of the output."""
        if self.bias_tensor is not None:
            self._unit = operation.outputs[0].scale or 1.0
            self._fine = scales_of(self.bias_tensor).reshape(-1) / self._unit
            values = np.frombuffer(self.bias_tensor.data, np.int32) * self._fine
            self.bias = torch.nn.Parameter(_float32(values))

    @property
    def parameters(self) -> "list[torch.nn.Parameter]":
        return [each for each in (self.weights, self.bias) if each is not None]

    @property
    def values(self) -> "torch.Tensor":
        """The weights as the integers that they are rounded to."""
        import torch

        return self._levels[torch.bucketize(self.weights.detach(), self._edges)]

    def constants(self) -> "dict[int, torch.Tensor]":
        """The weights and the bias as real numbers, by the number of their tensor, differentiable."""
        straight = self.weights + (self.values - self.weights).detach()
        constants = {self.tensor.number: straight * self.steps}
        if self.bias is not None and self.bias_tensor is not None:
            constants[self.bias_tensor.number] = self.bias * self._unit
        return constants

    def data(self) -> dict[int, bytes]:
        """The content of the tensors, by number."""
        data = {self.tensor.number: self.values.numpy().astype(np.int8).tobytes()}
        if self.bias is not None and self.bias_tensor is not None:
            steps = np.rint(self.bias.detach().numpy() / self._fine).clip(-(2.0**31), 2.0**31 - 1)
            data[self.bias_tensor.number] = steps.astype(np.int32).tobytes()
        return data


def priced(codes: NDArray[np.int8], price: float = PRICE) -> tuple[Numbers, Numbers]:
    """The values that a weight may take, ascending, and the edges between them.

    A weight between two edges has the value with the least sum of its squared error and the price of its
    code. Values that are nowhere the best, because their codes are long, are left out.
    """
    counts = Counter(codes.reshape(-1).tolist())
    lengths = huffman.lengths_of(counts)
    values: list[int] = []
    edges: list[float] = []
    for value in sorted(counts):
        # The lower envelope of parabolas of equal width: any two of them meet in one point.
        while values:
            apart = value - values[-1]
            edge = values[-1] + apart / 2 + price * (lengths[value] - lengths[values[-1]]) / (2 * apart)
            if not edges or edge > edges[-1]:
                edges.append(edge)
                break
            values.pop()
            edges.pop()
        values.append(value)
    return np.array(values, float), np.array(edges)


def with_codes(file: TfliteFile, codes: Sequence[Codes]) -> bytes:
    """The file with the present weights and biases."""
    data: dict[int, bytes] = {}
    for each in codes:
        data |= each.data()
    return _with_data(file, data)


def _with_data(file: TfliteFile, data: Mapping[int, bytes]) -> bytes:
    model = file.model
    graph, *others = model.tables("subgraphs")
    tensors, buffers = list(graph.tables("tensors")), list(model.tables("buffers"))
    for number, content in data.items():
        # A buffer of its own: several tensors of a slimmed file may share one.
        buffers.append(Table("Buffer", {"data": Vector("u8", content)}))
        tensors[number] = tensors[number].but(buffer=len(buffers) - 1)
    changed = model.but(subgraphs=(graph.but(tensors=tuple(tensors)), *others), buffers=tuple(buffers))
    return pack(without_unused(changed), SCHEMA, IDENTIFIER)


def _float32(values: NDArray[np.generic]) -> "torch.Tensor":
    import torch

    return torch.from_numpy(values.astype(np.float32))
