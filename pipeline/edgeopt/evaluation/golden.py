"""Golden vectors: a few samples, what a finished file takes for them, and what its runtime gave.

Whoever writes firmware checks the own preprocessing, and the own build of the runtime, against them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.files import replacing
from edgeopt.evaluation.samples import fitted, quantize, random_inputs
from edgeopt.model import Array, Model, Preprocessing
from edgeopt.plugin import Dataset

COUNT = 8
"""Vectors that are kept: enough to see a wrong byte, few enough for flash."""


class Golden:
    """The samples of one run that golden vectors are made of, spread evenly over the evaluation data."""

    def __init__(
        self, dataset: Dataset | None, preprocessing: Preprocessing, labels: Array | None, samples: int
    ) -> None:
        self.preprocessing = preprocessing
        self.samples = samples
        self.rows = np.linspace(0, samples - 1, min(COUNT, samples)).round().astype(int)
        self.labels = None if labels is None else labels[self.rows]
        self.raw: tuple[Array, ...] = _picked(dataset, self.rows) if dataset and samples else ()

    def write(self, model: Model, outputs: Sequence[Array], path: Path) -> None:
        """Write ``raw_i`` (as the data give them, if any), ``input_i`` and ``output_i`` to an .npz.

        ``outputs`` are those of all samples, as real numbers; inputs and outputs are stored in the types
        and layouts of the file. The first axis counts the vectors. Without samples nothing is written.
        """
        if not self.samples:
            return
        if self.raw:
            inputs = [
                np.concatenate([fitted(sample, self.preprocessing, spec, "golden") for sample in raw])
                for raw, spec in zip(self.raw, model.inputs, strict=True)
            ]
        else:
            inputs = [values[self.rows] for values in random_inputs(model.inputs, self.samples)]
        arrays: dict[str, Array] = {f"raw_{index}": values for index, values in enumerate(self.raw)}
        arrays |= {f"input_{index}": values for index, values in enumerate(inputs)}
        for index, values in enumerate(outputs):
            spec = model.outputs[index] if index < len(model.outputs) else None
            quantized = spec is not None and spec.scale and values.dtype.kind == "f"
            kept = values[self.rows]
            arrays[f"output_{index}"] = quantize(kept, spec) if quantized and spec is not None else kept
        if self.labels is not None:
            arrays["label"] = self.labels
        with replacing(path) as scratch, scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _picked(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[Array, ...]:
    wanted = set(rows.tolist())
    found = [sample.inputs for index, sample in enumerate(dataset.samples()) if index in wanted]
    return tuple(np.stack(values) for values in zip(*found, strict=True))
