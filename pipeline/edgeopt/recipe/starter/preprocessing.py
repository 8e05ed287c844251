"""Which of the usual preprocessings a model was trained with: the one that makes it right most often."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array, InputPreprocessing, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, Sample, digest_of

SAMPLES = 64
"""Samples to try each preprocessing on."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
"""Statistics of training sets: usual in PyTorch, after scaling to 0..1."""


class Choice(NamedTuple):
    """One preprocessing, and the fraction of the samples that the model classifies correctly with it."""

    steps: Mapping[str, Any]
    accuracy: float


def is_raw(values: Array) -> bool:
    """Whether these are values as in an image file, which few models take as they are."""
    return values.dtype.kind in "iu" or float(values.max(initial=0)) > 2


def candidates(values: Array, spec: TensorSpec) -> list[dict[str, Any]]:
    """The usual preprocessings of raw samples like these, the simplest first; only one: no doubt."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if spec.takes_integers or spec.scale is not None or low < 0 or high == 0:
        return [{}]
    whole = is_raw(values)
    top = "1/255" if high > 100 else f"1/{round(high)}"
    scale: dict[str, Any] = {"scale": top} if whole else {}
    signed = {"scale": f"2/{top[2:]}" if whole else 2, "mean": [1]}
    steps = [{}, scale, signed] if whole else [{}, signed]
    colours = spec.layout is not None and 3 in (spec.shape[1], spec.shape[-1])
    return steps + ([scale | IMAGENET, scale | CIFAR] if colours else [])


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


def per_pixel(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scores of masks ``[n, height, width]`` as those of samples ``[n * height * width, classes]``."""
    if scores.shape[1:3] != labels.shape[1:]:
        scores = np.moveaxis(scores, 1, -1)
    return scores.reshape(-1, scores.shape[-1]), labels.reshape(-1)


def best(steps: Sequence[Mapping[str, Any]], scores: NDArray[Any], labels: NDArray[Any]) -> list[Choice]:
    """The preprocessings, the best first; of equally accurate ones, that with the most certain answers.

    ``scores`` are those of the model, ``[k * n, classes]``, for k preprocessings of n samples.
    """
    rows = scores.reshape(len(steps), -1, scores.shape[-1] if scores.ndim > 1 else 1).astype(np.float64)
    truth = labels.reshape(len(steps), -1).astype(np.int64)
    if rows.shape[-1] == 1:  # a binary classifier: a probability, or a score around 0
        positive = rows - (0.5 if rows.min() >= 0 and rows.max() <= 1 else 0)
        rows = np.concatenate([-positive, positive], axis=-1)
    right = (rows.argmax(-1) == truth) & np.isfinite(rows).all(-1)
    with np.errstate(all="ignore"):
        spread = rows - rows.max(-1, keepdims=True)
        certainty = spread - np.log(np.exp(spread).sum(-1, keepdims=True))
    known = np.clip(truth, 0, rows.shape[-1] - 1)  # pixels that do not count may have any label
    sure = np.nan_to_num(np.take_along_axis(certainty, known[..., None], -1).mean((-1, -2)), nan=-np.inf)
    accuracy = right.mean(-1)
    order = sorted(range(len(steps)), key=lambda at: (-accuracy[at], -sure[at]))
    return [Choice(steps[at], float(accuracy[at])) for at in order]


def chance(labels: NDArray[Any]) -> float:
    """The accuracy that answers without a look at the samples hardly exceed: the most frequent class.

    It is two standard errors above the frequency of that class.
    """
    _, counts = np.unique(labels, return_counts=True)
    share = counts.max() / labels.size
    return float(share + 2 * np.sqrt(share * (1 - share) / labels.size))
