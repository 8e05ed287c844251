"""Golden vectors of a bundle, taken from its run, and their tolerance."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeopt.devices.device import HOST, load_device
from edgeopt.errors import UsageError
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array
from edgeopt.publish.contract import Golden
from edgeopt.results import Report, Result

SAME, OTHER = 1, 2
"""Tolerance in units: for the same device, and the minimum for another one."""
FLOAT_STEP = 2.0**-16
"""Fraction of the largest value: the summation order affects the last bits of float32 results."""
QUANTIZED_STEP = 1 / 255
"""The same for real numbers computed with 8-bit arithmetic whose steps are unknown."""


class Vectors(NamedTuple):
    """The arrays of one file of golden vectors; their first axis is the sample axis."""

    device: str
    raw: tuple[Array, ...]
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    label: Array | None

    @property
    def samples(self) -> int:
        return len(self.inputs[0])

    def named(self) -> dict[str, Array]:
        """The arrays by the stem of their file name."""
        arrays_by_stem: dict[str, Array] = {}
        for stem, arrays in (("raw", self.raw), ("input", self.inputs), ("output", self.outputs)):
            arrays_by_stem |= {f"{stem}_{index}": array for index, array in enumerate(arrays)}
        return arrays_by_stem if self.label is None else {**arrays_by_stem, "label": self.label}


def find(run: Path, result: Result) -> Vectors | None:
    """The golden vectors of a result: its own, or those of the same artifact on another device.

    Raises:
        UsageError: the file cannot be read.
    """
    folder, stem = run / "golden", f"{result.variant}.{result.format}."
    available = {
        file.name[len(stem) : -len(".npz")]: file
        for file in folder.glob("*.npz")
        if file.name[: len(stem)] == stem
    }
    for device in (result.device, *sorted(available, key=_preference)):
        if device in available:
            return _read(available[device], device)
    return None


def _preference(device: str) -> tuple[int, str]:
    """Order of the devices whose outputs stand for one that returns none.

    Reference kernels of microcontrollers come first, then this machine.
    """
    try:
        described = load_device(device)
    except UsageError:
        return 2, device  # no device file
    if described.emulated and described.limits.flash is not None:
        return 0, device
    return 1 if device == HOST else 2, device


def describe(
    vectors: Vectors, report: Report, result: Result, units: Sequence[float], *, emulated: bool = False
) -> Golden:
    """The contract's description of the vectors."""
    rows = [row for row in report.results if (row.variant, row.format) == (result.variant, result.format)]
    source = next((row for row in rows if row.device == vectors.device), None)
    tolerance = SAME
    if vectors.device != result.device:
        # At least the largest difference measured between runtimes on this file.
        steps = [row.measurements.get("parity_max_steps") for row in rows]
        tolerance = max(OTHER, *(ceil(step.value) for step in steps if step is not None), 0)
    return Golden(
        count=vectors.samples,
        device=vectors.device,
        emulated=emulated,
        runtime=source.runtime if source is not None else "",
        files=tuple(f"golden/{name}.npy" for name in vectors.named()),
        units=tuple(units),
        tolerance=tolerance,
    )


def units_of(vectors: Vectors, steps: Sequence[float | None], *, quantized: bool) -> list[float]:
    """Per output, the size of one unit of tolerance.

    ``steps``: the known quantization steps of outputs that are real numbers.
    """
    units = []
    for index, values in enumerate(vectors.outputs):
        step = steps[index] if index < len(steps) else None
        if values.dtype.kind != "f":
            units.append(1.0)
        elif step:
            units.append(step)
        else:
            largest = float(np.abs(values).max(initial=0.0)) or 1.0
            units.append(largest * (QUANTIZED_STEP if quantized else FLOAT_STEP))
    return units


def _read(path: Path, device: str) -> Vectors:
    try:
        # Opened here: numpy leaves a file that it cannot read open until garbage collection.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, *MALFORMED) as error:
        raise UsageError(
            f"cannot read the golden vectors {path}: {error}", fix="run 'edgeopt optimize' again"
        ) from error
    series = {stem: _series(arrays, stem) for stem in ("raw", "input", "output")}
    lengths = {len(array) for values in series.values() for array in values if array.ndim}
    if not series["input"] or not series["output"] or len(lengths) != 1 or lengths == {0}:
        raise UsageError(f"{path} contains no golden vectors", fix="run 'edgeopt optimize' again")
    # C99 has no half-precision type; float32 represents every float16 value exactly.
    raw = tuple(array.astype(np.float32) if array.dtype == np.float16 else array for array in series["raw"])
    return Vectors(device, raw, series["input"], series["output"], arrays.get("label"))


def _series(arrays: dict[str, Array], stem: str) -> tuple[Array, ...]:
    count = sum(name.rpartition("_")[0] == stem for name in arrays)
    return tuple(arrays[f"{stem}_{index}"] for index in range(count) if f"{stem}_{index}" in arrays)
