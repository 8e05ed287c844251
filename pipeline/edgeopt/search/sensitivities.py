"""How much noise each layer adds in each precision: measured once, and reused for every allocation."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeopt.search.allocation import BITS, Sensitivity, allocate
from edgeopt.search.measuring import Costs, Measuring
from edgeopt.search.rows import NOISE, SIZE
from edgeopt.search.space import BY_LAYER, NO_LAYERS, WHOLE, Allocations, Candidate, Layers, Space

LAYERS = 48
"""Most layers that are measured, the largest ones; the others stay in int8."""
SAMPLES = 256
"""Samples on which the noise is measured: it is a mean over all outputs, so few are enough."""


class Foreseen(NamedTuple):
    """A candidate of which some costs are known before it is tried."""

    candidate: Candidate
    costs: Mapping[str, float]
    """Objectives and noise, by name."""


class Sensitivities(NamedTuple):
    """What the layers say about a space."""

    allocations: Allocations
    foreseen: Sequence[Foreseen]


def sensitivities_of(measuring: Measuring, space: Space) -> Sensitivities:
    """The precision of the layers for every format and mean number of bits of a space, and what they cost."""
    widths = [bits for bits in space.choices("bits") if bits != WHOLE]
    schemes = [scheme for scheme in BY_LAYER if scheme in space.choices("quantize")]
    allocations: dict[tuple[str, float], Layers] = {}
    foreseen: list[Foreseen] = []
    if not widths or not schemes:
        return Sensitivities(allocations, foreseen)
    for target in space.choices("format"):
        other = [("int4", min(widths) < WHOLE), ("float32", max(widths) > WHOLE)]
        wanted = [name for name, used in other if used and name in space.precisions[target, schemes[0]]]
        usual, layers = _measured(measuring, target, schemes[0], wanted)
        for bits in widths:
            allocations[target, bits] = allocate(layers, bits) if layers else {}
        if usual is not None:
            start = {"format": target, "quantize": schemes[0]}
            for bits in space.choices("bits"):
                candidate = space.candidate(space.nearest(start | {"bits": bits}), allocations)
                chosen = allocations.get((target, bits), NO_LAYERS)
                foreseen.append(Foreseen(candidate, together(usual, layers, chosen)))
    return Sensitivities(allocations, foreseen)


def together(usual: Costs, layers: Sequence[Sensitivity], chosen: Layers) -> dict[str, float]:
    """The noise and the size of a variant some of whose layers have other precisions: both add up."""
    changed = [(each, chosen[each.name]) for each in layers if each.name in chosen]
    noise = sum(each.noise[precision] for each, precision in changed)
    saved = sum((BITS["int8"] - BITS[precision]) * each.weights for each, precision in changed)
    return {NOISE: max(usual.noise + noise, 0.0), SIZE: usual.size_bytes - saved / 8}


def _measured(
    measuring: Measuring, target: str, scheme: str, precisions: Sequence[str]
) -> tuple[Costs | None, list[Sensitivity]]:
    """The usual variant, and the largest layers with their noise when each alone has another precision.

    What fewer bits of the weights add depends little on the activations: one scheme stands for all of 8 bits.
    A layer that cannot have a precision, because no kernel supports it, does not list it.
    """
    layers = dict(list(measuring.layers[target].items())[:LAYERS])
    alone = [(name, precision) for name in layers for precision in precisions]
    candidates = [
        Candidate(target, {"quantize": {"scheme": scheme, "layers": {name: precision}}})
        for name, precision in alone
    ]
    usual, *costs = measuring.costs([Candidate(target, {"quantize": scheme}), *candidates], SAMPLES)
    if usual is None:
        return None, []
    found = {name: {"int8": 0.0} for name in layers}
    for (name, precision), each in zip(alone, costs, strict=True):
        if each is not None:
            # Differences below zero with fewer bits, or above with more, are chance.
            more, better = each.noise - usual.noise, precision == "float32"
            found[name][precision] = min(more, 0.0) if better else max(more, 0.0)
    return usual, [Sensitivity(name, layers[name], found[name]) for name in layers]
