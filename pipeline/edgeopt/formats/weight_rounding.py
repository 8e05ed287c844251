"""Weight rounding that minimizes the error of the layer's output, instead of rounding to nearest.

GPTQ (Frantar et al. 2022, arXiv:2210.17323; closed form of Hassibi and Stork 1993): weights are rounded one
by one, and the remaining ones compensate for the error as far as their inputs are correlated. Only the second
moments of the inputs are needed.
"""

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01
"""Fraction of the mean moment added to the diagonal: keeps the matrix invertible for dependent inputs."""
BLOCK = 64
"""Number of weights after whose rounding the compensations of all later ones are added in one product."""

Numbers = NDArray[np.float64]


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
        damped = damped[each, self.order[:, :, np.newaxis], self.order[:, np.newaxis, :]]
        # A row of the Cholesky factor of the inverse holds the compensation by the weights not yet rounded,
        # so the inverse need not be updated after every step (GPTQ, section 3, step 3).
        self.upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)

    def round(self, rows: Numbers, scales: Numbers, lowest: Numbers, highest: Numbers) -> Numbers:
        """Quantize ``rows`` ``[groups * outputs, width]`` to integers, with one of the ``scales`` per row.

        Args:
            lowest: smallest integer of each weight, of the shape of ``rows``.
            highest: largest integer of each weight.
        """
        groups, width, _ = self.upper.shape
        places = self.order[:, :, np.newaxis]

        def ordered(values: Numbers) -> Numbers:
            """``[groups, width, outputs]``: what one step reads lies side by side."""
            return np.take_along_axis(values.reshape(groups, -1, width).transpose(0, 2, 1), places, axis=1)

        remaining, low, high = ordered(rows), ordered(lowest), ordered(highest)
        steps = scales.reshape(groups, -1)
        rounded, errors = np.empty_like(remaining), np.empty_like(remaining)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            for at in range(start, end):
                factors = self.upper[:, at, at:end, np.newaxis]
                rounded[:, at] = np.clip(np.rint(remaining[:, at] / steps), low[:, at], high[:, at])
                errors[:, at] = (remaining[:, at] - rounded[:, at] * steps) / factors[:, 0]
                remaining[:, at + 1 : end] -= factors[:, 1:] * errors[:, at, np.newaxis]
            later = self.upper[:, start:end, end:].transpose(0, 2, 1)
            remaining[:, end:] -= later @ errors[:, start:end]
        result = np.empty_like(rounded)
        np.put_along_axis(result, places, rounded, axis=1)
        return result.transpose(0, 2, 1).reshape(rows.shape)
