"""Second moments of a layer's inputs: ``sum x x^T`` over samples and positions.

The squared error of the layer's output is a quadratic form in the change of its weights, with this matrix:
once it is accumulated, the samples are no longer needed (optimal brain surgeon, GPTQ, AdaRound).
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array


class SecondMoments:
    """The sum for one layer: products in the type of the rows, accumulated in float64."""

    def __init__(self) -> None:
        self.matrix: NDArray[np.float64] | None = None
        """``[groups, width, width]``; None before the first rows."""

    def add(self, rows: Array) -> None:
        """Accumulate ``rows`` ``[groups, positions, width]``: the inputs of one output value each."""
        product = np.matmul(rows.transpose(0, 2, 1), rows)
        if self.matrix is None:
            self.matrix = product.astype(np.float64)
        else:
            self.matrix += product
