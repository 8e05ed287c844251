"""Loaded Keras models as converters need them: in float32, and without what is for training only."""

from functools import partial
from typing import Any

import numpy as np

HALF = ("float16", "bfloat16")


def for_inference(network: Any) -> Any:
    """The network in float32, with recurrent layers that begin every call without a state.

    A policy such as ``mixed_float16`` says how to train fast: its weights are float32. A converter would
    keep its casts to types for which edge runtimes have no kernels.
    """
    if not hasattr(network, "_flatten_layers"):
        return network  # what tf_keras makes of a SavedModel without layers
    if any(_dtype(variable) in HALF for variable in network.weights):
        values = [np.asarray(value).astype("float32") for value in network.get_weights()]
        network = type(network).from_config(_in_float32(network.get_config()))
        network.set_weights(values)
    for layer in network._flatten_layers():
        if getattr(layer, "compute_dtype", None) in HALF:
            if hasattr(layer, "_set_dtype_policy"):  # Keras 2
                layer._set_dtype_policy("float32")
            else:
                layer.dtype_policy = "float32"
        # That of a model is computed from its layers.
        if not hasattr(layer, "layers") and getattr(layer, "stateful", False):
            layer.stateful = False
            layer.input_spec = None  # the batch that the state was made for
        if type(layer).__module__.startswith("tf_keras.") and type(layer).__name__ == "RandomCrop":
            layer.call = partial(_resized, size=(layer.height, layer.width))
    return network


def _resized(inputs: Any, *, size: tuple[int, int], **_: Any) -> Any:
    """RandomCrop of Keras 2 at inference, without its condition, which converters cannot resolve."""
    import tf_keras

    return tf_keras.preprocessing.image.smart_resize(inputs, size)


def _dtype(variable: Any) -> str:
    """Its name: an attribute of the type in Keras 2, the type itself in Keras 3."""
    return str(getattr(variable.dtype, "name", variable.dtype))


def _in_float32(config: Any) -> Any:
    """A configuration with float32 for each type and policy of half the precision."""
    if isinstance(config, dict):
        return {key: _in_float32(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(_in_float32, config))
    half = isinstance(config, str) and config.removeprefix("mixed_") in HALF
    return "float32" if half else config
