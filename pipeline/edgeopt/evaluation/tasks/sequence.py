"""A class at each step: tags, tokens of a language model, transcripts by CTC."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.tasks._outputs import OneOutput
from edgeopt.model import Array, Outputs
from edgeopt.plugin import Decisions, PerSample
from edgeopt.results import Chart, Drawing, Histogram, Tokens

MAX_ERRORS = 20
"""Sequences with this number of wrong tokens or more are counted together."""


class Sequence(OneOutput):
    """The class with the highest score at each step, or the sequence that a CTC output spells.

    The output is ``[n, steps, classes]``, or ``[n, classes, steps]`` with ``time_axis: 2``. The samples are
    the first axis: an output ``[steps, n, classes]``, as of PyTorch's recurrent layers without
    ``batch_first``, is not supported, because outputs are read sample by sample. CTC is decoded by the best
    path: the class of each step, repetitions collapsed, blanks dropped (Graves et al. 2006, Connectionist
    Temporal Classification, section 3.2). A step with scores that are not finite has the class -1, which is
    wrong. ``ctc`` and ``next`` have to be named in the recipe; ``steps`` is recognized by its labels.
    """

    order: ClassVar[int] = 50
    metrics: ClassVar[tuple[str, ...]] = ("token_accuracy",)

    decode: Literal["steps", "ctc", "next"] = Field(
        "steps",
        description="steps: a class per step; next: the same for a language model, where the label of a step "
        "is the token that follows it; ctc: a shorter sequence, by the best path",
    )
    blank: int = Field(0, description="class of the CTC blank; a negative one counts from the last class")
    time_axis: int = Field(1, ge=1, le=2, description="axis of the steps; 0 is that of the samples")

    @classmethod
    def fits(cls, outputs: Outputs, targets: PerSample | None) -> bool:
        if len(outputs.arrays) != 1 or not isinstance(targets, np.ndarray):
            return False
        (array,) = outputs.arrays
        steps = array.ndim == 3 and array.dtype.kind == "f" and array.shape[2] > 1
        return steps and targets.dtype.kind in "iu" and targets.shape == array.shape[:2]

    def decide(self, outputs: Outputs) -> Decisions:
        """Values are int64 ``[n, steps]``, for ctc a list of ``n`` arrays ``[k]``; scores float64."""
        array = self.only(outputs)
        if array.ndim != 3:
            raise UsageError(
                f"outputs of shape {list(array.shape)} are not [samples, steps, classes]",
                fix="name the task of the model, such as 'task: classification' for one class per sample",
            )
        scores = np.asarray(np.moveaxis(array, self.time_axis, 1), np.float64)
        classes = scores.shape[2]
        if classes < 2:
            raise UsageError(
                f"outputs of shape {list(array.shape)} have {classes} class at each step",
                fix=f"set 'time_axis: {3 - self.time_axis}' if the classes are on the other axis",
            )
        path = np.where(np.isfinite(scores).all(axis=2), scores.argmax(axis=2), -1)
        if self.decode != "ctc":
            return Decisions(path, scores)
        if not -classes <= self.blank < classes:
            raise UsageError(
                f"the blank {self.blank} is out of range: the model has the classes 0 to {classes - 1}",
                fix="set 'blank' to the class of the blank; -1 is the last one",
            )
        kept = path != self.blank % classes
        kept[:, 1:] &= path[:, 1:] != path[:, :-1]
        return Decisions([row[keep] for row, keep in zip(path, kept, strict=True)], scores)

    def agreement(self, decisions: Decisions, source: Decisions) -> NDArray[np.float64] | None:
        """The fraction of equal steps; for ctc, 1 - edit distance / length of the source's sequence, 0..1."""
        one, other = decisions.values, source.values
        if self.decode != "ctc":
            found, wanted = np.asarray(one, np.int64), np.asarray(other, np.int64)
            return np.asarray(((found == wanted) & (found >= 0)).mean(axis=1), np.float64)
        # -1 never agrees, not even with -1 of the source.
        pairs = [(np.where(a < 0, -2, a), b) for a, b in zip(one, other, strict=True)]
        return np.array([max(0.0, 1 - _edits(a, b) / max(len(b), 1)) for a, b in pairs])

    def expected(self, targets: PerSample) -> Decisions | None:
        """The labels; for ctc without negative tokens, which fill up shorter sequences."""
        rows = [np.asarray(each) for each in targets]
        if not rows or any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in rows):
            return None
        if self.decode == "ctc":
            return Decisions([row[row >= 0].astype(np.int64) for row in rows])
        return Decisions(np.stack(rows).astype(np.int64)) if len({len(row) for row in rows}) == 1 else None

    def draw(self, decisions: Decisions, sample: int) -> Drawing | None:
        return Tokens.of(np.asarray(decisions.values[sample], np.int64))

    def charts(self, decisions: Decisions, source: Decisions, targets: PerSample | None) -> tuple[Chart, ...]:
        """How many tokens of a sequence are wrong; without labels, how many differ from the source's."""
        expected = None if targets is None else self.expected(targets)
        wanted = source if expected is None else expected
        if len(wanted.values) != len(source.values):
            return ()
        if self.decode != "ctc" and np.shape(wanted.values) != np.shape(source.values):
            return ()
        before, after = (self._wrong(each, wanted) for each in (source, decisions))
        most = min(MAX_ERRORS, int(max(before.max(initial=0), after.max(initial=0))))
        title = "wrong tokens of a sequence"
        if expected is None:
            title = "tokens of a sequence that differ from the original model's"
        return (
            Histogram.of(
                title,
                f"tokens, {most} or more in the last" if most == MAX_ERRORS else "tokens",
                None if expected is None else before.clip(0, most),
                after.clip(0, most),
                np.arange(most + 2, dtype=np.float64) - 0.5,
            ),
        )

    def _wrong(self, decisions: Decisions, expected: Decisions) -> NDArray[np.float64]:
        """The number of wrong tokens of each sequence; steps with a negative label do not count."""
        pairs = zip(decisions.values, expected.values, strict=True)
        if self.decode == "ctc":
            return np.array([_edits(one, other) for one, other in pairs], np.float64)
        return np.array([np.sum((one != other) & (other >= 0)) for one, other in pairs], np.float64)


def _edits(one: Array, other: Array) -> int:
    """Edit distance (Levenshtein 1966), one row of the table at a time."""
    places = np.arange(len(other) + 1)
    row = places
    for token in one:
        changed = np.minimum(row[1:] + 1, row[:-1] + (other != token))
        # Insertions: the lowest entry to the left, plus the number of places.
        row = np.minimum.accumulate(np.concatenate([row[:1] + 1, changed]) - places) + places
    return int(row[-1])
