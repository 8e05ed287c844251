"""Rebuild Keras 3 models in tf_keras, which tfmot requires, from configuration and weights."""

import inspect
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files.loading import UNREADABLE, input_structure, reason
from edgeopt.formats.keras.graph.layers import Call, Graph, graph_of

TOLERANCE = 1e-5
KERAS_3_ONLY = frozenset({"module", "registered_name", "build_config", "shared_object_id"})
NEEDLESS = ("_initializer", "_regularizer", "_constraint")
"""Settings that only matter where Keras itself creates or trains the weights; here they are copied."""
RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
BARE = frozenset({"Add", "Subtract", "Multiply", "Maximum", "Minimum"})
"""Bare operations that have a layer of the same name."""


class Rebuilt(NamedTuple):
    """The model in tf_keras, and its layers by the path of the source layer."""

    network: Any
    layers: dict[str, Any]


def rebuild(network: Any, name: str) -> Rebuilt:
    """Rebuild a Keras 3 model in tf_keras; nested models are flattened.

    The outputs are compared with those of the source on random inputs (max \\|error\\| < 1e-5, relative to
    the largest output where that is above 1).

    Raises:
        StageError: a layer has no tf_keras equivalent, or the outputs differ; the message names the layer.
    """
    import tf_keras

    graph = graph_of(network, name)
    tensors: dict[int, Any] = {}
    for number, tensor in zip(graph.inputs, network.inputs, strict=True):
        tensors[number] = tf_keras.Input(
            tuple(tensor.shape[1:]), name=str(tensor.name), dtype=str(tensor.dtype)
        )
    layers: dict[str, Any] = {}
    for call in graph.calls:
        if call.path not in layers:
            layers[call.path] = _layer(call, name)
        inputs = [tensors[number] for number in call.inputs]
        result = layers[call.path](inputs[0] if len(inputs) == 1 else inputs)
        (tensors[call.outputs[0]],) = result if isinstance(result, list | tuple) else (result,)
        if len(call.outputs) != 1:
            raise _unconvertible(call, name, "it has several outputs")
    # Only now: a layer creates its weights when it is first called.
    for call in graph.calls:
        if getattr(call.layer, "weights", None):
            layers[call.path].set_weights(call.layer.get_weights())
    inputs = [tensors[number] for number in graph.inputs]
    other = tf_keras.Model(
        inputs[0] if len(inputs) == 1 else inputs, [tensors[number] for number in graph.outputs]
    )
    _compare(network, other, tensors, graph, name)
    return Rebuilt(other, layers)


def _layer(call: Call, name: str) -> Any:
    import keras
    import tf_keras

    kind = getattr(tf_keras.layers, call.kind, None)
    bare = not isinstance(call.layer, keras.layers.Layer)
    # With one tensor the other operand is a Python number or an array, which merge layers do not take.
    if bare and (call.kind not in BARE or len(call.inputs) != 2):
        raise _unconvertible(call, name, "it is an operation without a layer")
    if kind is None:
        raise _unconvertible(call, name, "tf_keras has no such layer")
    if bare:
        return kind(name=_flat_name(call))
    source = {
        RENAMED.get(call.kind, {}).get(key, key): value for key, value in call.layer.get_config().items()
    }
    supported = _settings(kind)
    config = {
        key: _to_keras_2(value)
        for key, value in source.items()
        if key in supported and not key.endswith(NEEDLESS)
    }
    try:
        return kind.from_config(config | {"name": _flat_name(call)})
    except UNREADABLE as error:
        raise _unconvertible(call, name, reason(error)) from error


def _settings(kind: Any) -> set[str]:
    """The settings that a class accepts. Others are dropped: `_compare` detects whether they mattered."""
    names = {"trainable", "dtype"}
    # Layers pass unknown keywords on to their base class, so all constructors count.
    for base in kind.__mro__:
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return names


def _to_keras_2(value: Any) -> Any:
    """A configuration value in the form of Keras 2: no keys of Keras 3, a dtype policy by its name."""
    if isinstance(value, dict):
        if value.get("class_name") == "DTypePolicy":
            return value["config"]["name"]
        return {key: _to_keras_2(inner) for key, inner in value.items() if key not in KERAS_3_ONLY}
    if isinstance(value, list | tuple):
        return type(value)(_to_keras_2(inner) for inner in value)
    return value


def _flat_name(call: Call) -> str:
    """A layer name without '/', which TensorFlow would read as nested name scopes."""
    return call.path.replace("/", "_")


def _unconvertible(call: Call, name: str, why: str) -> StageError:
    return StageError(
        f"layer {call.path!r} ({call.kind}) of {name} cannot be converted to tf_keras: {why}",
        fix="train without quantization_aware, or replace the layer with a built-in one",
    )


def _compare(network: Any, other: Any, tensors: dict[int, Any], graph: Graph, name: str) -> None:
    """Compare both models on two random samples, with open dimensions set to 16."""
    import keras
    import tensorflow as tf
    import tf_keras

    random = np.random.default_rng(0)
    values = [
        tf.cast(random.standard_normal([2, *(n or 16 for n in tensor.shape[1:])]), tensor.dtype)
        for tensor in network.inputs
    ]

    def outputs(model: Any) -> list[NDArray[np.float32]]:
        structure = input_structure(model)
        result = model(tf.nest.pack_sequence_as(structure, values), training=False)
        return [np.asarray(value) for value in tf.nest.flatten(result)]

    def error(one: Any, two: Any) -> float:
        return float(np.abs(one - two).max()) / max(1.0, float(np.abs(one).max()))

    worst = max(error(one, two) for one, two in zip(outputs(network), outputs(other), strict=True))
    if worst < TOLERANCE:
        return
    location = ""
    # Tensors inside a nested model are not connected to the inputs of the outer one.
    outer = [call for call in graph.calls if "/" not in call.path]
    if outer:
        before = outputs(keras.Model(network.inputs, [call.node.outputs[0] for call in outer]))
        after = outputs(tf_keras.Model(other.inputs, [tensors[call.outputs[0]] for call in outer]))
        # `not ... <`, so that NaN counts as a difference.
        differ = (
            c for c, one, two in zip(outer, before, after, strict=True) if not error(one, two) < TOLERANCE
        )
        first = next(differ, None)
        location = f"; the first layer that differs is {first.path!r} ({first.kind})" if first else ""
    raise StageError(
        f"{name} rebuilt in tf_keras has different outputs: max |error| {worst:.2g}, "
        f"allowed {TOLERANCE:g}{location}",
        fix="train without quantization_aware",
    )
