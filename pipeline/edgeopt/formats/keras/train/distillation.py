"""Training steps for knowledge distillation of Keras models on TensorFlow."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.keras.graph.outputs import Batch, Loss, Scorer, Scores
from edgeopt.formats.keras.prune.masks import Constraints

MOMENTUM = 0.9
STATISTICS_MOMENTUM = 0.9
"""Maximum momentum of batch normalization during training. With the default 0.99 of Keras, the moving
averages span hundreds of steps, and validation would use the statistics of much older weights."""


class Learner:
    """Distillation from a teacher to a student, by gradient descent with Nesterov momentum.

    Args:
        student: the network to train.
        teacher: the network whose scores are the targets (Hinton et al. 2015, arXiv:1503.02531).
        loss: ``kl`` between class distributions, or ``mse`` between outputs.
        temperature: softens both class distributions of ``kl``.
        constraints: preserve the zeros and shared values from pruning and clustering.
        prepare: called before each epoch.
        hints: weight of the feature loss (Romero et al. 2015, arXiv:1412.6550): the mean squared difference
            relative to the mean square of the teacher's features, averaged over the features.
    """

    def __init__(
        self,
        student: Scorer,
        teacher: Scorer,
        loss: Loss,
        temperature: float,
        constraints: Constraints,
        prepare: Callable[[], None] | None = None,
        hints: float = 0.0,
    ) -> None:
        import tensorflow as tf

        self.student, self._teacher = student, teacher
        self._momenta = {
            layer: layer.momentum
            for layer in _flat(student.network)
            if type(layer).__name__ == "BatchNormalization"
        }
        for layer, momentum in self._momenta.items():
            layer.momentum = min(momentum, STATISTICS_MOMENTUM)
        self._loss, self._temperature = loss, temperature
        self._trained = _trained(student.network)
        self._constraints = constraints
        self._velocities = [
            tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self._trained
        ]
        self._prepare, self._hints = prepare, hints
        self._teacher_features: tuple[Batch, list[Any]] | None = None
        self._compiled: Any = None

    def begin(self, epoch: int) -> bool:
        """Prepare an epoch; whether its weights may be the result, which requires the final sparsity."""
        final = self._constraints.begin(epoch)
        if self._prepare is not None:
            self._prepare()
        return final

    def step(self, inputs: Batch, target: Scores, rate: float) -> float:
        """Train on one batch and return the loss."""
        import tensorflow as tf

        if self._compiled is None:
            signature = [
                self.student.signature,
                tf.TensorSpec((None, *target.shape[1:]), tf.float32),
                tf.TensorSpec((), tf.float32),
                [tf.TensorSpec(shape, tf.float32) for shape in self._teacher.feature_shapes],
            ]
            self._compiled = tf.function(self._train_step, input_signature=signature)
        cached = self._teacher_features
        features = cached[1] if cached and cached[0] is inputs else self._teacher.infer(inputs)[1]
        return float(self._compiled(list(inputs), target, np.float32(rate), list(features)))

    def outputs(self, inputs: Batch) -> Scores:
        """The student's scores in inference mode."""
        return self.student.infer(inputs)[0]

    def teacher(self, inputs: Batch) -> Scores:
        """The teacher's scores; its features are cached for the step on the same batch."""
        scores, features = self._teacher.infer(inputs)
        self._teacher_features = (inputs, features)
        return scores

    def save(self, folder: Path) -> None:
        """Save weights, batch statistics, random states and velocities."""
        values = [np.asarray(variable) for variable in self._state()]
        with (folder / "state.npz").open("wb") as file:
            np.savez(file, *values)

    def load(self, folder: Path) -> None:
        """Restore the state that ``save`` wrote."""
        with np.load(folder / "state.npz", allow_pickle=False) as stored:
            for number, variable in enumerate(self._state()):
                variable.assign(stored[f"arr_{number}"])

    def finish(self) -> None:
        """Undo the changes to the student's layers that are only for training."""
        self.student.restore()
        for layer, momentum in self._momenta.items():
            layer.momentum = momentum

    def _state(self) -> list[Any]:
        return [
            *(plain(v) for v in self.student.network.variables),
            *self._velocities,
            *self._constraints.state(),
        ]

    def _train_step(self, inputs: Sequence[Any], target: Any, rate: Any, features: Sequence[Any]) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            scores, student_features = self.student(inputs, training=True)
            loss = self._distance(scores, target)
            for target_feature, feature in zip(features, student_features, strict=True):
                scale = tf.reduce_mean(target_feature**2) + 1e-7
                difference = tf.reduce_mean((feature - target_feature) ** 2)
                loss += self._hints / len(student_features) * difference / scale
        gradients = tape.gradient(loss, self._trained)
        for variable, velocity, gradient in zip(self._trained, self._velocities, gradients, strict=True):
            if gradient is None:
                continue  # no output depends on this weight
            gradient = tf.convert_to_tensor(gradient)
            gradient = self._constraints.project(variable, gradient)
            velocity.assign(MOMENTUM * velocity + gradient)
            # Nesterov momentum in the form of Keras' SGD, without the gradient at a shifted position.
            variable.assign_sub(rate * (gradient + MOMENTUM * velocity))
            self._constraints.restore_zeros(variable)
        return loss

    def _distance(self, scores: Any, target: Any) -> Any:
        import tensorflow as tf

        if self._loss == "mse":
            return tf.reduce_mean((scores - target) ** 2)
        temperature = self._temperature
        losses = tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=scores / temperature)
        # Gradients scale with 1 / T^2, so this keeps their magnitude independent of the temperature.
        return temperature**2 * tf.reduce_mean(losses)


def plain(variable: Any) -> Any:
    """The TensorFlow variable behind a Keras 3 variable; a TensorFlow variable itself."""
    import tensorflow as tf

    return variable if isinstance(variable, tf.Variable) else variable.value


def _trained(network: Any) -> list[Any]:
    variables = [plain(variable) for variable in network.trainable_variables]
    if not variables:
        raise StageError(
            "the model has no trainable weights",
            fix="set 'trainable' of its layers before saving it, or remove finetune",
        )
    return variables


def _flat(network: Any) -> Iterator[Any]:
    """All layers, including those of nested models."""
    for layer in network.layers:
        inner = getattr(layer, "layer", layer)  # tfmot wraps layers
        yield from _flat(inner) if hasattr(inner, "layers") else (inner,)
