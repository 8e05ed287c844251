"""Second moments of what a layer reads, ``sum x x^T`` over samples and positions.

The squared error of a layer's output is a quadratic form of its weights, and this is its matrix: once it is
summed up, no sample is needed any more (optimal brain surgeon, GPTQ, AdaRound).
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array


class SecondMoments:
    """The sum for one layer: products in the type of the rows, added up in float64."""

    def __init__(self) -> None:
        self.matrix: NDArray[np.float64] | None = None
        """``[groups, width, width]``; None before the first rows."""

    def add(self, rows: Array) -> None:
        """``rows``: what single outputs are weighted sums of, ``[groups, positions, width]``."""
        product = np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64)
        self.matrix = product if self.matrix is None else self.matrix + product
