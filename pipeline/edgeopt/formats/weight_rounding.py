"""Weight rounding that minimizes the error of the layer's output, instead of rounding to nearest.

GPTQ (Frantar et al. 2022, arXiv:2210.17323; closed form of Hassibi and Stork 1993): weights are rounded one
by one, and the remaining ones compensate for the error as far as their inputs are correlated. Only the second
moments of the inputs are needed.
"""

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01
"""Fraction of the mean moment added to the diagonal: keeps the matrix invertible for dependent inputs."""

Rows = NDArray[np.float64]


def compensated(rows: Rows, scales: Rows, moments: Rows, lowest: Rows, highest: Rows) -> Rows:
    """Quantize ``rows`` ``[outputs, width]`` to integers from ``lowest`` to ``highest``, one scale per row.

    ``moments`` ``[width, width]`` is the sum or mean of ``x x^T`` over the inputs ``x``.
    """
    width = len(moments)
    diagonal = np.arange(width)
    damped = moments.copy()
    damped[diagonal, diagonal] += max(DAMPING * float(np.diag(moments).mean()), 1e-12)
    # Inputs with the largest moments first: many weights remain to compensate for their errors.
    order = np.argsort(-np.diag(damped), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    # A row of the Cholesky factor of the inverse holds the compensation by the weights not yet rounded, so
    # the inverse need not be updated after every step (GPTQ, section 3, step 3).
    remaining = rows[:, order].copy()
    low, high = lowest[:, order], highest[:, order]
    rounded = np.empty_like(remaining)
    for step in range(width):
        rounded[:, step] = np.clip(np.rint(remaining[:, step] / scales), low[:, step], high[:, step])
        error = (remaining[:, step] - rounded[:, step] * scales) / upper[step, step]
        remaining[:, step + 1 :] -= np.outer(error, upper[step, step + 1 :])
    result = np.empty_like(rounded)
    result[:, order] = rounded
    return result
