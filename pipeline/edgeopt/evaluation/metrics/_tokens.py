"""Shared by the sequence metrics: one target token per step, and rates over all tokens of a set."""

import math

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.plugin import PerSample


def step_targets(
    target: PerSample, steps: tuple[int, ...], ignore: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Target tokens for outputs of ``steps`` = (n, t): tokens ``[n, t]``, and which of them count.

    Raises:
        UsageError: the targets are not one integer per step, a counted one is negative, or none counts.
    """
    if not isinstance(target, np.ndarray):
        raise UsageError(
            "the label sequences differ in length, but there must be one token per step",
            fix=f"pad them to {steps[1]} steps with {ignore}, or compare sequences with wer or cer",
        )
    if target.dtype.kind not in "iu":
        raise UsageError(
            f"labels are {target.dtype}, not integers", fix="save tokens as integers: y.astype('int64')"
        )
    if target.shape != steps:
        raise UsageError(
            f"outputs for {list(steps)} (samples, steps) cannot be compared with labels of shape "
            f"{list(target.shape)}",
            fix=f"provide one token per step, and {ignore} at steps that do not count",
        )
    tokens = target.astype(np.int64)
    counts = tokens != ignore
    negative = np.argwhere(counts & (tokens < 0))
    if len(negative):
        sample, step = negative[0]
        raise UsageError(
            f"label {tokens[sample, step]} of sample {sample}, step {step} is negative",
            fix=f"set 'ignore: {tokens[sample, step]}' if such steps do not count",
        )
    if not counts.any():
        raise UsageError(f"all labels are {ignore}, which does not count", fix="label at least one step")
    return tokens, counts


def rate(evidence: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Weighted sum of the first column of ``[n, 2]`` over that of the second; NaN if the latter is 0."""
    counted = weights > 0  # 0 times infinity is not a number
    total, tokens = (weights[counted, np.newaxis] * evidence[counted]).sum(axis=0)
    return float(total / tokens) if tokens else math.nan
