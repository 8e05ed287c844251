"""Choice of the 8-bit weight encoding of each layer: fast where it loses nothing, exact elsewhere.

The safe encoding is about twice as fast as the unsigned one on processors with VNNI, and costs at most one
bit of weight precision. The whole graph gets it unless it is significantly worse on the samples: by more than
``SNR_LOSS_DB``, or by an agreement loss above ``AGREEMENT_LOSS`` and above chance. In that case layers are
switched to the unsigned encoding in order of noise removed per multiplication, as few as necessary.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt
from typing import Any, NamedTuple, TypeAlias

from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize.weights import Encoding

SNR_LOSS_DB = 2.0
AGREEMENT_LOSS = 0.01

Encodings: TypeAlias = dict[str, Encoding]
"""The encoding of each layer, by layer name."""


class Fidelity(NamedTuple):
    """Similarity of the outputs to those of the float model."""

    snr_db: float
    """Of the worst output."""
    agreement: float
    """Of the decisions; 1 if the outputs are no decisions."""
    samples: int

    def __str__(self) -> str:
        return f"{self.snr_db:.1f} dB, agreement {self.agreement:.2%}"

    def keeps(self, other: "Fidelity") -> bool:
        """Whether this fidelity is not significantly worse than ``other``."""
        # Two standard errors of the difference of two proportions.
        chance = 2 * sqrt(2 * other.agreement * (1 - other.agreement) / max(other.samples, 1))
        keeps_snr = self.snr_db >= other.snr_db - SNR_LOSS_DB
        return keeps_snr and self.agreement >= other.agreement - max(AGREEMENT_LOSS, chance) - 1e-9


def choose(
    layers: Sequence[str], cost: Mapping[str, int], fidelity: Callable[[Encodings], Fidelity]
) -> tuple[Encodings, str]:
    """Choose the encoding of every layer; returns it with a note for the report.

    Args:
        layers: names of the layers.
        cost: multiplications of each layer.
        fidelity: runs the graph with the given encodings, on the same samples.
    """
    exact = fidelity(_all(layers, "unsigned"))
    safe = fidelity(_all(layers, "safe"))
    count = f"on {exact.samples} samples"
    if safe.keeps(exact):
        note = f"all layers have int8 weights that cannot overflow on any x86: {safe} {count}; "
        return _all(layers, "safe"), note + f"the slower uint8 weights reach {exact}"
    order = _order(layers, cost, fidelity, safe)
    # Bisection for the shortest prefix of the order that is good enough: all layers unsigned is, none is not.
    fails, passes, best = 0, len(order), exact
    while passes - fails > 1:
        middle = (fails + passes) // 2
        result = fidelity(_mixed(layers, order[:middle]))
        if result.keeps(exact):
            passes, best = middle, result
        else:
            fails = middle
    slow = order[:passes]
    note = f"overflow-free int8 weights in all layers reach {safe} {count}, uint8 weights {exact}; "
    note += f"{len(slow)} of {len(layers)} layers have uint8 weights, slower with VNNI: {best}"
    return _mixed(layers, slow), f"{note} ({', '.join(slow[:5])}{', ...' if len(slow) > 5 else ''})"


def _order(
    layers: Sequence[str],
    cost: Mapping[str, int],
    fidelity: Callable[[Encodings], Fidelity],
    safe: Fidelity,
) -> list[str]:
    """Layers by the output noise that the unsigned encoding of each alone removes, per multiplication."""

    def noise(measured: Fidelity) -> float:
        return float(10 ** (-measured.snr_db / 10))

    # Each layer alone: combinations would be exponential, and noise of different layers is nearly additive.
    removed = {
        name: (noise(safe) - noise(fidelity(_mixed(layers, [name])))) / max(cost.get(name, 1), 1)
        for name in layers
    }
    return sorted(layers, key=lambda name: -removed[name])


def _all(layers: Sequence[str], encoding: Encoding) -> Encodings:
    return dict.fromkeys(layers, encoding)


def _mixed(layers: Sequence[str], unsigned: Sequence[str]) -> Encodings:
    return {**_all(layers, "safe"), **_all(unsigned, "unsigned")}


def multiplications(prepared: Any) -> dict[str, int]:
    """Multiplications of each layer for one sample; its number of weights if the output shape is unknown."""
    values = (*prepared.graph.value_info, *prepared.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    outputs = {node.name or node.output[0]: shapes.get(node.output[0], []) for node in prepared.graph.node}
    counts = {}
    for layer in onnx_layers.read(prepared):
        shape = outputs.get(layer.name, [])
        positions = shape[2:] if "Conv" in layer.kind else shape[1:-1]
        counts[layer.name] = layer.weights * max(prod(positions), 1)
    return counts
