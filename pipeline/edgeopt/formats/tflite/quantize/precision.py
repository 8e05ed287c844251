"""Which layer of a TFLite file gets which precision: patterns over names, and whether the file obeyed."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import fitting, means, means_part
from edgeopt.formats.tflite.graph import layers as tflite_weighted
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
    layers = tflite_weighted.read(path)
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

    A pattern (as of `fnmatch`) means the layers whose name it fits, with all their calls. Where there is
    none, it means those of whose name it fits a part, between ``/``; then those of whose output in the file
    it fits a part, between ``/`` and ``;``, such as the batch normalization that was folded into the layer;
    and last, those in whose names it occurs.

    Raises:
        StageError: a pattern fits no layer.
    """
    plan = {layer.name: usual for layer in layers}
    for pattern, precision in patterns.items():
        plan |= {layer.name: precision for layer in matching(layers, pattern)}
    return plan


def matching(layers: Sequence[WeightedLayer], pattern: str) -> list[WeightedLayer]:
    """The layers that a pattern means.

    Raises:
        StageError: there are none; it names the nearest.
    """
    wide = f"*{pattern}*"
    tests: tuple[Callable[[WeightedLayer], bool], ...] = (
        lambda layer: means(pattern, layer.name),
        lambda layer: means_part(pattern, layer.name),
        lambda layer: (
            fnmatchcase(layer.tensor, pattern) or any(means_part(pattern, n) for n in layer.tensor.split(";"))
        ),
        lambda layer: fnmatchcase(layer.name, wide),
        lambda layer: fnmatchcase(layer.tensor, wide),
    )
    return fitting(layers, tests, [layer.name for layer in layers], pattern, "the TFLite file")


def verify(path: Path, layers: Sequence[WeightedLayer], plan: Plan, types: Types, scheme: str) -> None:
    """Make sure that every layer of a quantized file has the types that its precision stands for.

    Raises:
        StageError: with the layers that the quantizer passed over.
    """
    found = {layer.tensor: layer for layer in tflite_weighted.read(path)}
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
