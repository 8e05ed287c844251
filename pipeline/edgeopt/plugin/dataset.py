"""Datasets: where samples come from, and how stages read them."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from edgeopt.config.registry import Kind
from edgeopt.model import Array, Model, Preprocessing
from edgeopt.plugin.base import Plugin


class Sample(NamedTuple):
    """One example: raw inputs without a batch axis, and its label where there is one."""

    inputs: tuple[Array, ...]
    label: int | Array | None = None


class Dataset(Plugin):
    """Yields samples one by one and never holds more than it must in memory."""

    plugin_kind: ClassVar[Kind] = "datasets"

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """All samples, in a stable order; may be called again."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content: the same data gives the same digest wherever it lies."""


class Feed(NamedTuple):
    """A dataset with the recipe's preprocessing: what calibration and fine-tuning read."""

    dataset: Dataset
    preprocessing: Preprocessing

    def samples(self, model: Model) -> Iterator[Sample]:
        """Every sample with inputs of batch 1, in the order, layout and dtype ``model.inputs`` ask for."""
        for sample in self.dataset.samples():
            values = tuple(
                self.preprocessing.apply(value, spec)
                for value, spec in zip(sample.inputs, model.inputs, strict=True)
            )
            yield Sample(values, sample.label)

    def inputs(self, model: Model) -> Iterator[tuple[Array, ...]]:
        """The inputs of ``samples`` alone."""
        for sample in self.samples(model):
            yield sample.inputs
