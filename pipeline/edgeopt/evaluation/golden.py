"""Golden vectors: for a few samples, the inputs of a finished file and the outputs of its runtime.

Firmware developers use them to test their preprocessing and their build of the runtime.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.files import replacing, writing
from edgeopt.evaluation.samples import fitted, quantize, random_inputs
from edgeopt.model import Array, Model, Preprocessing
from edgeopt.plugin import Dataset, PerSample

COUNT = 8
"""Number of vectors: enough to detect a wrong byte, few enough for flash memory."""


class Golden:
    """The samples of a run that become golden vectors, spread evenly over the evaluation data."""

    def __init__(
        self, dataset: Dataset | None, preprocessing: Preprocessing, labels: PerSample | None, samples: int
    ) -> None:
        self.preprocessing = preprocessing
        self.samples = samples
        self.rows = np.linspace(0, samples - 1, min(COUNT, samples)).round().astype(int)
        self.labels = labels[self.rows] if isinstance(labels, np.ndarray) else None
        self.raw: tuple[Array, ...] = _select(dataset, self.rows) if dataset and samples else ()

    def write(self, model: Model, outputs: Sequence[Array], path: Path) -> None:
        """Write ``raw_i`` (before preprocessing, if there are data), ``input_i`` and ``output_i`` to an .npz.

        ``outputs`` are the real-valued outputs of all samples; inputs and outputs are stored with the dtypes
        and layouts of the file, vectors along the first axis. Without samples, nothing is written.
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
            selected = values[self.rows]
            arrays[f"output_{index}"] = (
                quantize(selected, spec) if quantized and spec is not None else selected
            )
        if self.labels is not None:
            arrays["label"] = self.labels
        with (
            writing(path, "choose another folder with --out DIR"),
            replacing(path) as scratch,
            scratch.open("wb") as file,
        ):
            np.savez(file, allow_pickle=False, **arrays)


def _select(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[Array, ...]:
    indices = set(rows.tolist())
    selected = [sample.inputs for index, sample in enumerate(dataset.samples()) if index in indices]
    return tuple(np.stack(values) for values in zip(*selected, strict=True))
