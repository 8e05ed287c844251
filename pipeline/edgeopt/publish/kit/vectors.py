"""Golden vectors of a run: where those of a bundle come from, and how far an answer may be from them."""

import zipfile
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.formats.tflite.files.model_file import TfliteFile, kind_of
from edgeopt.model import Array
from edgeopt.publish.contract import Golden
from edgeopt.results import Report, Result

PREFERRED = ("cortex-m", "host")
"""Whose answers stand in for those of a device that executes nothing: reference kernels first."""
SAME, OTHER = 1, 2
"""Units of tolerance: against the same runtime, and at least, against another one's."""
FLOAT_STEP = 2.0**-16
"""Share of the largest value: the order of summation changes the last bits of a float32 result."""
QUANTIZED_STEP = 1 / 255
"""The same where 8-bit arithmetic lies behind real numbers, and its steps are not known."""


class Vectors(NamedTuple):
    """The arrays of one file of golden vectors; the first axis of each counts the samples."""

    device: str
    raw: tuple[Array, ...]
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    label: Array | None

    @property
    def samples(self) -> int:
        return len(self.inputs[0])

    def named(self) -> dict[str, Array]:
        """The arrays by the names of their files."""
        found: dict[str, Array] = {}
        for stem, arrays in (("raw", self.raw), ("input", self.inputs), ("output", self.outputs)):
            found |= {f"{stem}_{index}": array for index, array in enumerate(arrays)}
        return found if self.label is None else {**found, "label": self.label}


def find(run: Path, result: Result) -> Vectors | None:
    """The golden vectors of a result: its own, or those of the same artifact on another device.

    Raises:
        UsageError: the file cannot be read.
    """
    folder, stem = run / "golden", f"{result.variant}.{result.format}."
    there = {
        file.name[len(stem) : -len(".npz")]: file
        for file in folder.glob("*.npz")
        if file.name[: len(stem)] == stem
    }
    for device in (result.device, *PREFERRED, *sorted(there)):
        if device in there:
            return _read(there[device], device)
    return None


def describe(
    vectors: Vectors, report: Report, result: Result, units: Sequence[float], *, emulated: bool = False
) -> Golden:
    """What the contract says of them."""
    same = [row for row in report.results if (row.variant, row.format) == (result.variant, result.format)]
    source = next((row for row in same if row.device == vectors.device), None)
    tolerance = SAME
    if vectors.device != result.device:
        # As far as runtimes are known to be apart on this file.
        steps = [row.measurements.get("parity_max_steps") for row in same]
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
    """Per output, how much one unit of tolerance is.

    ``steps``: what is known of the quantization behind outputs that are real numbers.
    """
    found = []
    for index, values in enumerate(vectors.outputs):
        step = steps[index] if index < len(steps) else None
        if values.dtype.kind != "f":
            found.append(1.0)
        elif step:
            found.append(step)
        else:
            largest = float(np.abs(values).max(initial=0.0)) or 1.0
            found.append(largest * (QUANTIZED_STEP if quantized else FLOAT_STEP))
    return found


def output_steps(file: TfliteFile) -> list[float | None]:
    """The step of each real output that is made of stored integers by the last operator."""
    kinds = [kind_of(code) for code in file.model.tables("operator_codes")]
    graph = file.model.tables("subgraphs")[0]
    tensors = graph.tables("tensors")
    found: list[float | None] = []
    for output in graph.numbers("outputs"):
        step = None
        for operator in graph.tables("operators"):
            made = output in operator.numbers("outputs")
            if made and kinds[operator.integer("opcode_index")] == "DEQUANTIZE":
                quantization = tensors[operator.numbers("inputs")[0]].table("quantization")
                scale = quantization.vector("scale") if quantization is not None else None
                values = [] if scale is None else scale.numbers().tolist()
                step = float(values[0]) if len(values) == 1 else None
        found.append(step)
    return found


def _read(path: Path, device: str) -> Vectors:
    try:
        # Opened here: numpy leaves what it opened and could not read to the garbage collector.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"cannot read the golden vectors {path}: {error}", fix="run 'edgeopt optimize' again"
        ) from error
    series = {stem: _series(arrays, stem) for stem in ("raw", "input", "output")}
    lengths = {len(array) for values in series.values() for array in values if array.ndim}
    if not series["input"] or not series["output"] or len(lengths) != 1 or lengths == {0}:
        raise UsageError(f"{path} holds no golden vectors", fix="run 'edgeopt optimize' again")
    # C has no type for half floats, and every one is a float as well.
    raw = tuple(array.astype(np.float32) if array.dtype == np.float16 else array for array in series["raw"])
    return Vectors(device, raw, series["input"], series["output"], arrays.get("label"))


def _series(arrays: dict[str, Array], stem: str) -> tuple[Array, ...]:
    count = sum(name.rpartition("_")[0] == stem for name in arrays)
    return tuple(arrays[f"{stem}_{index}"] for index in range(count) if f"{stem}_{index}" in arrays)
