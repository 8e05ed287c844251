"""Which layer of a TFLite file gets which precision: patterns over names, and whether the file obeyed."""

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
"""For each precision, the types that the weights may have, and the one that the layer computes in."""
SHOWN = 5


def float_layers(path: Path) -> list[WeightedLayer]:
    """The layers of a file that is to be quantized.

    Raises:
        StageError: when the file has no layers, when one is quantized already, or when its tensors have no
            names of their own, by which the quantizer tells them apart.
    """
    layers = tflite_layers.read(path)
    done = [layer for layer in layers if layer.weight != "float32" or "float32" not in layer.activation]
    if done:
        raise StageError(
            f"{path.name} is quantized already: {done[0].label} has {done[0].weight} weights "
            f"and computes in {done[0].activation}",
            fix="quantize the float file",
        )
    if not layers:
        raise StageError(
            f"{path.name} has no layers with weights: there is nothing to quantize",
            fix="leave quantize out of this variant",
        )
    names = [layer.tensor for layer in layers]
    if len(set(names)) < len(names) or not all(names):
        raise StageError(
            f"the layers of {path.name} cannot be told apart: their outputs have no names of their own",
            fix="quantize the file before it is slimmed",
        )
    return layers


def chosen(layers: Sequence[WeightedLayer], usual: str, patterns: Mapping[str, str]) -> Plan:
    """The precision of every layer: ``usual``, unless a pattern says otherwise; the last that fits counts.

    Beside its name, a layer goes by those of its output in the file, such as the batch normalization that
    was folded into it.

    Raises:
        StageError: a pattern fits no layer.
    """
    names = {layer.name: (layer.tensor, *layer.tensor.split(";")) for layer in layers}
    said = {name: patterns[pattern] for name, pattern in matching(patterns, names).items()}
    return dict.fromkeys(names, usual) | said


def verify(path: Path, layers: Sequence[WeightedLayer], plan: Plan, types: Types, scheme: str) -> None:
    """Make sure that every layer of a quantized file has the types that its precision stands for.

    Raises:
        StageError: with the layers that the quantizer passed over.
    """
    found = {layer.tensor: layer for layer in tflite_layers.read(path)}
    wrong = []
    for asked in layers:
        precision = plan[asked.name]
        weights, activation = types[precision]
        layer = found.get(asked.tensor)
        if layer is None:
            wrong.append(f"{asked.label} is gone")
        elif layer.activation != activation or (layer.elements and layer.weight not in weights):
            found_types = f"{layer.weight} weights and computes in {layer.activation}"
            wrong.append(f"{asked.label} has {found_types}, not {precision}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise StageError(
            f"{len(wrong)} layers did not become what {scheme} means: {'; '.join(wrong[:SHOWN])}{more}",
            fix="give these layers another precision in 'layers', such as float32, or replace them",
        )
