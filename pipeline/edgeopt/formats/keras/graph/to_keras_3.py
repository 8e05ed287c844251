"""Configurations of Keras 2 as Keras 3 reads them."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any


def network_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a functional or sequential model, as from ``get_config``."""
    converted: dict[str, Any] = _with_calls(layer_config(config))
    return converted


def layer_config(config: Any) -> Any:
    """A configuration for Keras 3 from one of Keras 2, with those of the layers and cells in it.

    Arguments that Keras 3 lacks are dropped, such as ``groups`` of DepthwiseConv2D, which has no effect; if
    one has an effect, the comparison of the outputs finds it. Dtype policies are replaced by their names.
    """
    if isinstance(config, dict):
        plain = {
            key: _dtype(value) if key == "dtype" else layer_config(value) for key, value in config.items()
        }
        # BatchNormalization: Keras 2 saves the axis as a list of one.
        if "moving_mean_initializer" in config and isinstance(plain.get("axis"), list):
            (plain["axis"],) = plain["axis"]
        return _keras3_layer(plain) if isinstance(plain.get("config"), dict) else plain
    if isinstance(config, tuple):
        return tuple(layer_config(value) for value in config)
    if isinstance(config, list):  # TensorFlow wraps tracked lists in its own class: return plain ones
        return [layer_config(value) for value in config]
    return config


def _with_calls(config: dict[str, Any]) -> dict[str, Any]:
    """A functional or sequential configuration with its calls in the form of Keras 3.

    Keras 2 writes the tensors of a call as ``[layer, call, tensor, keyword arguments]``, those among the
    keyword arguments without the last part. It counts the calls of a nested model from 1: building it is one.
    """
    inside = [layer["config"] for layer in config["layers"]]
    nested = {inner["name"]: inner for inner in inside if "layers" in inner}
    for inner in nested.values():
        inner.update(_with_calls(inner))
    if "output_layers" not in config:
        return config  # sequential
    names = {inner["name"] for inner in inside}
    references = list(_references([layer["inbound_nodes"] for layer in config["layers"]], names))
    references += _references(config["output_layers"], names)
    first = {name: min(call for each, call, *_ in references if each == name) for name, *_ in references}

    def history(reference: Any) -> list[Any]:
        name, call, tensor, *_ = reference
        return [name, call - (first[name] if name in nested else 0), tensor]

    def argument(value: Any) -> Any:
        if _is_reference(value, names):
            # Keras 3 looks the tensor up by its history alone.
            about = {"shape": [None], "dtype": "float32", "keras_history": history(value)}
            return {"class_name": "__keras_tensor__", "config": about}
        return [argument(each) for each in value] if isinstance(value, list | tuple) else value

    def node(tensors: Any) -> dict[str, Any]:
        given = tensors if isinstance(tensors[0], list | tuple) else [tensors]
        keywords: dict[str, Any] = next((each[3] for each in given if len(each) > 3), {})
        values = [argument(each) for each in given]
        return {
            "args": values if len(values) == 1 else [values],
            "kwargs": {name: argument(value) for name, value in keywords.items()},
        }

    ends = config["output_layers"]
    return config | {
        "layers": [
            layer | {"inbound_nodes": [*map(node, layer["inbound_nodes"])]} for layer in config["layers"]
        ],
        "output_layers": history(ends) if _is_reference(ends, names) else _mapped(history, ends),
    }


def _mapped(function: Callable[[Any], Any], references: Any) -> Any:
    if isinstance(references, dict):
        return {name: function(each) for name, each in references.items()}
    return [function(each) for each in references]


def _is_reference(value: Any, names: set[str]) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and value[0] in names
    )


def _references(value: Any, names: set[str]) -> Iterator[Any]:
    """All references to the tensors of layers in a part of a configuration."""
    if _is_reference(value, names):
        yield value
    if isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _references(each, names)


def _keras3_layer(described: dict[str, Any]) -> dict[str, Any]:
    """A layer by class name and configuration, as Keras 3 would describe it; other objects as they are."""
    import keras

    kind, config = described.get("class_name"), described["config"]
    if kind in ("RandomHeight", "RandomWidth"):  # like all random changes of images, none at inference
        kind, config = "Identity", {"name": config["name"]}
    elif kind == "RandomCrop":  # at inference, it resizes
        size = {key: config[key] for key in ("name", "height", "width")}
        kind, config = "Resizing", {**size, "crop_to_aspect_ratio": True}
    elif kind == "ThresholdedReLU":
        kind, config = "ReLU", {"name": config["name"], "threshold": config["theta"]}
    elif kind == "LeakyReLU":
        config = {**config, "negative_slope": config["alpha"]}
    layer = getattr(keras.layers, str(kind), None)
    if not (isinstance(layer, type) and issubclass(layer, keras.layers.Layer)) or kind == "InputLayer":
        return described
    known = _arguments(layer)
    kept = {key: config[key] for key in config if key in known}
    # Each layer of Keras 3 has arguments of its own to build it from: it is built when the graph is.
    rest = {key: value for key, value in described.items() if key != "build_config"}
    return {**rest, "module": "keras.layers", "registered_name": None, "class_name": kind, "config": kept}


def _arguments(layer: type) -> set[str]:
    """All arguments of a Keras 3 layer, those of its base classes included."""
    names: set[str] = set()
    for base in layer.__mro__:
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        names.update(parameters)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return names


def _dtype(value: Any) -> Any:
    return value["config"]["name"] if isinstance(value, dict) and "config" in value else value
