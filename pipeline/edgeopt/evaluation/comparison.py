"""Differences between the outputs of one file on two devices. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.interpreter import Interpreter, single
from edgeopt.model import Array, Outputs
from edgeopt.results import Measurement


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
    """Number of samples with another decision; None if the outputs are no decisions."""
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
    first: Sequence[Array],
    second: Sequence[Array],
    scales: Sequence[float | None],
    worst: int = 4,
    interpreters: Sequence[Interpreter] = (),
    names: Sequence[str] = (),
) -> Difference:
    """Compare real-valued outputs, each ``[n, ...]``; ``scales`` convert differences to quantization steps.

    A NaN on one side only counts as an infinite difference. ``interpreters``: what the outputs mean, by their
    ``names``; default: as far as each shows by itself.

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
    all_quantized = np.isfinite(steps).all()
    order = [int(index) for index in np.argsort(-errors, kind="stable")[:worst] if errors[index] > 0]
    return Difference(
        samples=count,
        differing=int((errors > 0).sum()),
        max_error=float(errors.max(initial=0.0)),
        max_steps=int(steps.max(initial=0.0)) if all_quantized else None,
        flips=_flips(Outputs(first, names), Outputs(second, names), interpreters),
        worst=tuple(order),
    )


def _flips(first: Outputs, second: Outputs, interpreters: Sequence[Interpreter]) -> int | None:
    """Number of samples with another decision: of a task, or else of an output by itself."""
    parts = [(interpreter, first, second) for interpreter in interpreters]
    if not parts:
        pairs = [
            (Outputs([one]), Outputs([other])) for one, other in zip(first.arrays, second.arrays, strict=True)
        ]
        parts = [(single(one), one, other) for one, other in pairs]
    agreements = [known.agreement(other, one) for known, one, other in parts]
    known_ones = [agreement for agreement in agreements if agreement is not None]
    return int((np.min(known_ones, axis=0) < 1).sum()) if known_ones else None


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute difference of every value; infinite where only one side is NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
