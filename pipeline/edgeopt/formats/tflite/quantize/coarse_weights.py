"""A quantized TFLite file whose weights are replaced by coarser ones, layer by layer."""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.output_scales import scales_of
from edgeopt.formats.tflite.files.graphs import Graph, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import IDENTIFIER, TfliteFile
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.tflite.files.weight_coding import Layer, without_unused
from edgeopt.formats.tflite.graph import interpreter as tflite_interpreter
from edgeopt.formats.tflite.graph.scores import before_sharp
from edgeopt.formats.tflite.quantize.layer_inputs import Geometry, Moments
from edgeopt.formats.tflite.quantize.rate_distortion import LARGEST, Choice, PricedRounding, adapted
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack
from edgeopt.model import Array

Numbers = NDArray[np.float64]
Samples = Sequence[Sequence[Array]]

TRIAL = 7
"""Steps of the largest weight in the files that measure how sensitive the outputs are to a layer."""


class Coarse(NamedTuple):
    """New weights of a layer: integers ``[groups * outputs, width]``, their step, and the bias."""

    codes: Numbers
    step: float
    bias: Numbers | None


class CoarseLayer:
    """A layer with its weights and bias as real numbers."""

    def __init__(self, graph: Graph, layer: Layer) -> None:
        operation = graph.operations[layer.operator]
        data = operation.inputs[0]
        assert data is not None and data.scale is not None  # int8
        self.tensor, self.input, self.input_scale = layer.tensor, data.number, data.scale
        self.zero_point = data.zero_point or 0
        self.geometry = Geometry(operation)
        shape = [1] * layer.values.ndim
        if layer.axis is not None:
            shape[layer.axis] = -1
        self.rows = self.geometry.by_row(layer.values * _scales(layer.tensor).reshape(shape))
        """``[groups * outputs, width]``."""
        bias = operation.inputs[2] if len(operation.inputs) > 2 else None
        self.bias_tensor = bias if bias is not None and bias.is_constant and bias.dtype == "int32" else None
        self.bias: Numbers | None = None
        if self.bias_tensor is not None:
            self.bias = np.frombuffer(self.bias_tensor.data, np.int32) * _scales(self.bias_tensor)

    @property
    def least_step(self) -> float:
        """The smallest step with which no weight is clipped."""
        return float(np.abs(self.rows).max()) / LARGEST

    def error(self, codes: Numbers, step: float, means: Numbers, own: Numbers) -> float:
        """The squared error of all outputs with new weights, on inputs of these moments."""
        change = (codes * step - self.rows).reshape(self.geometry.groups, -1, self.geometry.width)
        moments = own + means[:, :, np.newaxis] * means[:, np.newaxis]
        return float(np.einsum("gow,gwv,gov->", change, moments, change)) * self.input_scale**2

    def shifted(self, codes: Numbers, step: float, means: Numbers) -> Numbers | None:
        """The bias that keeps the mean outputs; ``means`` of the former and the new inputs."""
        if self.bias is None:
            return None
        shape = self.geometry.groups, -1, self.geometry.width
        before = self.rows.reshape(shape) @ means[0][:, :, np.newaxis]
        after = (codes * step).reshape(shape) @ means[1][:, :, np.newaxis]
        shifted: Numbers = self.bias + (before - after).reshape(-1) * self.input_scale
        return shifted


def _scales(tensor: Tensor) -> Numbers:
    quantization = tensor.table.table("quantization")
    scale = quantization.vector("scale") if quantization is not None else None
    assert scale is not None  # int8 and int32 tensors of a layer
    return np.asarray(scale.numbers(), np.float64)


class CoarseFile:
    """A file, and the calibration samples on which the error of coarser weights is measured."""

    def __init__(self, file: TfliteFile, layers: Sequence[Layer], samples: Samples) -> None:
        self.file, self.samples = file, samples
        self.graph = graphs_of(file)[0]
        self.layers = [CoarseLayer(self.graph, layer) for layer in layers]
        self.judged = sorted({before_sharp(self.graph, tensor).number for tensor in self.graph.outputs})
        self.changed: dict[int, Coarse] = {}

    def content(self, changed: Mapping[int, Coarse] | None = None) -> bytes:
        """The file with the weights of some layers, by their number, replaced: by default all new ones."""
        model = self.file.model
        graph = model.tables("subgraphs")[0]
        tensors, buffers = list(graph.tables("tensors")), list(model.tables("buffers"))

        def put(tensor: Tensor, data: bytes, scale: float) -> None:
            buffers.append(Table("Buffer", {"data": Vector("u8", data)}))
            parameters = {
                "scale": Vector("f32", struct.pack("<f", scale)),
                "zero_point": Vector("i64", bytes(8)),
            }
            tensors[tensor.number] = tensors[tensor.number].but(
                buffer=len(buffers) - 1, quantization=Table("QuantizationParameters", parameters)
            )

        for number, new in (self.changed if changed is None else changed).items():
            layer = self.layers[number]
            put(layer.tensor, layer.geometry.by_tensor(new.codes).astype(np.int8).tobytes(), new.step)
            if layer.bias_tensor is not None and new.bias is not None:
                # The runtime multiplies the scales in float32.
                scale = float(np.float32(layer.input_scale) * np.float32(new.step))
                steps = np.clip(np.rint(new.bias / scale), -(2.0**31), 2.0**31 - 1)
                put(layer.bias_tensor, steps.astype(np.int32).tobytes(), scale)
        graph = graph.but(tensors=tuple(tensors))
        changed_model = model.but(subgraphs=(graph, *model.tables("subgraphs")[1:]), buffers=tuple(buffers))
        return pack(without_unused(changed_model), SCHEMA, IDENTIFIER)

    def values(self, content: bytes, tensors: Sequence[int], samples: Samples) -> list[list[Array]]:
        """Some tensors for each sample."""
        interpreter = tflite_interpreter.opened(content, self.file.name, keep_all=True)
        rows = []
        for sample in samples:
            tflite_interpreter.feed(interpreter, sample)
            rows.append([interpreter.get_tensor(number) for number in tensors])
        return rows


class Sensitivity(NamedTuple):
    """How a layer adds to the noise of the outputs, and the moments of its inputs."""

    noise: float
    """Relative noise of the outputs by squared error of the outputs of the layer."""
    means: Numbers
    own: Numbers


def sensitivities(file: CoarseFile, originals: Sequence[Sequence[Array]], trials: int) -> list[Sensitivity]:
    """The sensitivity of every layer.

    Args:
        originals: for every sample, the inputs of all layers, then the ``judged`` tensors of the file.
        trials: samples on which the noise of the outputs is measured.
    """
    found = []
    samples = file.samples[:trials]
    before = [row[len(file.layers) :] for row in originals[:trials]]
    for number, layer in enumerate(file.layers):
        moments = Moments(layer.geometry, len(originals))
        for row in originals:
            moments.add(row[number].astype(np.int16) - layer.zero_point)
        means, own, _ = moments.centred()
        step = max(float(np.abs(layer.rows).max()) / TRIAL, 1e-30)
        codes = np.rint(layer.rows / step)
        trial = file.content({number: Coarse(codes, step, layer.bias)})
        noise = relative_noise(before, file.values(trial, file.judged, samples))
        error = layer.error(codes, step, means[0], own)
        found.append(Sensitivity(max(noise, 1e-12) / max(error, 1e-30), means[0], own))
    return found


def relative_noise(before: Sequence[Sequence[Array]], after: Sequence[Sequence[Array]]) -> float:
    """The squared error of several tensors, each relative to its variance, summed.

    Of tensors with several axes, every channel counts alike: boxes and scores of a detector may share one.
    """
    total = 0.0
    for index in range(len(before[0])):
        old, new = (np.stack([row[index] for row in rows]).astype(np.float64) for rows in (before, after))
        old, new = (
            each.reshape(-1, *each.shape[2:]) if each.shape[1:2] == (1,) else each for each in (old, new)
        )
        if old.ndim > 2:
            total += float(np.mean(((new - old) / scales_of(old)) ** 2))
        else:
            total += float(np.mean((new - old) ** 2)) / max(float(np.var(old)), 1e-12)
    return total


def coarsen(file: CoarseFile, originals: Sequence[Sequence[Array]], choices: Sequence[Choice]) -> None:
    """Replace the weights of all layers, in order, each on the inputs from the layers already replaced."""
    for number, (layer, choice) in enumerate(zip(file.layers, choices, strict=True)):
        moments = Moments(layer.geometry, len(originals))
        content = file.content()
        for row, (now,) in zip(originals, file.values(content, [layer.input], file.samples), strict=True):
            before, after = (each.astype(np.int16) - layer.zero_point for each in (row[number], now))
            moments.add(before, after)
        means, own, cross = moments.centred()
        rounding, rows = PricedRounding(own), adapted(layer.rows, own, cross)
        codes = rounding.settled(rows, rounding.coarse(rows, choice, rounds=3), choice)
        file.changed[number] = Coarse(codes, choice.step, layer.shifted(codes, choice.step, means))
