"""Tasks: what the outputs of a model mean."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.registry import Kind
from edgeopt.model import Array, Outputs
from edgeopt.plugin.base import Plugin

PerSample: TypeAlias = Array | Sequence[Array]
"""One entry per sample: an array ``[n, ...]``, or ``n`` arrays whose shapes may differ."""


class Decisions(NamedTuple):
    """What a task makes of the outputs of a model for ``n`` samples."""

    values: PerSample
    """The answer for each sample, in the terms of the task: a class, boxes, a mask, a sequence, numbers."""
    scores: Array | None = None
    """What the answers were chosen by, ``[n, ..., classes]``; None if the task does not choose."""


class Task(Plugin):
    """Turns outputs into decisions, and says when two decisions agree. Nothing else interprets outputs."""

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

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        """How far each sample's decision is that of the source model, 0..1 ``[n]``; None if undefined."""
        return None


class Decoder(Plugin):
    """Computes what a task reads from the outputs of a model, on the host, such as boxes from raw heads."""

    plugin_kind: ClassVar[Kind] = "decoders"

    @abstractmethod
    def apply(self, outputs: Outputs) -> Outputs:
        """The outputs for the task, of the same ``n`` samples.

        Raises:
            UsageError: the outputs are not those that it decodes, by number, name or shape.
        """
