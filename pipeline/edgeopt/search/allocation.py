"""Bits for layers: the allocation of least noise within a number of bytes. Pure.

To first order, the noise of quantized layers adds up at the outputs, so the noise of every layer alone is
enough to choose for all of them. The choice is a knapsack problem with several kinds of each item, solved
exactly by integer programming (as in HAWQ-V3, Yao et al. 2021, arXiv:2011.10680).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

BITS = {"int4": 4, "int8": 8, "float32": 32}


class Sensitivity(NamedTuple):
    """One layer: its number of weights, and the noise it adds in each precision instead of int8."""

    name: str
    weights: int
    noise: Mapping[str, float]
    """Only precisions that the layer can have; that of int8 is 0."""


def allocate(layers: Sequence[Sensitivity], mean_bits: float) -> dict[str, str]:
    """The precision of the layers that differ from int8, for at most ``mean_bits`` per weight on average.

    If even the smallest precisions of all layers need more bits, these are the result.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    options = [(index, precision) for index, each in enumerate(layers) for precision in each.noise]
    if not options:
        return {}
    bits = np.array([BITS[precision] * layers[index].weights for index, precision in options], float)
    noise = np.array([layers[index].noise[precision] for index, precision in options])
    one_each = np.array([[float(index == row) for index, _ in options] for row in range(len(layers))])
    least = sum(min(BITS[precision] for precision in each.noise) * each.weights for each in layers)
    limit = max(mean_bits * sum(each.weights for each in layers), least)
    # Among equally noisy allocations, the smallest; and the solver works with numbers around 1.
    cost = noise / max(np.abs(noise).max(), 1e-30) + 1e-6 * bits / bits.sum()
    solved = milp(
        cost,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(bits[np.newaxis] / limit, -np.inf, 1 + 1e-9),
        ],
    )
    chosen = solved.x > 0.5
    return {
        layers[index].name: precision
        for (index, precision), taken in zip(options, chosen, strict=True)
        if taken and precision != "int8"
    }
