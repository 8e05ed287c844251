"""Differences between outputs: from one step to the next, and from one device to another. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.results import Hop, Measurement, snr_db

LOSSLESS_SNR_DB = 60.0
LOSSLESS_MAX_ERROR = 1e-4
BROKEN_SNR_DB = 6.0
BROKEN_AGREEMENT = 0.75


class Difference(NamedTuple):
    """Difference between the outputs of two devices, for the same file and inputs."""

    samples: int
    differing: int
    """Number of samples with any difference."""
    max_error: float
    """Largest difference of any value of any output."""
    max_steps: int | None
    """The same in quantization steps; None unless every output is quantized."""
    flips: int | None
    """Number of samples with a different argmax; None for outputs of a single value."""
    worst: tuple[int, ...]
    """Indices of the samples with the largest differences, largest first."""

    def measurements(self) -> dict[str, Measurement]:
        """The measurements of a report."""
        values = {
            "parity_max_error": self.max_error if self.max_steps is None else None,
            "parity_max_steps": self.max_steps,
            "parity_flips": self.flips,
        }
        return {
            name: Measurement.of(name, value, n=self.samples)
            for name, value in values.items()
            if value is not None
        }


def difference(
    first: Sequence[Array], second: Sequence[Array], scales: Sequence[float | None], worst: int = 4
) -> Difference:
    """Compare real-valued outputs, each ``[n, ...]``; ``scales`` convert differences to quantization steps.

    A NaN on one side only counts as an infinite difference.

    Raises:
        UsageError: the devices return outputs of different number or size.
    """
    one_sizes, other_sizes = ([array.size for array in outputs] for outputs in (first, second))
    if one_sizes != other_sizes:
        raise UsageError(f"the outputs have {one_sizes} and {other_sizes} values and cannot be compared")
    count = len(first[0])
    errors = np.zeros(count)
    steps = np.zeros(count)
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        old = one.reshape(count, -1).astype(np.float64)
        new = other.reshape(count, -1).astype(np.float64)
        largest_error = distance(old, new).max(axis=1, initial=0.0)
        errors = np.maximum(errors, largest_error)
        scale = scales[index] if index < len(scales) else None
        steps = np.maximum(steps, np.rint(largest_error / scale) if scale else np.nan)
    flips = None
    if first[0].size > count:
        largest = [outputs[0].reshape(count, -1).argmax(axis=1) for outputs in (first, second)]
        flips = int((largest[0] != largest[1]).sum())
    all_quantized = np.isfinite(steps).all()
    order = [int(index) for index in np.argsort(-errors, kind="stable")[:worst] if errors[index] > 0]
    return Difference(
        samples=count,
        differing=int((errors > 0).sum()),
        max_error=float(errors.max(initial=0.0)),
        max_steps=int(steps.max(initial=0.0)) if all_quantized else None,
        flips=flips,
        worst=tuple(order),
    )


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute difference of every value; infinite where only one side is NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))


def hop(
    stage: str, produced: str, *, lossless: bool, before: Array, after: Array, trained: bool = False
) -> Hop:
    """Compare the outputs of one step with those of the previous step, on the same samples.

    A lossless step must preserve the outputs (60 dB, or 1e-4 in every value). A step that quantizes or
    prunes may change them, but the model is broken if they no longer resemble the previous ones. Training
    changes the confidence of a classifier, so for a trained one only the predictions are compared.
    """
    count = min(len(before), len(after))
    if before.shape[1:] != after.shape[1:]:
        if before[0].size != after[0].size:
            reason = (
                f"{stage} changed the output shape from {list(before.shape[1:])} to {list(after.shape[1:])}"
            )
            return Hop(stage=stage, produced=produced, lossless=lossless, status="broken", reason=reason)
        after = after.reshape(len(after), *before.shape[1:])
    old, new = before[:count].astype(np.float64), after[:count].astype(np.float64)
    error = np.abs(old - new)
    worst = float(error.max()) if error.size else 0.0
    noise, signal = float((error**2).sum()), float((old**2).sum())
    snr = snr_db(signal, noise)
    agreement = _agreement(old, new)
    broken = (
        not np.isfinite(new).all()
        or (lossless and snr < LOSSLESS_SNR_DB and worst > LOSSLESS_MAX_ERROR)
        or (not lossless and agreement is not None and agreement < BROKEN_AGREEMENT)
        or (not lossless and snr < BROKEN_SNR_DB and not (trained and agreement is not None))
    )
    same = "" if agreement is None else f", agreement on {agreement:.1%} of {count} samples"
    reason = f"{stage} broke the model: SNR {snr:.1f} dB{same}, largest error {worst:.3g}" if broken else ""
    if not np.isfinite(worst):
        worst = float(np.finfo(np.float64).max)
    return Hop(
        stage=stage,
        produced=produced,
        lossless=lossless,
        snr_db=snr,
        max_abs_error=worst,
        agreement=agreement,
        status="broken" if broken else "ok",
        reason=reason,
    )


def _agreement(old: NDArray[np.float64], new: NDArray[np.float64]) -> float | None:
    """Fraction of samples with the same argmax; None for a single output."""
    flat_old, flat_new = old.reshape(len(old), -1), new.reshape(len(new), -1)
    if flat_old.shape[1] < 2 or not np.isfinite(flat_new).all():
        return None
    return float((flat_old.argmax(axis=1) == flat_new.argmax(axis=1)).mean())
