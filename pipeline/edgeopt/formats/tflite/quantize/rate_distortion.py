"""Rounding of weights to few values: the error of a layer's output is weighed against the bits of the codes.

Weights are rounded one by one and compensate for each other, as in `formats.weight_rounding`, but each to the
value with the least sum of its error and a price for the bits of its code: rare values are avoided where they
gain little. With one price in all layers, the bits are where they reduce the error of the outputs most.

Afterwards, each weight in turn takes the best value given all others, which the first ones did not know.

Source: rate-distortion optimized quantization with an entropy constraint (Chou et al. 1989), as in Deep
Compression with Huffman codes (Han et al. 2016, arXiv:1510.00149) and optimal brain compression (Frantar and
Alistarh 2022, arXiv:2208.11580); coordinate descent as in QuantEase (Behdin et al. 2023, arXiv:2309.01885).
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.tflite.files import huffman

Numbers = NDArray[np.float64]

BLOCK = 64
"""Weights whose compensations for all earlier ones are computed in one product."""
DAMPING = 0.1
"""Fraction of the mean moment added to the diagonal: errors are large here, and samples often few."""
LARGEST = 127
"""Largest symmetric int8 value."""
PASSES = 4
"""Times that each weight is chosen again: more change almost nothing."""
ABSENT = 2
"""Bits beyond the longest code that a value without a code is assumed to take."""
SPREAD = math.sqrt(12 / (2 * math.log(2)))
"""Ratio of the best step to the root of price and curvature, for weights that are wide against the step.

Rounding errors are uniform: a step d costs d^2/12, and half of it one bit more.
"""


class Choice(NamedTuple):
    """What the weights of a layer may be."""

    step: float
    price: float = 0.0
    """Of one bit of a code, in squared units of the output for inputs in steps."""
    values: Numbers | None = None
    """The only multiples of the step; None: all of them, at the price of their codes."""


class PricedRounding:
    """Rounding of the weights of one layer.

    Args:
        moments: second moments of its inputs ``[groups, width, width]``.
    """

    def __init__(self, moments: Numbers) -> None:
        diagonal = np.arange(moments.shape[1])
        self.moments = matrix = damped(moments)
        # Inputs with the largest moments first: many weights remain to compensate for their errors.
        self.order = np.argsort(-matrix[:, diagonal, diagonal], axis=1, kind="stable")
        # matrix = U D U^T, with ones on the diagonal of U, from the lower factor of the reversed matrix.
        each, reverse = np.arange(len(moments))[:, np.newaxis, np.newaxis], self.order[:, ::-1]
        ordered = matrix[each, reverse[:, :, np.newaxis], reverse[:, np.newaxis, :]]
        factor = np.linalg.cholesky(ordered).astype(np.float64)
        roots = factor[:, diagonal, diagonal]
        self.curvatures: Numbers = np.square(roots[:, ::-1]).astype(np.float64)
        """``[groups, width]``: squared error of the output by that of a weight, after compensation."""
        self.coefficients = (factor / roots[:, np.newaxis])[:, ::-1, ::-1].transpose(0, 2, 1)
        """``[groups, width, width]``: in row ``i``, what weight ``i`` takes up of the error of each other."""

    @property
    def curvature(self) -> float:
        """The mean of ``curvatures``."""
        return float(self.curvatures.mean())

    def coarse(self, rows: Numbers, choice: Choice, rounds: int = 2) -> Numbers:
        """Round ``rows`` ``[groups * outputs, width]`` to integers, in multiples of a step.

        Args:
            choice: the step, and the values or their price.
            rounds: times that the weights are rounded, each time with the code lengths of the time before.
        """
        values = _values_of(rows, choice)
        if choice.values is not None:
            return self._rounded(rows, values, choice.step, np.zeros(len(values)))
        codes = np.clip(np.rint(rows / choice.step), values[0], values[-1])
        for _ in range(rounds):
            codes = self._rounded(rows, values, choice.step, _prices_of(codes, values, choice))
        return codes

    def settled(self, rows: Numbers, codes: Numbers, choice: Choice) -> Numbers:
        """Integers that cost less than ``codes``: no single change of one reduces the error and its price.

        Args:
            rows: the weights, as for ``coarse``.
            codes: its result.
            choice: the step, and the values or their price.
        """
        groups, width, _ = self.moments.shape
        values = _values_of(rows, choice)
        levels = values * choice.step
        wanted, chosen = (
            each.reshape(groups, -1, width).transpose(0, 2, 1) for each in (rows, codes * choice.step)
        )
        # Half of the derivatives of the squared error by each weight.
        slopes = self.moments @ (chosen - wanted)
        for _ in range(PASSES):
            prices = _prices_of(chosen / choice.step, values, choice)
            for at in range(width):
                curvature = self.moments[:, at, at, np.newaxis]
                target = chosen[:, at] - slopes[:, at] / curvature
                costs = (target[:, :, np.newaxis] - levels) ** 2 * curvature[:, :, np.newaxis]
                change = levels[np.argmin(costs + prices, axis=-1)] - chosen[:, at]
                slopes += self.moments[:, :, at, np.newaxis] * change[:, np.newaxis]
                chosen[:, at] += change
        return np.rint(chosen.transpose(0, 2, 1).reshape(rows.shape) / choice.step)

    def _rounded(self, rows: Numbers, values: Numbers, step: float, prices: Numbers) -> Numbers:
        groups, width, _ = self.coefficients.shape
        places = self.order[:, :, np.newaxis]
        by_input = rows.reshape(groups, -1, width).transpose(0, 2, 1)
        weights = np.take_along_axis(by_input, places, axis=1)
        chosen, errors = np.empty_like(weights), np.empty_like(weights)
        levels = values * step
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            targets = weights[:, start:end] + self.coefficients[:, start:end, :start] @ errors[:, :start]
            for at in range(start, end):
                target = targets[:, at - start]
                target += (self.coefficients[:, at, np.newaxis, start:at] @ errors[:, start:at])[:, 0]
                costs = (target[:, :, np.newaxis] - levels) ** 2 * self.curvatures[
                    :, at, np.newaxis, np.newaxis
                ]
                best = np.argmin(costs + prices, axis=-1)
                chosen[:, at] = values[best]
                errors[:, at] = weights[:, at] - levels[best]
        result = np.empty_like(chosen)
        np.put_along_axis(result, places, chosen, axis=1)
        return result.transpose(0, 2, 1).reshape(rows.shape)


def _values_of(rows: Numbers, choice: Choice) -> Numbers:
    """The values, in steps, that a weight may take, ascending."""
    if choice.values is not None:
        return choice.values
    most = min(LARGEST, int(np.abs(rows).max() / choice.step) + 2)
    return np.arange(-most, most + 1, dtype=np.float64)


def _prices_of(codes: Numbers, values: Numbers, choice: Choice) -> Numbers:
    """The price of the code of each value, if the weights had these codes."""
    if choice.values is not None:
        return np.zeros(len(values))
    lengths = code_lengths(np.rint(codes))
    longest = max(lengths.values()) + ABSENT
    return choice.price * np.array([lengths.get(int(value), longest) for value in values])


def damped(moments: Numbers) -> Numbers:
    """Second moments ``[groups, width, width]`` that can be inverted, also of dependent inputs."""
    diagonal = np.arange(moments.shape[1])
    result = moments.copy()
    means = moments[:, diagonal, diagonal].mean(axis=1, keepdims=True)
    result[:, diagonal, diagonal] += np.maximum(DAMPING * means, 1e-12)
    return result


def adapted(rows: Numbers, own: Numbers, cross: Numbers) -> Numbers:
    """The weights with which a layer comes closest to its former outputs, on inputs that have changed.

    Args:
        rows: its weights ``[groups * outputs, width]``.
        own: second moments ``x x^T`` of the changed inputs ``[groups, width, width]``, around their mean.
        cross: second moments ``y x^T`` of the former inputs and the changed ones.
    """
    groups, width, _ = own.shape
    weights = rows.reshape(groups, -1, width).transpose(0, 2, 1)
    change = np.linalg.solve(damped(own), (cross - own).transpose(0, 2, 1) @ weights)
    return (weights + change).transpose(0, 2, 1).reshape(rows.shape)


def code_lengths(codes: Numbers) -> dict[int, int]:
    """The length of the Huffman code of each value."""
    return huffman.lengths_of(Counter(codes.astype(np.int64).reshape(-1).tolist()))


def code_bits(codes: Numbers) -> int:
    """The number of bits of all weights in Huffman codes."""
    values, counts = np.unique(codes, return_counts=True)
    lengths = code_lengths(codes)
    return int(sum(lengths[int(value)] * int(count) for value, count in zip(values, counts, strict=True)))
