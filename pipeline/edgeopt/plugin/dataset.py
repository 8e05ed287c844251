"""Datasets: sources of samples, and the preprocessed feed that stages read."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

from edgeopt.config.nearest import nearest
from edgeopt.config.registry import Kind
from edgeopt.errors import UsageError
from edgeopt.model import Array, InputPreprocessing, Model, Preprocessing, batched
from edgeopt.plugin.base import Plugin


class _Sample(NamedTuple):
    inputs: tuple[Array, ...]
    label: int | Array | Mapping[str, int | Array] | None = None
    names: tuple[str, ...] = ()
    """The name of each input; empty if they are in the model's order."""


class Sample(_Sample):
    """One example: raw inputs without a batch axis, and its label, if any.

    Inputs are a tuple in the model's order, or a mapping from the names of the model's inputs, in any order.

    A label is a class index, or an array: a mask ``[height, width]``, a sequence of tokens ``[k]``, or boxes
    ``[k, 6]``: x1, y1, x2, y2 in pixels of the raw sample, class index, and 1 for regions that do not count
    (COCO's ``iscrowd``). Arrays of different samples may have different lengths. For a model with several
    tasks, it is a mapping from the names of the tasks to their labels.
    """

    def __new__(
        cls,
        inputs: tuple[Array, ...] | Mapping[str, Array],
        label: int | Array | Mapping[str, int | Array] | None = None,
        names: tuple[str, ...] = (),
    ) -> "Sample":
        if isinstance(inputs, Mapping):
            return super().__new__(cls, tuple(inputs.values()), label, tuple(inputs))
        return super().__new__(cls, inputs, label, names)

    def in_order(self, names: Sequence[str], where: str = "a sample") -> tuple[Array, ...]:
        """The inputs in the order of ``names``, those of the model's inputs; ``where`` says whose they are.

        Raises:
            UsageError: there are more inputs than the model takes, or fewer, or of other names.
        """
        if not self.names:
            if len(self.inputs) != len(names):
                raise UsageError(
                    f"{where}: a sample has {len(self.inputs)} inputs, the model takes {len(names)}: "
                    f"{', '.join(map(repr, names))}",
                    fix="yield one input per model input, in the model's order or by their names",
                )
            return self.inputs
        for name in self.names:
            if name not in names:
                raise UsageError(
                    f"{where}: a sample has an input {name!r}, which the model does not take"
                    f"{nearest(name, names)}",
                    fix=f"name the inputs of the data as those of the model: {', '.join(map(repr, names))}",
                )
        by_name = dict(zip(self.names, self.inputs, strict=True))
        for name in names:
            if name not in by_name:
                raise UsageError(
                    f"{where}: a sample has no input {name!r}; it has {', '.join(map(repr, self.names))}",
                    fix=f"add it: the model takes {', '.join(map(repr, names))}",
                )
        return tuple(by_name[name] for name in names)

    @property
    def labels(self) -> dict[str, int | Array]:
        """The label of each task, by its name; that of the only task has the name ''."""
        if self.label is None:
            return {}
        return dict(self.label) if isinstance(self.label, Mapping) else {"": self.label}


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
    preprocessing: Preprocessing | InputPreprocessing

    def samples(self, model: Model) -> Iterator[Sample]:
        """All samples with inputs of batch 1, in the order, layout and dtype of ``model.inputs``.

        Values for quantized inputs are real numbers.
        """
        names = self.preprocessing.names(model.inputs)
        steps = [(self.preprocessing.of(index, spec), spec) for index, spec in enumerate(model.inputs)]
        wholes = [spec != own for spec, own in zip(batched(model.inputs), model.inputs, strict=True)]
        for sample in self.dataset.samples():
            inputs = zip(sample.in_order(names), steps, strict=True)
            values = (each.apply(value, spec) for value, (each, spec) in inputs)
            yield Sample(
                tuple(
                    value.reshape(value.shape[1:]) if whole else value
                    for value, whole in zip(values, wholes, strict=True)
                ),
                sample.label,
            )

    def inputs(self, model: Model) -> Iterator[tuple[Array, ...]]:
        """The inputs of ``samples``, without labels."""
        for sample in self.samples(model):
            yield sample.inputs
