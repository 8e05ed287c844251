"""Finding the outputs that the options of a task name."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import Field

from edgeopt.config.nearest import nearest
from edgeopt.config.registry import plugin_name
from edgeopt.errors import UsageError
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Task


def position(output: str | None, names: Sequence[str], task: Task) -> tuple[int, ...]:
    """The position of an output; of the only one if none is named.

    Raises:
        UsageError: there is no such output, or there are several and none is named.
    """
    listed = ", ".join(map(repr, names))
    if output is not None and output in names:
        return (list(names).index(output),)
    if output is not None:
        raise UsageError(
            f"the task {plugin_name(task)} reads the output {output!r}, which the model does not have"
            f"{nearest(output, names)}",
            fix=f"its outputs are {listed}",
        )
    if len(names) != 1:
        example = names[0] if names else "NAME"
        raise UsageError(
            f"the task {plugin_name(task)} reads one output, but the model has {len(names)}: {listed}",
            fix=f"name it: task: {{uses: {plugin_name(task)}, with: {{output: {example}}}}}",
        )
    return (0,)


def are_probabilities(values: Array) -> bool:
    """Whether all values that are finite are in 0..1; otherwise they are logits."""
    real = values.astype(np.float64)
    finite = real[np.isfinite(real)]
    return bool(((finite >= 0) & (finite <= 1)).all())


class OneOutput(Task):
    """Base of the tasks that read a single output."""

    output: str | None = Field(None, description="name of the output; needed if there are several")

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        return position(self.output, names, self)

    def only(self, outputs: Outputs) -> Array:
        """The array of the output; raises as ``position``."""
        (at,) = self.reads(outputs.all_names())
        return outputs.arrays[at]


class OneOutputOfScores(OneOutput):
    """Base of the tasks whose scores may be probabilities or logits: the source model's values decide."""

    probabilities: bool | None = Field(
        None, description="whether scores are probabilities, not logits; default: as the source's values show"
    )

    def settled(self, source: Outputs) -> Self:
        if self.probabilities is not None:
            return self
        return self.model_copy(update={"probabilities": are_probabilities(self.only(source))})
