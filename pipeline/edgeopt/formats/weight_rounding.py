"""Rounding weights so that errors cancel in the layer's output, instead of each to its nearest step.

After GPTQ (Frantar et al. 2022, arXiv:2210.17323; the closed form is that of Hassibi and Stork 1993): weights
are rounded one after the other, and the error of each is made up for by those that are still to come,
as far as the inputs they weigh go together. It needs the second moments of the inputs only.
"""

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01
"""Share of the mean moment added to all: inputs that were never seen apart are not trusted to cancel."""

Rows = NDArray[np.float64]


def compensated(rows: Rows, scales: Rows, moments: Rows, lowest: Rows, highest: Rows) -> Rows:
    """Integers for ``rows`` ``[outputs, width]``, one scale per row, between ``lowest`` and ``highest``.

    ``moments`` ``[width, width]`` is the sum or mean of ``x x^T`` over inputs ``x``.
    """
    width = len(moments)
    diagonal = np.arange(width)
    damped = moments.copy()
    damped[diagonal, diagonal] += max(DAMPING * float(np.diag(moments).mean()), 1e-12)
    # The inputs that matter most come first, while there are many left to make up for them.
    order = np.argsort(-np.diag(damped), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = rows[:, order].copy()
    low, high = lowest[:, order], highest[:, order]
    found = np.empty_like(left)
    for step in range(width):
        found[:, step] = np.clip(np.rint(left[:, step] / scales), low[:, step], high[:, step])
        error = (left[:, step] - found[:, step] * scales) / upper[step, step]
        left[:, step + 1 :] -= np.outer(error, upper[step, step + 1 :])
    result = np.empty_like(found)
    result[:, order] = found
    return result
