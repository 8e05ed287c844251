"""Keras 3 models rebuilt in tf_keras, which older tools need: from configuration and weights."""

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
"""Settings of weights that are copied anyway."""
RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
BARE = frozenset({"Add", "Subtract", "Multiply", "Maximum", "Minimum"})
"""Operations without a layer that have a layer of the same name."""


class Rebuilt(NamedTuple):
    """The model in tf_keras, and its layers by the path of what they were made from."""

    network: Any
    layers: dict[str, Any]


def rebuild(network: Any, name: str) -> Rebuilt:
    """Rebuild a Keras 3 model in tf_keras; models inside it are taken apart.

    Outputs are held to those of the source on random inputs (max \\|error\\| < 1e-5, relative to the largest
    output where that is above 1).

    Raises:
        StageError: naming the layer that cannot cross, or that differs first.
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
        taken = [tensors[number] for number in call.inputs]
        made = layers[call.path](taken[0] if len(taken) == 1 else taken)
        (tensors[call.outputs[0]],) = made if isinstance(made, list | tuple) else (made,)
        if len(call.outputs) != 1:
            raise _stays(call, name, "it has several outputs")
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
    if bare and (call.kind not in BARE or len(call.inputs) != 2):
        raise _stays(call, name, "it is an operation without a layer")
    if kind is None:
        raise _stays(call, name, "tf_keras has no such layer")
    if bare:
        return kind(name=_flat_name(call))
    given = {
        RENAMED.get(call.kind, {}).get(key, key): value for key, value in call.layer.get_config().items()
    }
    known = _settings(kind)
    config = {
        key: _older(value) for key, value in given.items() if key in known and not key.endswith(NEEDLESS)
    }
    try:
        return kind.from_config(config | {"name": _flat_name(call)})
    except UNREADABLE as error:
        raise _stays(call, name, reason(error)) from error


def _settings(kind: Any) -> set[str]:
    """What a class can be configured with; the comparison of outputs tells if the rest mattered."""
    known = {"trainable", "dtype"}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            known |= set(inspect.signature(base.__init__).parameters)
    return known


def _older(value: Any) -> Any:
    """A configuration value without what only Keras 3 writes; a dtype policy becomes its name."""
    if isinstance(value, dict):
        if value.get("class_name") == "DTypePolicy":
            return value["config"]["name"]
        return {key: _older(inner) for key, inner in value.items() if key not in KERAS_3_ONLY}
    if isinstance(value, list | tuple):
        return type(value)(_older(inner) for inner in value)
    return value


def _flat_name(call: Call) -> str:
    return call.path.replace("/", "_")


def _stays(call: Call, name: str, why: str) -> StageError:
    return StageError(
        f"layer {call.path!r} ({call.kind}) of {name} cannot cross to tf_keras: {why}",
        fix="train without quantization_aware, or replace the layer by a built-in one",
    )


def _compare(network: Any, other: Any, tensors: dict[int, Any], graph: Graph, name: str) -> None:
    """Run both on two random samples; open dimensions are given the size 16."""
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
        found = model(tf.nest.pack_sequence_as(structure, values), training=False)
        return [np.asarray(value) for value in tf.nest.flatten(found)]

    def error(one: Any, two: Any) -> float:
        return float(np.abs(one - two).max()) / max(1.0, float(np.abs(one).max()))

    worst = max(error(one, two) for one, two in zip(outputs(network), outputs(other), strict=True))
    if worst < TOLERANCE:
        return
    told = ""
    plain = [call for call in graph.calls if "/" not in call.path]
    if plain:
        before = outputs(keras.Model(network.inputs, [call.node.outputs[0] for call in plain]))
        after = outputs(tf_keras.Model(other.inputs, [tensors[call.outputs[0]] for call in plain]))
        differ = (
            c for c, one, two in zip(plain, before, after, strict=True) if not error(one, two) < TOLERANCE
        )
        first = next(differ, None)
        told = f"; the first layer that differs is {first.path!r} ({first.kind})" if first else ""
    raise StageError(
        f"{name} rebuilt in tf_keras gives other outputs: max |error| {worst:.2g}, "
        f"allowed {TOLERANCE:g}{told}",
        fix="train without quantization_aware",
    )
