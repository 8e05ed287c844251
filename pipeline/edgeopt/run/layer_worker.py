"""Compares two models layer by layer in a worker process, isolated from crashes of a framework."""

from collections.abc import Callable, Sequence
from typing import cast

from edgeopt.errors import StageError
from edgeopt.evaluation.layer_comparison import Data, compare
from edgeopt.evaluation.layer_statistics import Comparison
from edgeopt.model import Model
from edgeopt.plugin import Worker
from edgeopt.results import Event
from edgeopt.run.executors.executor import Say, Task
from edgeopt.run.executors.local import LocalExecutor

COMPARISON_MINUTES = 20.0


def compare_apart(
    worker: Worker,
    reference: Model,
    quantized: Model,
    data: Sequence[Data],
    samples: int,
    branch: str,
    watch: Callable[[Event], None],
) -> Comparison:
    """Run `compare` in a worker process.

    Raises:
        StageError: `compare` raised it, or the process died or exceeded the time limit.
    """
    watch(Event(branch=branch, step="compare layers", status="started"))
    task = Task(
        key=branch,
        function=_compare,
        args=(reference, quantized, tuple(data), samples),
        worker=worker,
        minutes=COMPARISON_MINUTES,
        too_long="compare on fewer samples: --samples 8",
    )
    with LocalExecutor() as executor:
        executor.submit(task)
        result = next(iter(executor.wait(2 * COMPARISON_MINUTES * 60)))
    if result.failure:
        raise StageError(f"cannot compare {branch} layer by layer: {result.failure}")
    watch(Event(branch=branch, step="compare layers", status="done"))
    return cast("Comparison", result.value)


def _compare(say: Say, reference: Model, quantized: Model, data: Sequence[Data], samples: int) -> Comparison:
    return compare(reference, quantized, data, samples)
