"""Which form the int8 weights of each layer get: fast where that costs nothing, exact where it does.

The safe form is about twice as fast as the unsigned one on processors with VNNI, and rounds weights to at
most one bit less. It is taken for the whole graph unless, on the samples at hand, it is really worse than
the unsigned form: by more than ``SNR_LOSS_DB``, or by more answers than ``AGREEMENT_LOSS`` and than chance.
Then layers go over to the unsigned form in the order of noise removed per multiplication, as few as bring the
graph back.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize.weights import Form
from edgeopt.results import snr_db

SNR_LOSS_DB = 2.0
AGREEMENT_LOSS = 0.01

Outputs: TypeAlias = NDArray[np.float32]
Forms: TypeAlias = dict[str, Form]


class Fidelity(NamedTuple):
    """How near outputs are to those of the float model."""

    snr_db: float
    agreement: float
    samples: int

    def __str__(self) -> str:
        return f"{self.snr_db:.1f} dB, agreement {self.agreement:.1%}"

    def keeps(self, other: "Fidelity") -> bool:
        """Whether it is about as good as another."""
        # Two standard errors: a difference of a few answers on a small set says nothing.
        chance = 2 * sqrt(2 * other.agreement * (1 - other.agreement) / max(other.samples, 1))
        near = self.snr_db >= other.snr_db - SNR_LOSS_DB
        return near and self.agreement >= other.agreement - max(AGREEMENT_LOSS, chance) - 1e-9


def fidelity(reference: Outputs, found: Outputs) -> Fidelity:
    """Outputs ``[n, values]`` against the float model's; one value per sample has no answers to agree on."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - found).sum())
    agreement = float((reference.argmax(1) == found.argmax(1)).mean()) if reference.shape[1] > 1 else 1.0
    return Fidelity(snr_db(signal, noise), agreement, len(reference))


def choose(
    layers: Sequence[str], cost: Mapping[str, int], reference: Outputs, run: Callable[[Forms], Outputs]
) -> tuple[Forms, str]:
    """The form of every layer, and a remark that tells the choice and its measure.

    ``run`` gives the outputs of the graph with given forms on the same samples as ``reference``; ``cost`` is
    the multiplications of each layer.
    """
    exact = fidelity(reference, run(_all(layers, "unsigned")))
    safe = fidelity(reference, run(_all(layers, "safe")))
    count = f"on {len(reference)} samples"
    if safe.keeps(exact):
        remark = f"int8 weights in the fast form that cannot overflow on any x86: {safe} {count}, "
        return _all(layers, "safe"), remark + f"the slower uint8 form {exact}"
    order = _order(layers, cost, reference, run, safe)
    fails, holds, best = 0, len(order), exact
    while holds - fails > 1:
        middle = (fails + holds) // 2
        found = fidelity(reference, run(_mixed(layers, order[:middle])))
        if found.keeps(exact):
            holds, best = middle, found
        else:
            fails = middle
    slow = order[:holds]
    remark = f"the fast overflow-free form of all layers gives {safe} {count}, the uint8 form {exact}; "
    remark += f"so {len(slow)} of {len(layers)} layers have uint8 weights, slower with VNNI: {best}"
    return _mixed(layers, slow), f"{remark} ({', '.join(slow[:5])}{', ...' if len(slow) > 5 else ''})"


def _order(
    layers: Sequence[str],
    cost: Mapping[str, int],
    reference: Outputs,
    run: Callable[[Forms], Outputs],
    safe: Fidelity,
) -> list[str]:
    def noise(found: Fidelity) -> float:
        return float(10 ** (-found.snr_db / 10))

    removed = {
        name: (noise(safe) - noise(fidelity(reference, run(_mixed(layers, [name])))))
        / max(cost.get(name, 1), 1)
        for name in layers
    }
    return sorted(layers, key=lambda name: -removed[name])


def _all(layers: Sequence[str], form: Form) -> Forms:
    return dict.fromkeys(layers, form)


def _mixed(layers: Sequence[str], unsigned: Sequence[str]) -> Forms:
    return {**_all(layers, "safe"), **_all(unsigned, "unsigned")}


def multiplications(prepared: Any) -> dict[str, int]:
    """Of each layer, for one sample, by the shapes in the graph; its weights where a shape is missing."""
    values = (*prepared.graph.value_info, *prepared.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    outputs = {node.name or node.output[0]: shapes.get(node.output[0], []) for node in prepared.graph.node}
    found = {}
    for layer in onnx_layers.read(prepared):
        shape = outputs.get(layer.name, [])
        places = shape[2:] if "Conv" in layer.kind else shape[1:-1]
        found[layer.name] = layer.weights * max(prod(places), 1)
    return found
