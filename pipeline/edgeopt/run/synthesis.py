"""Makes samples from the statistics of a model, in a worker process of its framework."""

from collections.abc import Callable
from typing import NamedTuple

from edgeopt.errors import CannotRunError
from edgeopt.formats.known import format_named
from edgeopt.model import Array, Model
from edgeopt.plugin import Worker
from edgeopt.plugin.synthesis import Synthesis
from edgeopt.results import Event
from edgeopt.run.executors.executor import Say, Task
from edgeopt.run.executors.local import LocalExecutor

MINUTES = 60.0
STEP = "synthesize"
EVERY = 20
"""Steps between two lines of progress."""


class Synthesized(NamedTuple):
    """Samples, one array ``[n, ...]`` per input, and how far they are from the statistics."""

    arrays: tuple[Array, ...]
    before: float
    """Loss of the first samples."""
    after: float


def synthesize_apart(
    worker: Worker, model: Model, given: Synthesis, watch: Callable[[Event], None]
) -> Synthesized:
    """Make samples in a worker process.

    Raises:
        CannotRunError: the model cannot be loaded, or has no batch norm.
    """
    task = Task(
        key=STEP,
        function=_synthesize,
        args=(model, given),
        worker=worker,
        minutes=MINUTES,
        too_long="make fewer samples: --samples 16",
    )
    watch(Event(branch="", step=STEP, status="started"))
    with LocalExecutor() as executor:
        executor.submit(task)
        while not (results := executor.wait(1.0)):
            for progress in executor.progress():
                watch(Event(branch="", step=STEP, status="note", message=progress.line))
    (result,) = results
    if result.failure:
        watch(Event(branch="", step=STEP, status="failed", message=result.failure))
        raise CannotRunError(f"no samples could be made for {model.path.name}: {result.failure}")
    watch(Event(branch="", step=STEP, status="done", seconds=result.seconds))
    found: Synthesized = result.value
    return found


def _synthesize(say: Say, model: Model, given: Synthesis) -> Synthesized:
    losses: list[float] = []

    def progress(loss: float) -> None:
        losses.append(loss)
        if len(losses) % EVERY == 0:
            say(f"step {len(losses)}: difference of the statistics {loss:.4f}")

    arrays = format_named(model.format).synthesize(model, given, progress)
    first, last = losses[: given.steps], losses[-given.steps :]
    return Synthesized(tuple(arrays), first[0], last[-1])
