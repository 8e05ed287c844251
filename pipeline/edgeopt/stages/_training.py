"""Fine-tuning, independent of the framework: the options and the interface of a framework.

A stage provides a ``Trainee``: student, teacher and one optimizer step. The loop is
``edgeopt.stages._training_loop.train``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgeopt.errors import StageError
from edgeopt.plugin import Stage
from edgeopt.stages._training_data import Augmentation, Batch

Scores: TypeAlias = NDArray[np.float32]


class Training(Stage):
    """A stage with a training loop."""

    needs_training: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True

    epochs: int = Field(3, ge=1, description="passes over the training data")
    learning_rate: float = Field(0.02, gt=0, description="peak learning rate of the one-cycle schedule")
    loss: Literal["kl", "mse"] = Field(
        "kl",
        description="distillation loss: kl for class scores; mse for any other output, or several, with "
        "every channel relative to its range",
    )
    temperature: float = Field(2.0, gt=0, description="softmax temperature of the distillation")
    batch_size: int = Field(128, ge=2, description="samples per step")
    augment: tuple[Augmentation, ...] = Field(
        (), description="augmentation: flip (left to right), shift and cutmix for images, mixup for any input"
    )
    held_out: float = Field(
        0.1, ge=0, lt=1, description="fraction of the training data held out to select the best epoch"
    )
    patience: int = Field(10, ge=1, description="epochs without improvement after which training stops")
    seed: int = Field(0, ge=0, description="random seed of order, split and augmentation")

    def key_parts(self) -> dict[str, str]:
        """Separate from cached results of the time when the parts of an output had one scale."""
        return {"scales": "of channels"} if self.loss == "mse" else {}

    @property
    def from_labels(self) -> bool:
        """Whether the model learns labels instead of the outputs of the source model."""
        return False

    @property
    def score_name(self) -> str:
        """What the second number of an evaluation is."""
        if self.from_labels:
            return "accuracy"
        return "agreement with the source" if self.loss == "kl" else "explained variance"


class Finetune(Training):
    """Train the model on the recipe's training data.

    By default the model is distilled from the source model, which needs no labels (Hinton et al. 2015,
    arXiv:1503.02531).
    """

    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"finetune": frozenset({"training"})}
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster"})

    distill: bool = Field(True, description="learn the outputs of the source model; false: learn the labels")
    quantization_aware: bool = Field(
        False, description="train with int8 fake quantization; quantizing remains a separate stage"
    )

    @property
    def from_labels(self) -> bool:
        return not self.distill

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        if self.loss == "mse" and not self.distill:
            raise ValueError("loss: mse is for distillation; class labels (distill: false) need loss: kl")
        return self


class Trainee(Protocol):
    """Interface of a framework to the training loop. Arrays have the format of the model's inputs."""

    def begin(self, epoch: int) -> bool:
        """Prepare for an epoch (0: before training); return whether its weights may be kept."""
        ...

    def step(self, inputs: Batch, target: Scores, rate: float) -> float:
        """Run one optimizer step on a batch and return the loss.

        ``target``, shape ``[n, ...]``, is a result of ``target_of``: with loss ``kl``, class probabilities at
        temperature T (1 without distillation), for ``T^2 * KL(target || softmax(scores / T))``; with
        ``mse``, the outputs themselves. The loss may differ by a constant (the entropy of the target).
        """
        ...

    def outputs(self, inputs: Batch) -> Scores:
        """The outputs in inference mode; several are scaled and concatenated, ``[n, values]``.

        Class scores are logits or log-probabilities, not probabilities.
        """
        ...

    def teacher(self, inputs: Batch) -> Scores:
        """The outputs of the source model, in the same form."""
        ...

    def save(self, folder: Path) -> None:
        """Write all training state (weights, statistics, optimizer) to an empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Restore the state that ``save`` wrote."""
        ...


def target_of(options: Training, scores: Scores) -> Scores:
    """The distillation target from the source model's scores: softened probabilities, or the outputs.

    Raises:
        StageError: with loss ``kl``, the scores are not of shape ``[n, classes]``.
    """
    if options.loss == "mse":
        return scores
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise StageError(
            f"the output, of shape {list(scores.shape)}, is not a row of class scores",
            fix="set loss: mse, to distill the outputs themselves",
        )
    return softmax(scores / options.temperature)


def softmax(scores: Scores) -> Scores:
    """Softmax along the last axis."""
    # Shifting by the maximum prevents overflow and does not change the result.
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def are_probabilities(outputs: Scores) -> bool:
    """Whether outputs ``[n, classes]`` are probabilities, whose log is the quantity to train."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3))
