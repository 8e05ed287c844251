"""Which of the usual preprocessings a model was trained with: the one that makes it right most often."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array, InputPreprocessing, Outputs, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, PerSample, Sample, Task, digest_of

SAMPLES = 64
"""Samples to try each preprocessing on."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
"""Statistics of training sets: usual in PyTorch, after scaling to 0..1."""


class Choice(NamedTuple):
    """One preprocessing, and how often the model is right with it, 0..1."""

    steps: Mapping[str, Any]
    accuracy: float


def is_raw(values: Array) -> bool:
    """Whether these are values as in an image file, which few models take as they are."""
    return values.dtype.kind in "iu" or float(values.max(initial=0)) > 2


def candidates(
    values: Array, spec: TensorSpec, statistics: Mapping[str, NDArray[np.float64]] | None = None
) -> list[dict[str, Any]]:
    """The usual preprocessings of raw samples like these, the simplest first; only one: no doubt.

    ``statistics`` are those of the calibration images, as `statistics_of` computes them.
    """
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if spec.takes_integers or spec.scale is not None or low < 0 or high == 0:
        return [{}]
    whole = is_raw(values)
    top = "1/255" if high > 100 else f"1/{round(high)}"
    scale: dict[str, Any] = {"scale": top} if whole else {}
    signed = {"scale": f"2/{top[2:]}" if whole else 2, "mean": [1]}
    steps = [{}, scale, signed] if whole else [{}, signed]
    colours = spec.layout is not None and 3 in (spec.shape[1], spec.shape[-1])
    steps += [scale | IMAGENET, scale | CIFAR] if colours else []
    if not statistics:
        return steps
    whole_range = float(top[2:]) if whole else 1
    return [
        *steps,
        scale | {name: (each / whole_range).round(3).tolist() for name, each in statistics.items()},
    ]


def statistics_of(images: Iterable[Array], layout: str | None) -> dict[str, NDArray[np.float64]]:
    """Mean and standard deviation of each channel of raw images; empty if these are no images."""
    axis = 0 if layout == "NCHW" else -1
    rows = [np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis]) for each in images if each.ndim == 3]
    if not rows or layout is None or len({row.shape[1] for row in rows}) > 1:
        return {}
    pixels = np.concatenate(rows).astype(np.float64)
    std: NDArray[np.float64] = pixels.std(axis=0)
    return {"mean": pixels.mean(axis=0), "std": std} if std.all() else {}


class Tried(Dataset):
    """The first samples of a dataset, once with each preprocessing, as inputs of a model."""

    of: Dataset
    steps: tuple[Preprocessing, ...]
    spec: TensorSpec

    @property
    def inner(self) -> Dataset:
        """The dataset that messages name."""
        return self.of

    def samples(self) -> Iterator[Sample]:
        for each in self.steps:
            prepared = InputPreprocessing(each, (self.spec,))
            for _, sample in zip(range(SAMPLES), self.of.samples(), strict=False):
                values = prepared.of(0, self.spec).apply(sample.inputs[0], self.spec)
                yield Sample((values.reshape(values.shape[1:]),), sample.label)

    def digest(self) -> str:
        steps = [each.model_dump(mode="json") for each in self.steps]
        return digest_of(["tried", self.of.digest(), steps, self.spec.model_dump(mode="json")])


def ranked(
    steps: Sequence[Mapping[str, Any]], task: Task, outputs: Outputs, labels: PerSample
) -> list[Choice]:
    """The preprocessings, the best first, of equal ones the simplest; empty if no answer is simply right.

    ``outputs`` and ``labels`` are those of the same samples once for each preprocessing.
    """
    choices = []
    count = len(labels) // len(steps)
    for index, each in enumerate(steps):
        part = slice(index * count, (index + 1) * count)
        right = _right(task, outputs.arrays, labels, part)
        if right is None:
            return []
        choices.append(Choice(each, float(right.mean())))
    return sorted(choices, key=lambda choice: -choice.accuracy)


def _right(task: Task, arrays: Sequence[Array], labels: PerSample, part: slice) -> NDArray[np.float64] | None:
    expected = task.expected(labels[part])
    if expected is None:
        return None
    return task.agreement(task.decide(Outputs([array[part] for array in arrays])), expected)


def chance(task: Task, labels: PerSample) -> float:
    """The accuracy of answers that belong to other samples; above, by two standard errors, is better."""
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = labels[order] if isinstance(labels, np.ndarray) else [labels[at] for at in order]
    expected, other = task.expected(labels), task.expected(shuffled)
    right = None if expected is None or other is None else task.agreement(other, expected)
    if right is None:
        return 0.0
    return float(right.mean() + 2 * right.std() / np.sqrt(len(right)))
