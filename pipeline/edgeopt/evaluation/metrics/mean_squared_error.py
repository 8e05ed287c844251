"""Mean squared error of the outputs."""

from typing import ClassVar

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.plugin import Metric, Reading, Score
from edgeopt.results import Kind


class MeanSquaredError(Metric):
    """Mean squared error against labels of the outputs' shape; lower is better.

    For an autoencoder, the target is its own input: use the input as the label too, such as ``label: x``
    with an npz file. Preprocessing is not applied to labels, so save such data in the format of the model's
    inputs. Outputs that are not finite make the value infinite.
    """

    kind: ClassVar[Kind] = "error"
    higher_is_better: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    reads: ClassVar[Reading] = "values"

    def score(self, outputs: Array, target: Array) -> Score:
        count = len(outputs)
        if len(target) != count or outputs.size != target.size or not _same(outputs.shape, target.shape):
            raise UsageError(
                f"outputs of shape {list(outputs.shape)} cannot be compared with labels of shape "
                f"{list(target.shape)}",
                fix="mean_squared_error needs one label array per sample, with the shape of the output",
            )
        expected = target.reshape(outputs.shape).astype(np.float64)
        error = outputs.astype(np.float64) - expected
        per_sample = np.square(error).reshape(count, -1).mean(axis=1)
        per_sample = np.where(np.isfinite(per_sample), per_sample, np.inf)
        return Score(float(per_sample.mean()), per_sample)


def _same(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are equal apart from axes of length 1."""
    return [n for n in one[1:] if n != 1] == [n for n in other[1:] if n != 1]
