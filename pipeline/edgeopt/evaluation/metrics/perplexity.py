"""Perplexity of a language model."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import ratio_contributions
from edgeopt.evaluation.metrics._tokens import rate, step_targets
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind

SUM_TOLERANCE = 1e-3
LEVELS = 256
"""Probabilities of an 8-bit model: each may be off by one level, and so their sum by one per class."""


class Perplexity(Metric):
    """exp of the mean negative log-likelihood of the target tokens that count; 1 is perfect, lower is better.

    Source: Jelinek et al. 1977, Perplexity, a measure of the difficulty of speech recognition tasks. Labels
    are tokens ``[n, steps]``, for a language model the token after each step. Scores ``[n, steps, classes]``
    are probabilities if all are in 0..1 and those of a step sum to 1, as far as 8 bits per class allow;
    otherwise logits or log-likelihoods. A target of probability 0, as quantized probabilities often have, or
    scores that are not finite make the value infinite; logits avoid the former. Evidence is ``[n, 2]``:
    negative log-likelihood and number of the tokens of each sample that count.
    """

    kind: ClassVar[Kind] = "number"
    higher_is_better: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("sequence",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "scores"

    ignore: int = Field(-100, description="label of steps that do not count, such as padding")

    def score(self, outputs: Array, target: PerSample) -> Score:
        if outputs.ndim != 3:
            raise UsageError(
                f"scores of shape {list(outputs.shape)} are not [samples, steps, classes]",
                fix="perplexity needs the scores of all classes at each step",
            )
        tokens, counts = step_targets(target, outputs.shape[:2], self.ignore)
        classes = outputs.shape[2]
        large = np.argwhere(counts & (tokens >= classes))
        if len(large):
            sample, step = large[0]
            raise UsageError(
                f"label {tokens[sample, step]} of sample {sample}, step {step} is out of range: "
                f"the model has {classes} classes, 0 to {classes - 1}",
                fix="check that the labels belong to this model, and that they count from 0",
            )
        # Sample by sample: a copy of all scores of a large vocabulary may not fit into memory.
        scores = np.asarray(outputs, np.float64)
        probabilities = all(_are_probabilities(rows[keep]) for rows, keep in zip(scores, counts, strict=True))
        losses = _losses(scores, tokens, counts, probabilities)
        evidence = np.stack([np.fromiter(losses, np.float64), counts.sum(axis=1)], axis=1)
        return Score(self.weighted(evidence, np.ones(len(evidence))), evidence=evidence)

    def weighted(self, evidence: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(rate(evidence, weights)))

    def contributions(self, evidence: NDArray[np.float64], samples: int) -> Contributions:
        losses = ratio_contributions(evidence).values
        return Contributions(np.exp(losses.mean()) * (1 + losses - losses.mean()))


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    """Whether the rows of ``[steps, classes]`` are probabilities, apart from those with NaN."""
    rows = rows[~np.isnan(rows).any(axis=1)]
    off = np.abs(rows.sum(axis=1) - 1)
    tolerance = max(SUM_TOLERANCE, rows.shape[1] / LEVELS)
    return bool(((rows >= 0) & (rows <= 1)).all() and (off <= tolerance).all())


def _losses(
    scores: NDArray[np.float64], tokens: NDArray[np.int64], counts: NDArray[np.bool_], probabilities: bool
) -> Iterator[float]:
    """The sum of the negative log-likelihoods of each sample."""
    for sample, keep in enumerate(counts):
        rows = scores[sample][keep]
        of_target = rows[np.arange(len(rows)), tokens[sample][keep]]
        with np.errstate(divide="ignore", invalid="ignore"):
            if probabilities:
                losses = -np.log(of_target)
            else:
                largest = rows.max(axis=1)
                losses = np.log(np.exp(rows - largest[:, np.newaxis]).sum(axis=1)) + (largest - of_target)
        yield float(np.where(np.isnan(losses), np.inf, losses).sum())
