"""Fine-tuning, as far as it is the same in every framework: its options, and what a framework brings.

A stage brings a ``Trainee``: the network that learns, the one it imitates, and one step of learning.
``edgeopt.stages._training_loop.train`` does the rest.
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


class Finetune(Stage):
    """Train the model on the recipe's training data. By default it learns to answer as the source model
    does, so that no labels are needed (Hinton et al. 2015, arXiv:1503.02531)."""

    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"finetune": frozenset({"training"})}
    needs_training: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    after: ClassVar[frozenset[str]] = frozenset({"prune", "cluster"})

    epochs: int = Field(3, ge=1, description="how often the training data are gone through")
    learning_rate: float = Field(
        0.02, gt=0, description="highest rate of a schedule that rises and falls once (one-cycle)"
    )
    distill: bool = Field(True, description="imitate the source model; false: learn the labels")
    loss: Literal["kl", "mse"] = Field(
        "kl", description="how to imitate: kl for class scores, mse for any other output"
    )
    temperature: float = Field(2.0, gt=0, description="softens the class scores that are imitated")
    batch_size: int = Field(128, ge=2, description="samples per step")
    augment: tuple[Augmentation, ...] = Field(
        (), description="vary the inputs: flip (left to right), shift and cutmix for images, mixup for any"
    )
    held_out: float = Field(
        0.1, ge=0, lt=1, description="share of the training data that only decides which epoch is kept"
    )
    patience: int = Field(10, ge=1, description="epochs without improvement after which training stops")
    quantization_aware: bool = Field(
        False, description="train with the rounding of int8 in the loop; quantizing stays a step of its own"
    )
    seed: int = Field(0, ge=0, description="of order, split and augmentation")

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Self:
        if self.loss == "mse" and not self.distill:
            raise ValueError("loss mse imitates the source model: labels (distill: false) are classes")
        return self


class Trainee(Protocol):
    """What a framework brings to the loop. Arrays are in the form of the model's inputs."""

    def begin(self, epoch: int) -> bool:
        """Prepare for an epoch (0: as it came, then from 1); whether weights of this epoch may be kept."""
        ...

    def step(self, inputs: Batch, target: Scores, rate: float) -> float:
        """Learn from one batch and return the loss.

        ``target``, shape ``[n, ...]``, is what ``target_of`` gave: with loss ``kl`` class probabilities at
        the temperature (1 without distillation), for ``T^2 * KL(target || softmax(scores / T))``; with
        ``mse`` the outputs themselves. A constant more or less in the loss (the entropy of the
        target) does not matter.
        """
        ...

    def outputs(self, inputs: Batch) -> Scores:
        """First output in inference mode. Class scores come before their softmax (log-probabilities do)."""
        ...

    def teacher(self, inputs: Batch) -> Scores:
        """The same of the source model."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything the next step depends on (weights, statistics, optimizer) to an empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Take up what ``save`` wrote."""
        ...


def target_of(options: Finetune, scores: Scores) -> Scores:
    """What to imitate, from the source model's scores: softened probabilities, or the outputs themselves."""
    if options.loss == "mse":
        return scores
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise StageError(
            f"the first output, of shape {list(scores.shape)}, is no row of class scores",
            fix="set loss: mse in finetune, to imitate the outputs themselves",
        )
    return softmax(scores / options.temperature)


def softmax(scores: Scores) -> Scores:
    """Along the last axis."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def are_probabilities(outputs: Scores) -> bool:
    """Whether outputs ``[n, classes]`` have been through a softmax, so that their log is what to train."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3))
