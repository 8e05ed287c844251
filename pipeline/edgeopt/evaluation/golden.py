"""Golden vectors: for a few samples, the inputs of a finished file and the outputs of its runtime.

Firmware developers use them to test their preprocessing and their build of the runtime.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.files import replacing, writing
from edgeopt.evaluation.samples import fitted, quantize, random_inputs
from edgeopt.model import Array, InputPreprocessing, Model, Preprocessing, batched
from edgeopt.plugin import Dataset, Labels, Sample

COUNT = 8
"""Number of vectors: enough to detect a wrong byte, few enough for flash memory."""


class Golden:
    """The samples of a run that become golden vectors, spread evenly over the evaluation data."""

    def __init__(
        self,
        dataset: Dataset | None,
        preprocessing: Preprocessing | InputPreprocessing,
        labels: Labels | None,
        samples: int,
    ) -> None:
        self.preprocessing = preprocessing
        self.samples = samples
        self.rows = np.linspace(0, samples - 1, min(COUNT, samples)).round().astype(int)
        self.labels = labels[self.rows] if isinstance(labels, np.ndarray) else None
        self.raw: list[Sample] = _select(dataset, self.rows) if dataset and samples else []

    def write(self, model: Model, outputs: Sequence[Array], path: Path) -> None:
        """Write ``raw_i`` (before preprocessing, if there are data), ``input_i`` and ``output_i`` to an .npz.

        ``outputs`` are the real-valued outputs of all samples; inputs and outputs are stored with the dtypes
        and layouts of the file, vectors along the first axis. Without samples, nothing is written.
        """
        if not self.samples:
            return
        arrays: dict[str, Array] = {}
        if self.raw:
            names = self.preprocessing.names(model.inputs)
            columns = zip(*(sample.in_order(names) for sample in self.raw), strict=True)
            for index, (raw, described) in enumerate(zip(columns, batched(model.inputs), strict=True)):
                steps = self.preprocessing.of(index, described)
                arrays[f"raw_{index}"] = np.stack(raw)
                arrays[f"input_{index}"] = np.concatenate(
                    [fitted(each, steps, described, "golden") for each in raw]
                )
        else:
            made_up = random_inputs(model.inputs, self.samples)
            arrays = {f"input_{index}": values[self.rows] for index, values in enumerate(made_up)}
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


def _select(dataset: Dataset, rows: NDArray[np.int64]) -> list[Sample]:
    indices = set(rows.tolist())
    return [sample for index, sample in enumerate(dataset.samples()) if index in indices]
