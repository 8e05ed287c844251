"""How much noise each layer adds in each precision: measured once, and reused for every allocation."""

from collections.abc import Sequence

from edgeopt.search.allocation import Sensitivity, allocate
from edgeopt.search.measuring import Measuring
from edgeopt.search.space import BY_LAYER, WHOLE, Allocations, Candidate, Space

LAYERS = 48
"""Most layers that are measured, the largest ones; the others stay in int8."""
SAMPLES = 256
"""Samples on which the noise is measured: it is a mean over all outputs, so few are enough."""


def allocations_of(measuring: Measuring, space: Space) -> Allocations:
    """The precision of the layers for every format and mean number of bits of a space."""
    widths = [bits for bits in space.choices("bits") if bits != WHOLE]
    schemes = [scheme for scheme in BY_LAYER if scheme in space.choices("quantize")]
    if not widths or not schemes:
        return {}
    allocations = {}
    for target in space.choices("format"):
        other = [("int4", min(widths) < WHOLE), ("float32", max(widths) > WHOLE)]
        wanted = [name for name, used in other if used and name in space.precisions[target, schemes[0]]]
        layers = sensitivities(measuring, target, schemes[0], wanted)
        for bits in widths:
            allocations[target, bits] = allocate(layers, bits) if layers else {}
    return allocations


def sensitivities(
    measuring: Measuring, target: str, scheme: str, precisions: Sequence[str]
) -> list[Sensitivity]:
    """The largest layers of a format, each with its noise when it alone has another precision than int8.

    What fewer bits of the weights add depends little on the activations: one scheme stands for all of 8 bits.
    A layer that cannot have a precision, because no kernel supports it, does not list it.
    """
    layers = dict(list(measuring.layers[target].items())[:LAYERS])
    alone = [(name, precision) for name in layers for precision in precisions]
    candidates = [
        Candidate(target, {"quantize": {"scheme": scheme, "layers": {name: precision}}})
        for name, precision in alone
    ]
    usual, *noise = measuring.noise([Candidate(target, {"quantize": scheme}), *candidates], SAMPLES)
    if usual is None:
        return []
    found = {name: {"int8": 0.0} for name in layers}
    for (name, precision), each in zip(alone, noise, strict=True):
        if each is not None:
            # Differences below zero with fewer bits, or above with more, are chance.
            better = precision == "float32"
            found[name][precision] = min(each - usual, 0.0) if better else max(each - usual, 0.0)
    return [Sensitivity(name, layers[name], found[name]) for name in layers]
