"""Finding the outputs that the options of a task name."""

from collections.abc import Sequence

import numpy as np

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


def only(outputs: Outputs, output: str | None, task: Task) -> Array:
    """The array of an output that is named as in ``position``; raises the same."""
    (at,) = position(output, outputs.all_names(), task)
    return outputs.arrays[at]


def are_probabilities(values: Array) -> bool:
    """Whether all values that are finite are in 0..1; otherwise they are logits."""
    real = values.astype(np.float64)
    finite = real[np.isfinite(real)]
    return bool(((finite >= 0) & (finite <= 1)).all())
