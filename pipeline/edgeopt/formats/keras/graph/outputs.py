"""Keras networks, of either library, as functions from inputs to class scores and features."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.files.loading import input_structure

Scores: TypeAlias = NDArray[np.float32]
Batch: TypeAlias = Sequence[NDArray[np.float32]]
Loss: TypeAlias = Literal["kl", "mse"]

NONLINEAR = frozenset({"ReLU", "LeakyReLU", "PReLU", "ELU"})
FLOOR = 1e-7
"""Smallest probability whose logarithm is taken."""


class Scorer:
    """A network as a function from inputs to its first output, for ``kl`` to class scores before softmax.

    Networks end in softmax more often than not, and imitating at a temperature needs what comes before.
    Where the last layer applies the softmax itself, it is told not to until ``restore``. Else the logarithm
    of the probabilities serves: log p differs from the scores by one number per sample, which
    softmax(scores / T) does not see.
    """

    def __init__(self, network: Any, loss: Loss, features: Sequence[str] = ()) -> None:
        import tensorflow as tf

        self.network = network
        self._with_features = _with_features(network, features) if features else None
        self._structure = input_structure(network)
        named = self._with_features.outputs[1:] if self._with_features is not None else []
        self.feature_shapes = [(None, *tensor.shape[1:]) for tensor in named]
        self._last = _softmax_layer(network) if loss == "kl" else None
        self._activation = getattr(self._last, "activation", None)
        if self._last is not None:
            self._last.activation = _linear(network)
        self._takes_log = False
        signature = [
            tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)
            for tensor in tf.nest.flatten(self._structure)
        ]
        self.signature = signature
        self._infer = tf.function(lambda *given: self(given, training=False), input_signature=signature)
        if loss == "kl" and self._last is None:
            self._takes_log = self._gives_probabilities()

    def __call__(self, inputs: Sequence[Any], training: bool) -> tuple[Any, list[Any]]:
        """Scores, and the outputs of the layers named in ``features``."""
        import tensorflow as tf

        if self._with_features is None:
            given = tf.nest.pack_sequence_as(self._structure, list(inputs))
            first, features = tf.nest.flatten(self.network(given, training=training))[0], []
        else:
            first, *features = self._with_features(list(inputs), training=training)
        return tf.math.log(tf.maximum(first, FLOOR)) if self._takes_log else first, features

    def infer(self, inputs: Batch) -> tuple[Scores, list[Any]]:
        """The same of a batch of arrays, in inference mode."""
        scores, features = self._infer(*inputs)
        return np.asarray(scores, np.float32), features

    def restore(self) -> None:
        """Give the last layer its softmax back."""
        if self._last is not None:
            self._last.activation = self._activation

    def _gives_probabilities(self) -> bool:
        """Whether the outputs of random inputs are non-negative and sum to one."""
        import tensorflow as tf

        random = np.random.default_rng(0)
        values = [
            tf.cast(random.random([4, *(size or 16 for size in spec.shape[1:])]), spec.dtype)
            for spec in self.signature
        ]
        given = tf.nest.pack_sequence_as(self._structure, values)
        found = np.asarray(tf.nest.flatten(self.network(given, training=False))[0])
        if found.ndim != 2 or found.shape[1] < 2:
            return False
        return bool(np.all(found >= 0) and np.allclose(found.sum(axis=1), 1, atol=1e-3))


def _softmax_layer(network: Any) -> Any:
    """The last layer, if its ``activation`` is softmax over the classes."""
    name = (getattr(network, "output_names", None) or [network.layers[-1].name])[0]
    last = next((layer for layer in network.layers if layer.name == name), None)
    activation = getattr(last, "activation", None)
    if getattr(activation, "__name__", "") != "softmax" or not _used_once(last):
        return None
    return last


def _used_once(layer: Any) -> bool:
    return len(getattr(layer, "_inbound_nodes", ())) == 1 and not getattr(layer, "outbound_nodes", ())


def _linear(network: Any) -> Any:
    """No activation, as the library of the network calls it: it is looked up by name in rebuilding."""
    import keras

    if isinstance(network, keras.Model):
        return keras.activations.linear
    import tf_keras

    return tf_keras.activations.linear


def shared_features(student: Any, teacher: Any) -> list[str]:
    """Names of layers that apply a nonlinear activation to tensors of the same shape in both networks.

    Pruning leaves them where a layer keeps its channels, such as at the end of residual blocks.
    """
    theirs = _activated(teacher)
    return [name for name, shape in _activated(student).items() if theirs.get(name) == shape]


def _activated(network: Any) -> dict[str, tuple[int | None, ...]]:
    """Layers with a nonlinear activation and the shapes of their outputs, without the last layer."""
    last = (getattr(network, "output_names", None) or [network.layers[-1].name])[0]
    found = {}
    for layer in network.layers:
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        nonlinear = activation != "linear" or type(layer).__name__ in NONLINEAR
        if nonlinear and layer.name != last and len(getattr(layer, "_inbound_nodes", ())) == 1:
            found[str(layer.name)] = tuple(layer.output.shape)
    return found


def _with_features(network: Any, names: Sequence[str]) -> Any:
    """A model of the same layers that gives its first output and those of the layers named."""
    import keras

    outputs = [network.outputs[0], *(network.get_layer(name).output for name in names)]
    if isinstance(network, keras.Model):
        return keras.Model(network.inputs, outputs)
    import tf_keras

    return tf_keras.Model(network.inputs, outputs)
