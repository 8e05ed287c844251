"""What became of the decisions of a model: samples that changed most, and the charts of the task. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.plugin import Decisions, PerSample, Task
from edgeopt.results import Chart, Findings, Reference, SampleChange
from edgeopt.results.drawing import Raster, rounded
from edgeopt.results.findings import MAX_SAMPLES

SAME = 1e-6
"""Difference from an agreement of 1, or between two of them, that is rounding."""
MAX_CHARACTERS = 60_000
"""Maximum number of characters of the pixels that are drawn of one task of an artifact."""
SAME_NUMBERS = 1e-3
"""Difference from numbers, relative to their size, that is no change: 60 dB."""

Floats = NDArray[np.float64]


class Distance(NamedTuple):
    """How far the decisions for ``n`` samples are from others."""

    values: Floats
    """``[n]``: 1 - agreement; for tasks without one, the root of the mean squared difference."""
    negligible: Floats
    """What of it is no change, ``[n]``."""
    agreement: bool
    """Whether the task has an agreement."""


@dataclass(frozen=True)
class Reader:
    """A task, and what the source model decides and the labels ask for."""

    task: Task
    source: Decisions
    targets: PerSample | None = None
    """The labels of the task, if there are any."""
    head: str = ""
    """The name of the task; empty if the model has only one."""

    def findings(self, decisions: Decisions) -> Findings:
        """What an artifact changed: samples that got worse first, then those that agree least."""
        distance = _distance(self.task, decisions, self.source)
        changed = np.flatnonzero(~(distance.values <= distance.negligible))
        worse = self._worse(decisions)
        keys = [changed, -_shift(decisions, self.source)[changed]]  # the last key is the first one to decide
        keys.append(-np.nan_to_num(distance.values[changed], nan=np.inf))
        if worse is not None:
            keys.append((~worse[changed]).astype(int))
        first = changed[np.lexsort(keys)[:MAX_SAMPLES]].tolist()
        far = distance.values
        return Findings(
            head=self.head,
            changed=len(changed),
            worse=None if worse is None else int(worse[changed].sum()),
            samples=_fitting(
                SampleChange(
                    sample=index,
                    agreement=rounded(1 - float(far[index])) if distance.agreement else None,
                    error=None if distance.agreement else rounded(float(far[index])),
                    worse=None if worse is None else bool(worse[index]),
                    artifact=self.task.draw(decisions, index),
                )
                for index in first
            ),
            charts=self._charts(decisions),
        )

    def references(self, samples: Iterable[int]) -> tuple[Reference, ...]:
        """What changed samples are compared with: their labels, and the decisions of the source model."""
        expected = self.expected
        return tuple(
            Reference(
                head=self.head,
                sample=sample,
                label=None if expected is None else self.task.draw(expected, sample),
                source=self.task.draw(self.source, sample),
            )
            for sample in samples
        )

    @cached_property
    def expected(self) -> Decisions | None:
        """The labels as decisions, if they have the form of those of the source model."""
        expected = None if self.targets is None else self.task.expected(self.targets)
        if expected is None or not _alike(expected.values, self.source.values):
            return None
        return expected

    @cached_property
    def _source_errors(self) -> Floats | None:
        return None if self.expected is None else _distance(self.task, self.source, self.expected).values

    def _worse(self, decisions: Decisions) -> NDArray[np.bool_] | None:
        """Which decisions are farther from the labels than those of the source model ``[n]``."""
        before, expected = self._source_errors, self.expected
        if before is None or expected is None:
            return None
        after = _distance(self.task, decisions, expected).values
        return np.asarray(~(after <= before + SAME * np.maximum(1, np.abs(before))))

    def _charts(self, decisions: Decisions) -> tuple[Chart, ...]:
        try:
            return self.task.charts(decisions, self.source, self.targets)
        except UsageError:
            return ()  # labels of another form: a metric that reads them says so


def _fitting(changes: Iterable[SampleChange]) -> tuple[SampleChange, ...]:
    """The first changes whose pixels are not too large together."""
    kept, left = [], MAX_CHARACTERS
    for change in changes:
        left -= len(change.artifact.data) if isinstance(change.artifact, Raster) else 0
        if left < 0:
            break
        kept.append(change)
    return tuple(kept)


def _distance(task: Task, decisions: Decisions, other: Decisions) -> Distance:
    agreement = task.agreement(decisions, other)
    if agreement is not None:
        return Distance(1 - agreement, np.full(len(agreement), SAME), agreement=True)
    n = len(other.values)
    if not _alike(decisions.values, other.values) or not isinstance(other.values, np.ndarray):
        return Distance(np.zeros(n), np.zeros(n), agreement=False)
    one, two = (np.asarray(each.values, np.float64).reshape(n, -1) for each in (decisions, other))
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite have changed
        values, size = (np.sqrt(np.square(each).mean(axis=1)) for each in (one - two, two))
    return Distance(values, SAME_NUMBERS * size, agreement=False)


def _alike(values: PerSample, others: PerSample) -> bool:
    """Whether decisions can be compared: of one shape, unless samples differ in theirs."""
    if isinstance(values, np.ndarray) and isinstance(others, np.ndarray):
        return values.shape == others.shape
    return len(values) == len(others)


def _shift(decisions: Decisions, source: Decisions) -> Floats:
    """The largest change of a score of each sample ``[n]``: it orders those of equal agreement."""
    if decisions.scores is None or source.scores is None or decisions.scores.shape != source.scores.shape:
        return np.zeros(len(source.values))
    with np.errstate(invalid="ignore"):
        changes = np.abs(np.asarray(decisions.scores, np.float64) - np.asarray(source.scores, np.float64))
    largest = changes.reshape(len(changes), -1).max(axis=1, initial=0.0)
    return np.asarray(np.nan_to_num(largest, nan=np.inf), np.float64)
