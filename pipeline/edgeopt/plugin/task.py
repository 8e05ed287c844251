"""Tasks: what the outputs of a model mean."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, TypeAlias

from edgeopt.config.registry import Kind
from edgeopt.model import Array, Outputs
from edgeopt.plugin.base import Plugin
from edgeopt.results.drawing import Drawing
from edgeopt.results.findings import Chart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PerSample: TypeAlias = Array | Sequence[Array]
"""One entry per sample: an array ``[n, ...]``, or ``n`` arrays whose shapes may differ."""


Labels: TypeAlias = PerSample | Mapping[str, PerSample]
"""The labels of all samples; by the name of the task, if the data have them for several."""


class Decisions(NamedTuple):
    """What a task makes of the outputs of a model for ``n`` samples."""

    values: PerSample
    """The answer for each sample, in the terms of the task: a class, boxes, a mask, a sequence, numbers."""
    scores: Array | None = None
    """What the answers were chosen by, ``[n, ..., classes]``; None if the task does not choose."""


class Task(Plugin):
    """Turns outputs into decisions, and says when two agree and how they are shown.

    Nothing else interprets outputs, and nothing else knows what a decision is.
    """

    plugin_kind: ClassVar[Kind] = "tasks"

    order: ClassVar[int] = 100
    """Without a task in the recipe, the first one that ``fits`` is used, by increasing order."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that are usual for the task, for recipes that name none."""
    broken_agreement: ClassVar[float | None] = 0.75
    """The agreement with the model before, below which a step broke the model; None if that says nothing."""

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        """Whether outputs and targets look like those of this task; ``targets`` is None without labels."""
        return False

    def reads(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of the outputs that the task interprets; default: all.

        Raises:
            UsageError: an output that the options name is not among ``names``.
        """
        return tuple(range(len(names)))

    def settled(self, source: Outputs) -> Self:
        """The task with all options decided that the outputs of the source model show; default: itself.

        An artifact's outputs are then read in the same way, even where its errors suggest another one.
        """
        return self

    @abstractmethod
    def decide(self, outputs: Outputs) -> Decisions:
        """Interpret the outputs of ``n`` samples. An output that is not finite is a wrong decision.

        Raises:
            UsageError: the outputs are not those of this task, by number, name or shape.
        """

    def agreement(self, decisions: Decisions, source: Decisions) -> "NDArray[np.float64] | None":
        """How far each sample's decision is that of the source model, 0..1 ``[n]``; None if undefined."""
        return None

    def expected(self, targets: PerSample) -> Decisions | None:
        """The decisions that labels ask for, as of a model without errors; None if they have no such form."""
        return None

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        """How a report shows the decision for one sample, or its label as ``expected``; default: it does not.

        Places are in pixels of the sample. A drawing is small, whatever the size of the decision.
        """
        return None

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """What a report shows of the decisions for all samples, beside those of the source model.

        The size of a chart does not grow with the number of samples. Default: none.

        Raises:
            UsageError: ``targets`` are not labels of this task.
        """
        return ()


class Head(NamedTuple):
    """A task of a recipe, and the outputs that it reads."""

    name: str
    """The names of the outputs, joined with ``+``; empty: all outputs, of a model with one task."""
    task: Task

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.name.split("+")) if self.name else ()


class Decoder(Plugin):
    """Computes what a task reads from the outputs of a model, on the host, such as boxes from raw heads."""

    plugin_kind: ClassVar[Kind] = "decoders"

    @abstractmethod
    def apply(self, outputs: Outputs) -> Outputs:
        """The outputs for the task, of the same ``n`` samples.

        Raises:
            UsageError: the outputs are not those that it decodes, by number, name or shape.
        """
