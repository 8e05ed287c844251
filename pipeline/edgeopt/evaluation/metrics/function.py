"""A metric from a user-defined function."""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.plugin import Code, Metric, Score
from edgeopt.results import Kind


class Function(Metric):
    """Call ``f(outputs, target, **arguments)`` with NumPy arrays of shape ``[n, ...]``.

    The function returns one number, or an array ``[n]`` with one number per sample, whose mean is the value.
    The target is the labels or, with ``compare_with: source``, the source model's outputs.
    """

    runs_code: ClassVar[bool] = True

    function: Code = Field(description="the function, as module:name")
    arguments: dict[str, Any] = Field({}, description="additional keyword arguments for the function")
    compare_with: Literal["labels", "source"] = Field(
        "labels", description="the target: labels, or the source model's outputs"
    )
    lower_is_better: bool = Field(False, description="set for errors and losses")
    shown_as: Kind = Field(
        "number", description="display format of the values, such as fraction for a percentage"
    )

    @property
    def against(self) -> Literal["labels", "source"]:  # type: ignore[override]
        return self.compare_with

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return not self.lower_is_better

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.shown_as

    def score(self, outputs: Array, target: Array) -> Score:
        result = self.function.load()(outputs, target, **self.arguments)
        values = np.asarray(result)
        if values.dtype.kind not in "biuf" or values.shape not in ((), (len(outputs),)):
            raise UsageError(
                f"{self.function.target} returned {type(result).__name__} of shape {list(values.shape)} "
                f"and dtype {values.dtype}",
                fix=f"return one number, or an array of {len(outputs)} numbers, one per sample",
            )
        values = values.astype(np.float64)
        return Score(float(values.mean()), values if values.ndim else None)
