"""The evaluation samples, as the files that devices are sent."""

import threading
from pathlib import Path

import numpy as np

from edgeopt.evaluation.samples import collect, random_inputs
from edgeopt.model import InputPreprocessing, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, Labels, digest_of

RANDOM_SAMPLES = 64


class Evaluation:
    """The evaluation samples, preprocessed once per input signature and stored as .npy files in ``folder``.

    Without a dataset, seeded random inputs are used: outputs can be compared, but not accuracy.
    """

    def __init__(
        self, dataset: Dataset | None, preprocessing: Preprocessing | InputPreprocessing, folder: Path
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.folder = folder
        self.digest = dataset.digest() if dataset is not None else "random"
        self._labels: Labels | None = None
        self._files: dict[str, tuple[tuple[Path, ...], int]] = {}
        self._lock = threading.RLock()
        """Devices that are measured in parallel ask for the same samples."""

    def key(self, specs: tuple[TensorSpec, ...], limit: int | None) -> str:
        """Digest that identifies the inputs for ``specs``, without computing them."""
        signature = [spec.model_dump(mode="json", exclude={"name"}) for spec in specs]
        return digest_of([self.digest, self.preprocessing.key(specs), signature, limit])

    def files(self, specs: tuple[TensorSpec, ...], limit: int | None) -> tuple[tuple[Path, ...], int]:
        """One .npy file per input, and the number of samples, at most ``limit``, each of as many rows."""
        key = self.key(specs, limit)
        with self._lock:
            if key not in self._files:
                self._files[key] = self._written(key, specs, limit)
            return self._files[key]

    def _written(
        self, key: str, specs: tuple[TensorSpec, ...], limit: int | None
    ) -> tuple[tuple[Path, ...], int]:
        if self.dataset is None:
            arrays = random_inputs(specs, RANDOM_SAMPLES)
        else:
            arrays, labels = collect(self.dataset, self.preprocessing, specs, limit)
            if limit is None:
                self._labels = labels
        paths = tuple(self.folder / f"{key[:16]}-{index}.npy" for index in range(len(arrays)))
        for path, array, spec in zip(paths, arrays, specs, strict=True):
            # The agent cuts inputs along their first axis: a state of two layers is two rows per sample.
            rows = array.reshape(-1, *array.shape[2:]) if 0 < len(spec.shape) < array.ndim else array
            np.save(path, rows, allow_pickle=False)
        return paths, len(arrays[0])

    def labels(self, specs: tuple[TensorSpec, ...]) -> Labels | None:
        """Labels of all samples, None if the dataset has none."""
        with self._lock:
            if self._labels is None and self.dataset is not None:
                _, self._labels = collect(self.dataset, self.preprocessing, specs, None)
            return self._labels
