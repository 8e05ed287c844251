"""Keras 3 and tf_keras networks as functions from inputs to class scores and features."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files.loading import input_structure
from edgeopt.formats.output_scales import scales_of

Scores: TypeAlias = NDArray[np.float32]
Batch: TypeAlias = Sequence[NDArray[np.float32]]
Loss: TypeAlias = Literal["kl", "mse"]

NONLINEAR = frozenset({"ReLU", "LeakyReLU", "PReLU", "ELU"})
FLOOR = 1e-7
"""Lower bound for probabilities before the logarithm."""


class Balance:
    """What each output is divided by with the loss ``mse``, so that all of its parts count alike."""

    def __init__(self) -> None:
        self.scales: list[NDArray[np.float32]] = []
        """Set by the first batch; empty before."""


class Scorer:
    """A network as a function from inputs to its outputs; with ``kl``, to class scores before softmax.

    With ``mse``, outputs are divided by their scales in ``balance``. Several are concatenated:
    ``[n, values]``.

    Most networks end in softmax, and distillation at a temperature needs the logits. Where the last layer
    applies the softmax as its activation, the activation is removed until ``restore``. Otherwise the
    logarithm of the probabilities is used: log p differs from the logits by a constant per sample, and
    softmax(scores / T) is invariant to it.
    """

    def __init__(
        self, network: Any, loss: Loss, features: Sequence[str] = (), balance: Balance | None = None
    ) -> None:
        """``balance`` is shared by student and teacher.

        Raises:
            StageError: the loss ``kl`` does not fit a network of several outputs.
        """
        import tensorflow as tf

        self.network, self.balance = network, balance or Balance()
        self._scales = loss == "mse"
        self._count = len(network.outputs)
        if loss == "kl" and self._count > 1:
            raise StageError(
                f"loss: kl teaches one output of class scores, and the model has {self._count} outputs",
                fix="set loss: mse in finetune, which teaches every output",
            )
        self._with_features = _with_features(network, features) if features else None
        self._structure = input_structure(network)
        feature_tensors = (
            self._with_features.outputs[self._count :] if self._with_features is not None else []
        )
        self.feature_shapes = [(None, *tensor.shape[1:]) for tensor in feature_tensors]
        self._last = _softmax_layer(network) if loss == "kl" else None
        self._activation = getattr(self._last, "activation", None)
        # Before any tracing: tf.function keeps the activation that the layer had when it was traced.
        if self._last is not None:
            self._last.activation = _linear(network)
        self._takes_log = False
        signature = [
            tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)
            for tensor in tf.nest.flatten(self._structure)
        ]
        self.signature = signature
        self._infer = tf.function(lambda *inputs: self(inputs, training=False), input_signature=signature)
        if loss == "kl" and self._last is None:
            self._takes_log = self._outputs_probabilities()

    def __call__(self, inputs: Sequence[Any], training: bool) -> tuple[Any, list[Any]]:
        """The scores, and the outputs of the layers in ``features``."""
        import tensorflow as tf

        if self._with_features is None:
            structured = tf.nest.pack_sequence_as(self._structure, list(inputs))
            outputs, features = tf.nest.flatten(self.network(structured, training=training)), []
        else:
            values = self._with_features(list(inputs), training=training)
            outputs, features = values[: self._count], list(values[self._count :])
        if self._scales and self.balance.scales:
            outputs = [value / scale for value, scale in zip(outputs, self.balance.scales, strict=True)]
        if self._count > 1:
            return tf.concat([tf.reshape(v, [tf.shape(v)[0], -1]) for v in outputs], axis=1), features
        (first,) = outputs
        return tf.math.log(tf.maximum(first, FLOOR)) if self._takes_log else first, features

    def infer(self, inputs: Batch) -> tuple[Scores, list[Any]]:
        """Scores and features of a batch of arrays, in inference mode."""
        if self._scales and not self.balance.scales:
            self.balance.scales = self._scales_on(inputs)
        scores, features = self._infer(*inputs)
        return np.asarray(scores, np.float32), features

    def _scales_on(self, inputs: Batch) -> list[NDArray[np.float32]]:
        import tensorflow as tf

        structured = tf.nest.pack_sequence_as(self._structure, [tf.constant(value) for value in inputs])
        outputs = tf.nest.flatten(self.network(structured, training=False))
        return [scales_of(np.asarray(value)) for value in outputs]

    def restore(self) -> None:
        """Restore the softmax of the last layer."""
        if self._last is not None:
            self._last.activation = self._activation

    def _outputs_probabilities(self) -> bool:
        """Whether the outputs for random inputs are non-negative and sum to 1."""
        import tensorflow as tf

        random = np.random.default_rng(0)
        values = [
            tf.cast(random.random([4, *(size or 16 for size in spec.shape[1:])]), spec.dtype)
            for spec in self.signature
        ]
        structured = tf.nest.pack_sequence_as(self._structure, values)
        output = np.asarray(tf.nest.flatten(self.network(structured, training=False))[0])
        if output.ndim != 2 or output.shape[1] < 2:
            return False
        return bool(np.all(output >= 0) and np.allclose(output.sum(axis=1), 1, atol=1e-3))


def _softmax_layer(network: Any) -> Any:
    """The output layer, if its ``activation`` is softmax and nothing else reads it."""
    name = (getattr(network, "output_names", None) or [network.layers[-1].name])[0]
    last = next((layer for layer in network.layers if layer.name == name), None)
    activation = getattr(last, "activation", None)
    # A layer that is called elsewhere too needs its softmax there.
    if getattr(activation, "__name__", "") != "softmax" or not _used_once(last):
        return None
    return last


def _used_once(layer: Any) -> bool:
    return len(getattr(layer, "_inbound_nodes", ())) == 1 and not getattr(layer, "outbound_nodes", ())


def _linear(network: Any) -> Any:
    """The identity activation of the network's own library: rebuilding a layer looks it up by name."""
    import keras

    if isinstance(network, keras.Model):
        return keras.activations.linear
    import tf_keras

    return tf_keras.activations.linear


def shared_features(student: Any, teacher: Any) -> list[str]:
    """Names of nonlinear layers whose outputs have the same shape in both networks.

    After channel pruning these are the layers that kept all channels, such as the ends of residual blocks.
    """
    teacher_shapes = _nonlinear_outputs(teacher)
    return [name for name, shape in _nonlinear_outputs(student).items() if teacher_shapes.get(name) == shape]


def _nonlinear_outputs(network: Any) -> dict[str, tuple[int | None, ...]]:
    """Output shapes of the layers with a nonlinear activation, except the output layers."""
    last = getattr(network, "output_names", None) or [network.layers[-1].name]
    shapes = {}
    for layer in network.layers:
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        nonlinear = activation != "linear" or type(layer).__name__ in NONLINEAR
        # `layer.output` is ambiguous, and raises, for a layer that is called more than once.
        if nonlinear and layer.name not in last and len(getattr(layer, "_inbound_nodes", ())) == 1:
            shapes[str(layer.name)] = tuple(layer.output.shape)
    return shapes


def _with_features(network: Any, names: Sequence[str]) -> Any:
    """A model of the same layers with all outputs and the outputs of the named layers."""
    import keras

    outputs = [*network.outputs, *(network.get_layer(name).output for name in names)]
    if isinstance(network, keras.Model):
        return keras.Model(network.inputs, outputs)
    import tf_keras

    return tf_keras.Model(network.inputs, outputs)
