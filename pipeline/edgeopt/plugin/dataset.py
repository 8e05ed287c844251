"""Datasets: sources of samples, and the preprocessed feed that stages read."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from edgeopt.config.registry import Kind
from edgeopt.model import Array, Model, Preprocessing
from edgeopt.plugin.base import Plugin


class Sample(NamedTuple):
    """One example: raw inputs without a batch axis, and its label, if any.

    A label is a class index, or an array: a mask ``[height, width]``, a sequence of tokens ``[k]``, or boxes
    ``[k, 6]``: x1, y1, x2, y2 in pixels of the raw sample, class index, and 1 for regions that do not count
    (COCO's ``iscrowd``). Arrays of different samples may have different lengths.
    """

    inputs: tuple[Array, ...]
    label: int | Array | None = None


class Dataset(Plugin):
    """A stream of samples, read one by one to bound memory."""

    plugin_kind: ClassVar[Kind] = "datasets"

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """All samples, in a stable order; may be called repeatedly."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content, independent of its location."""


class Feed(NamedTuple):
    """A dataset with the recipe's preprocessing, as read by calibration and fine-tuning."""

    dataset: Dataset
    preprocessing: Preprocessing

    def samples(self, model: Model) -> Iterator[Sample]:
        """All samples with inputs of batch 1, in the order, layout and dtype of ``model.inputs``."""
        for sample in self.dataset.samples():
            values = tuple(
                self.preprocessing.apply(value, spec)
                for value, spec in zip(sample.inputs, model.inputs, strict=True)
            )
            yield Sample(values, sample.label)

    def inputs(self, model: Model) -> Iterator[tuple[Array, ...]]:
        """The inputs of ``samples``, without labels."""
        for sample in self.samples(model):
            yield sample.inputs
