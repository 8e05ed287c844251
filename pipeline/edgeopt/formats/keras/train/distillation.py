"""One step of learning for Keras models on TensorFlow, from the answers of another one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.keras.graph.outputs import Batch, Loss, Scorer, Scores
from edgeopt.formats.keras.prune.masks import Keeping

MOMENTUM = 0.9
STATISTICS_MOMENTUM = 0.9
"""Of batch normalization while training: Keras' 0.99 remembers hundreds of steps, most of a short run, and
the held-out samples would be judged with the statistics of weights long gone."""


class Learner:
    """A student and its teacher, and gradient descent with Nesterov's momentum.

    ``keeping`` holds weights to what pruning and clustering made of them; ``prepare`` is called before each
    epoch. ``hints`` is how much it counts that the features of both are alike (Romero et al. 2015,
    arXiv:1412.6550): their mean squared difference, relative to the teacher's mean square, averaged over
    the features.
    """

    def __init__(
        self,
        student: Scorer,
        teacher: Scorer,
        loss: Loss,
        temperature: float,
        keeping: Keeping,
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
        self._keeping = keeping
        self._velocities = [
            tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self._trained
        ]
        self._prepare, self._hints = prepare, hints
        self._seen: tuple[Batch, list[Any]] | None = None
        self._compiled: Any = None

    def begin(self, epoch: int) -> bool:
        """Prepare; whether the weights of this epoch may be kept: not before all zeros are there."""
        settled = self._keeping.begin(epoch)
        if self._prepare is not None:
            self._prepare()
        return settled

    def step(self, inputs: Batch, target: Scores, rate: float) -> float:
        """Learn from one batch and return the loss."""
        import tensorflow as tf

        if self._compiled is None:
            signature = [
                self.student.signature,
                tf.TensorSpec((None, *target.shape[1:]), tf.float32),
                tf.TensorSpec((), tf.float32),
                [tf.TensorSpec(shape, tf.float32) for shape in self._teacher.feature_shapes],
            ]
            self._compiled = tf.function(self._learn, input_signature=signature)
        features = self._seen[1] if self._seen and self._seen[0] is inputs else self._teacher.infer(inputs)[1]
        return float(self._compiled(list(inputs), target, np.float32(rate), list(features)))

    def outputs(self, inputs: Batch) -> Scores:
        """The student's scores in inference mode."""
        return self.student.infer(inputs)[0]

    def teacher(self, inputs: Batch) -> Scores:
        """The teacher's."""
        scores, features = self._teacher.infer(inputs)
        self._seen = (inputs, features)  # the step on the same batch follows
        return scores

    def save(self, folder: Path) -> None:
        """Write weights, statistics, random states and velocities."""
        values = [np.asarray(variable) for variable in self._state()]
        with (folder / "state.npz").open("wb") as file:
            np.savez(file, *values)

    def load(self, folder: Path) -> None:
        """Take up what ``save`` wrote."""
        with np.load(folder / "state.npz", allow_pickle=False) as stored:
            for number, variable in enumerate(self._state()):
                variable.assign(stored[f"arr_{number}"])

    def finish(self) -> None:
        """Give the student's layers back what was changed for training."""
        self.student.restore()
        for layer, momentum in self._momenta.items():
            layer.momentum = momentum

    def _state(self) -> list[Any]:
        return [
            *(plain(v) for v in self.student.network.variables),
            *self._velocities,
            *self._keeping.state(),
        ]

    def _learn(self, inputs: Sequence[Any], target: Any, rate: Any, features: Sequence[Any]) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            scores, found = self.student(inputs, training=True)
            loss = self._distance(scores, target)
            for wanted, got in zip(features, found, strict=True):
                scale = tf.reduce_mean(wanted**2) + 1e-7
                loss += self._hints / len(found) * tf.reduce_mean((got - wanted) ** 2) / scale
        gradients = tape.gradient(loss, self._trained)
        for variable, velocity, gradient in zip(self._trained, self._velocities, gradients, strict=True):
            if gradient is None:
                continue  # a weight that the first output does not depend on
            gradient = tf.convert_to_tensor(gradient)
            gradient = self._keeping.guide(variable, gradient)
            velocity.assign(MOMENTUM * velocity + gradient)
            variable.assign_sub(rate * (gradient + MOMENTUM * velocity))
            self._keeping.hold(variable)
        return loss

    def _distance(self, scores: Any, target: Any) -> Any:
        import tensorflow as tf

        if self._loss == "mse":
            return tf.reduce_mean((scores - target) ** 2)
        heat = self._temperature
        each = tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=scores / heat)
        return heat**2 * tf.reduce_mean(each)


def plain(variable: Any) -> Any:
    """The TensorFlow variable inside a Keras 3 variable, or the one that it is."""
    import tensorflow as tf

    return variable if isinstance(variable, tf.Variable) else variable.value


def _trained(network: Any) -> list[Any]:
    found = [plain(variable) for variable in network.trainable_variables]
    if not found:
        raise StageError(
            "the model has no weights that can be trained",
            fix="set 'trainable' of its layers before saving it, or remove finetune",
        )
    return found


def _flat(network: Any) -> Iterator[Any]:
    for layer in network.layers:
        inner = getattr(layer, "layer", layer)  # as tfmot wraps layers
        yield from _flat(inner) if hasattr(inner, "layers") else (inner,)
