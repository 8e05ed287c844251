"""The samples of a job: read or random, checked against the inputs of a model, and cut into runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt_agent.failure import AgentError, explained
from edgeopt_agent.session import ModelSession, Spec

RANDOM_SAMPLES = 16


def open_inputs(names: list[str], folder: Path) -> list[Any]:
    arrays = []
    for name in names:
        with explained("input", f"{name} cannot be read"):
            arrays.append(np.load(folder / name, mmap_mode="r", allow_pickle=False))
    return arrays


def random_inputs(session: ModelSession, path: Path, random: Any) -> list[Any]:
    """Random inputs for a job without data: real numbers are standard normal, integers uniform."""
    if session.inputs is None:
        raise AgentError("input", f"{path.name} does not declare its inputs: the job must provide data")
    arrays = []
    for spec in session.inputs:
        # As many samples of every input: a state of two layers has two rows in each.
        rows = (spec.shape[0] or 1) // (session.max_batch or 1) if spec.shape else 1
        shape = (RANDOM_SAMPLES * max(rows, 1), *(1 if size is None else size for size in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        if np.issubdtype(dtype, np.floating):
            arrays.append(random.standard_normal(shape).astype(dtype))
        elif spec.scale:
            limits = np.iinfo(dtype)
            arrays.append(random.randint(limits.min, limits.max + 1, shape).astype(dtype))
        else:
            # Possibly indices into a table of unknown size: small ones are the safest guess.
            arrays.append(random.randint(0, 2, shape).astype(dtype))
    return arrays


def check_inputs(arrays: list[Any], specs: list[Spec] | None, name: str, samples: int | None) -> None:
    """Check that the data fits the model's inputs.

    Raises:
        AgentError: kind ``input``: it does not; the message has both shapes.
    """
    given = ", ".join(shown_shape(array.shape) for array in arrays)
    if specs is not None and len(arrays) != len(specs):
        expected = ", ".join(f"{spec.name} {shown_shape(spec.shape)}" for spec in specs)
        raise AgentError(
            "input",
            f"{name} has {len(specs)} input(s): {expected}; the job has {len(arrays)}: {given or 'none'}",
        )
    if not arrays:
        raise AgentError("input", f"the job has no inputs for {name}")
    if any(array.ndim == 0 for array in arrays) or not _same_samples(arrays, specs, samples):
        raise AgentError("input", f"the inputs differ in their number of samples: {given}")
    if samples_of(arrays) == 0:
        raise AgentError("input", f"the inputs contain no samples: {given}")
    for array, spec in zip(arrays, specs or ()):
        fits = max(len(spec.shape), 1) == array.ndim and all(
            expected is None or expected == size for expected, size in zip(spec.shape[1:], array.shape[1:])
        )
        if not fits:
            raise AgentError(
                "input",
                f"input {spec.name!r} of {name} has shape {shown_shape(spec.shape)}, "
                f"but the data has shape {shown_shape(('n', *array.shape[1:]))}",
            )


def chunk(inputs: list[Any], start: int, size: int) -> list[Any]:
    """``size`` samples from ``start`` on, wrapping around at the end of the data."""
    total = samples_of(inputs)
    if start + size <= total:
        rows = [len(array) // total for array in inputs]
        return [np.array(array[start * n : (start + size) * n]) for array, n in zip(inputs, rows)]
    indices = np.arange(start, start + size) % total
    return [np.array(array[indices]) for array in inputs]


def _same_samples(arrays: list[Any], specs: list[Spec] | None, samples: int | None) -> bool:
    """Whether all inputs have as many samples; some have several rows for each, if job and file agree."""
    if samples is None:
        return len({len(array) for array in arrays}) == 1
    if samples <= 0 or any(len(array) % samples for array in arrays):
        return False
    rows = [len(array) // samples for array in arrays]
    return specs is None or all(n == 1 or spec.shape[:1] == (n,) for n, spec in zip(rows, specs))


def samples_of(inputs: list[Any]) -> int:
    """The number of samples; inputs without a batch axis, such as a state, have several rows for each."""
    return min(len(array) for array in inputs)


def shown_shape(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
