"""How many bits the weights of each layer get: where they reduce the noise of the outputs most."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.tflite.quantize.coarse_weights import CoarseLayer, Sensitivity
from edgeopt.formats.tflite.quantize.rate_distortion import LARGEST, SPREAD, Choice, PricedRounding, code_bits

Numbers = NDArray[np.float64]

TOLERANCE = 0.02
"""Difference from the requested number of bits that is close enough."""
TRIES = 7
WIDTHS = range(1, 8)
"""Bits of an index into a table of values."""
ITERATIONS = 50


def codes_of(layers: Sequence[CoarseLayer], found: Sequence[Sensitivity], bits: float) -> list[Choice]:
    """The steps and prices with which the code of a weight has ``bits`` on average, over all layers."""
    roundings = [PricedRounding(each.own) for each in found]
    weights = sum(layer.rows.size for layer in layers)

    def chosen(exponent: float) -> list[Choice]:
        """The choices if one bit is worth a noise of the outputs of 2 to the ``exponent``."""
        choices = []
        for layer, each, rounding in zip(layers, found, roundings, strict=True):
            price = 2.0**exponent / each.noise / layer.input_scale**2
            step = float(SPREAD * np.sqrt(price / rounding.curvature))
            choices.append(Choice(max(step, layer.least_step), price))
        return choices

    def mean_bits(choices: Sequence[Choice]) -> float:
        parts = zip(layers, roundings, choices, strict=True)
        return sum(code_bits(each.coarse(layer.rows, choice, 1)) for layer, each, choice in parts) / weights

    # Four times the noise is half the accuracy of a weight: one bit less.
    noises = [
        each.noise * layer.input_scale**2 * rounding.curvature * (float(np.std(layer.rows)) / 4) ** 2
        for layer, each, rounding in zip(layers, found, roundings, strict=True)
    ]
    exponent = float(np.log2(np.median(noises)))
    low, high = -np.inf, np.inf
    choices = chosen(exponent)
    for _ in range(TRIES):
        excess = mean_bits(choices) - bits
        if abs(excess) < TOLERANCE:
            break
        low, high = (exponent, high) if excess > 0 else (low, exponent)
        exponent += 2 * excess
        if not low < exponent < high:
            exponent = (low + high) / 2
        choices = chosen(exponent)
    return choices


def tables_of(layers: Sequence[CoarseLayer], found: Sequence[Sensitivity], bits: float) -> list[Choice]:
    """Values for each layer: 2 to the number of bits of an index, which is ``bits`` on average.

    A Lagrange multiplier, the price of a bit, makes the choices independent (Shoham and Gersho 1988).
    """
    options = [[_table(layer, 2**width) for width in WIDTHS] for layer in layers]
    noises = np.array(
        [
            [each.noise * _error(layer, each, choice) for choice in row]
            for layer, each, row in zip(layers, found, options, strict=True)
        ]
    )
    sizes = np.array([layer.rows.size for layer in layers])
    costs = sizes[:, np.newaxis] * np.array(WIDTHS)
    low, high = np.log2(max(noises.min(), 1e-30)) - 40, np.log2(max(noises.max(), 1e-30)) + 10
    for _ in range(60):
        middle = (low + high) / 2
        picked = np.argmin(noises + 2.0**middle * costs, axis=1)
        fits = costs[np.arange(len(layers)), picked].sum() <= max(bits, 1) * sizes.sum()
        low, high = (low, middle) if fits else (middle, high)
    picked = np.argmin(noises + 2.0**high * costs, axis=1)
    return [row[index] for row, index in zip(options, picked, strict=True)]


def _table(layer: CoarseLayer, count: int) -> Choice:
    """The values that represent the weights of a layer best, by k-means, as steps of int8 (Lloyd 1982)."""
    step = layer.least_step
    weights = np.sort(layer.rows.reshape(-1) / step)
    # Equal distances: the few large weights, which matter most, have values of their own.
    centres = np.linspace(weights[0], weights[-1], count)
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    for _ in range(ITERATIONS):
        edges = np.searchsorted(weights, (centres[1:] + centres[:-1]) / 2)
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(weights)]])
        means = (sums[ends] - sums[starts]) / np.maximum(ends - starts, 1)
        updated = np.where(ends > starts, means, centres)
        if np.array_equal(updated, centres):
            break
        centres = updated
    return Choice(step, 0.0, np.unique(np.clip(np.rint(centres), -LARGEST, LARGEST)))


def _error(layer: CoarseLayer, sensitivity: Sensitivity, choice: Choice) -> float:
    """The squared error of the outputs if each weight has the nearest value."""
    assert choice.values is not None  # of a table
    middles = (choice.values[1:] + choice.values[:-1]) / 2
    codes = choice.values[np.searchsorted(middles, layer.rows / choice.step)]
    return layer.error(codes, choice.step, sensitivity.means, sensitivity.own)
