"""The precision of each layer of a TFLite file: selection by patterns, and verification of the result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import matching
from edgeopt.formats.tflite.graph import layers as tflite_layers
from edgeopt.formats.tflite.graph.layers import WeightedLayer

Plan: TypeAlias = dict[str, str]
"""Precision of each layer, by the layer's name."""
Types: TypeAlias = Mapping[str, tuple[frozenset[str], str]]
"""For each precision, the allowed types of the weights, and the type that the layer computes in."""
SHOWN = 5
"""Number of layers in a message."""


def float_layers(path: Path) -> list[WeightedLayer]:
    """The layers of a float file that is to be quantized.

    Raises:
        StageError: the file has no layers with weights, a layer is already quantized, or the layers have no
            unique output names, by which the quantizer selects them.
    """
    layers = tflite_layers.read(path)
    quantized = [layer for layer in layers if layer.weight != "float32" or "float32" not in layer.activation]
    if quantized:
        raise StageError(
            f"{path.name} is already quantized: {quantized[0].label} has {quantized[0].weight} weights "
            f"and computes in {quantized[0].activation}",
            fix="quantize the float file",
        )
    if not layers:
        raise StageError(
            f"{path.name} has no layers with weights to quantize",
            fix="remove quantize from this variant",
        )
    names = [layer.tensor for layer in layers]
    if len(set(names)) < len(names) or not all(names):
        raise StageError(
            f"the layers of {path.name} cannot be distinguished: their outputs have no unique names",
            fix="quantize the file before slimming it",
        )
    return layers


def chosen(layers: Sequence[WeightedLayer], usual: str, patterns: Mapping[str, str]) -> Plan:
    """The precision of every layer: that of the last matching pattern, otherwise ``usual``.

    Patterns also match the names of its output in the file, such as the batch normalization that was folded
    into the layer.

    Raises:
        StageError: a pattern matches no layer.
    """
    names = {layer.name: (layer.tensor, *layer.tensor.split(";")) for layer in layers}
    overrides = {name: patterns[pattern] for name, pattern in matching(patterns, names).items()}
    return dict.fromkeys(names, usual) | overrides


def verify(path: Path, layers: Sequence[WeightedLayer], plan: Plan, types: Types, scheme: str) -> None:
    """Check that every layer of a quantized file has the types of its precision in ``plan``.

    Raises:
        StageError: the quantizer skipped a layer; the message names these layers.
    """
    actual = {layer.tensor: layer for layer in tflite_layers.read(path)}
    wrong = []
    for source in layers:
        precision = plan[source.name]
        weights, activation = types[precision]
        # What a loop computes stays float, and so do rows of embeddings.
        activation = "float32" if source.inner or source.kind == "EMBEDDING_LOOKUP" else activation
        layer = actual.get(source.tensor)
        if layer is None:
            wrong.append(f"{source.label} is missing")
        elif layer.activation != activation or (layer.elements and layer.weight not in weights):
            actual_types = f"{layer.weight} weights and computes in {layer.activation}"
            wrong.append(f"{source.label} has {actual_types}, not {precision}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise StageError(
            f"{len(wrong)} layers do not match the scheme {scheme}: {'; '.join(wrong[:SHOWN])}{more}",
            fix="set another precision for these layers in 'layers', such as float32, or replace them",
        )
