"""Weight rounding that minimizes the error of the layer's output, instead of rounding to nearest.

GPTQ (Frantar et al. 2022, arXiv:2210.17323; closed form of Hassibi and Stork 1993): weights are rounded one
by one, and the remaining ones compensate for the error as far as their inputs are correlated. Only the second
moments of the inputs are needed. It is computed in the equivalent form of LDLQ (Chee et al. 2023,
arXiv:2307.13304, theorem 6), which needs one factorization and no inverse.
"""

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01
"""Fraction of the mean moment added to the diagonal: keeps the matrix invertible for dependent inputs."""
BLOCK = 32
"""Number of weights whose compensations from all earlier ones are added in one product."""

Numbers = NDArray[np.float64]
Working = NDArray[np.float32]


class Compensation:
    """How the weights of one layer compensate for each other's rounding errors.

    Args:
        moments: ``[groups, width, width]``, the sum or mean of ``x x^T`` over the inputs ``x`` of a group.
    """

    def __init__(self, moments: Numbers) -> None:
        groups, width, _ = moments.shape
        diagonal = np.arange(width)
        means = moments[:, diagonal, diagonal].mean(axis=1, keepdims=True)
        damped = moments.copy()
        damped[:, diagonal, diagonal] += np.maximum(DAMPING * means, 1e-12)
        # Inputs with the largest moments first: many weights remain to compensate for their errors.
        self.order = np.argsort(-damped[:, diagonal, diagonal], axis=1, kind="stable")
        each = np.arange(groups)[:, np.newaxis, np.newaxis]
        # Reversed, the lower factor is an upper one: damped = U D U^T with ones on the diagonal of U. The
        # error of the output is that of independent weights if each takes up the errors of all earlier ones
        # with the coefficients in its column of U.
        reverse = self.order[:, ::-1]
        factor = np.linalg.cholesky(damped[each, reverse[:, :, np.newaxis], reverse[:, np.newaxis, :]])
        upper = (factor / factor[:, np.newaxis, diagonal, diagonal])[:, ::-1, ::-1]
        self.coefficients: Working = np.ascontiguousarray(upper.transpose(0, 2, 1), np.float32)
        """``[groups, width, width]``: in row ``i``, what weight ``i`` takes up of the error of each other."""

    def round(self, rows: Numbers, scales: Numbers, lowest: Numbers, highest: Numbers) -> Numbers:
        """Quantize ``rows`` ``[groups * outputs, width]`` to integers, with one of the ``scales`` per row.

        Args:
            lowest: smallest integer of each weight, of the shape of ``rows``, or of all weights ``[1, 1]``.
            highest: largest integer, likewise.
        """
        groups, width, _ = self.coefficients.shape
        places = self.order[:, :, np.newaxis]

        def ordered(values: Numbers) -> Working:
            """``[groups, width, outputs]``: what one step reads lies side by side."""
            grouped = np.broadcast_to(values, rows.shape).reshape(groups, -1, width).transpose(0, 2, 1)
            return np.take_along_axis(grouped.astype(np.float32), places, axis=1)

        weights, low, high = ordered(rows), ordered(lowest), ordered(highest)
        steps = scales.reshape(groups, -1).astype(np.float32)
        rounded, errors = np.empty_like(weights), np.empty_like(weights)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            targets = weights[:, start:end] + self.coefficients[:, start:end, :start] @ errors[:, :start]
            for at in range(start, end):
                target = targets[:, at - start]
                target += (self.coefficients[:, at, np.newaxis, start:at] @ errors[:, start:at])[:, 0]
                nearest = np.rint(target / steps)
                rounded[:, at] = np.minimum(np.maximum(nearest, low[:, at]), high[:, at])
                errors[:, at] = weights[:, at] - rounded[:, at] * steps
        result = np.empty_like(rounded)
        np.put_along_axis(result, places, rounded, axis=1)
        return result.transpose(0, 2, 1).reshape(rows.shape).astype(np.float64)
