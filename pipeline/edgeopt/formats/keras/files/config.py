"""The configuration that Keras stores in its files: inputs, layers, and objects that would run code.

Keras 3: https://keras.io/api/models/model_saving_apis/. Keras 2 writes the same keys, except ``module``.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.formats.specs import tensor
from edgeopt.model import Layout, TensorSpec

MODELS = ("Functional", "Sequential", "Model")


def objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object of a configuration, outermost first."""
    # Iterative: a hostile file may nest deeper than Python's recursion limit.
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def is_lambda(value: dict[str, Any]) -> bool:
    """Whether an object carries Python code."""
    return value["class_name"] in ("Lambda", "__lambda__")


def is_custom(value: dict[str, Any]) -> bool:
    """Whether an object's class is not part of Keras."""
    if "module" not in value:
        # Keras 2 writes the registration package instead of a module: 'mine>Layer'.
        return ">" in str(value["class_name"])
    module = str(value["module"])
    return module not in ("keras", "builtins") and not module.startswith("keras.")


def allowed_by_trust(path: Path, config: Any, trust: bool) -> Iterator[str]:
    """Notes on the layers that run code, which ``trust`` allows.

    Raises:
        UsageError: a layer runs code without ``trust``, or cannot be loaded even with it.
    """
    for value in objects(config):
        if is_lambda(value):
            if not trust:
                raise UsageError(
                    f"{path} has a Lambda layer, {_label(value)}: loading it would run code from the file",
                    fix="replace it with a built-in layer; or, if you trust the origin of the file, "
                    "set model.trust: true",
                )
            yield f"Lambda layer {_label(value)} runs code from the file; model.trust allows it"
        elif is_custom(value):
            fix = "export the model with its graph, model.export('folder'), and use that folder"
            if not value.get("module"):
                # Registered in a script: it cannot be imported, so trusting the file does not help.
                raise UsageError(
                    f"{path} needs a custom class that it does not contain, {_label(value)}", fix=fix
                )
            if not trust:
                raise UsageError(
                    f"{path} needs a custom class from {value['module']!r}, {_label(value)}",
                    fix=f"{fix}; or, if you trust that module, set model.trust: true",
                )
            yield f"custom class {_label(value)} is imported from {value['module']!r}; model.trust allows it"


def _label(value: dict[str, Any]) -> str:
    """The name of a layer, as its author sees it, and its class."""
    config = value.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    kind = str(value.get("registered_name") or value["class_name"])
    return f"{name!r} ({kind})" if name else f"({kind})"


def rebuildable(config: Any) -> dict[str, Any] | None:
    """The configuration, if it describes a model made of layers."""
    if isinstance(config, dict) and config.get("class_name") in MODELS and _top_layers(config):
        return config
    return None


def layers(config: dict[str, Any]) -> dict[str, int]:
    """The number of layers of each class, including those of nested models."""
    waiting, counts = [config], Counter[str]()
    while waiting:
        for layer in _top_layers(waiting.pop(0)):
            if layer.get("class_name") in MODELS:
                waiting.append(layer)
            elif layer.get("class_name") != "InputLayer":
                counts[str(layer.get("class_name"))] += 1
    return dict(counts)


def _top_layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    inner = config.get("config")
    entries = inner.get("layers") if isinstance(inner, dict) else inner
    return [layer for layer in entries if isinstance(layer, dict)] if isinstance(entries, list) else []


def inputs(config: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """Inputs in the order of the model's signature; empty if the configuration does not declare them."""
    inner = config.get("config")
    entries = _top_layers(config)
    layout: Layout = "NCHW" if '"channels_first"' in json.dumps(entries) else "NHWC"
    specs = {}
    for layer in entries:
        options = layer.get("config")
        if layer.get("class_name") == "InputLayer" and isinstance(options, dict):
            shape = options.get("batch_shape", options.get("batch_input_shape"))
            if shape is not None:
                name = str(options.get("name") or layer.get("name"))
                specs[name] = tensor(name, _sizes(shape), _dtype(options), layout)
    order = list(_input_names(inner.get("input_layers"))) if isinstance(inner, dict) else []
    if specs:
        return tuple(specs[name] for name in order or specs if name in specs)
    # A Sequential model without an InputLayer stores the shape in its first layer or, if it was saved after
    # it was built, at the top.
    options = entries[0].get("config") if entries else None
    shape = options.get("batch_input_shape") if isinstance(options, dict) else None
    if shape is None and isinstance(inner, dict):
        shape = inner.get("build_input_shape")
    if not shape or not isinstance(options, dict):
        return ()
    return (tensor("input", _sizes(shape), _dtype(options), layout),)


def _input_names(value: Any) -> Iterator[str]:
    """Names in ``input_layers``: ``["a", 0, 0]``, a list of these, or a dictionary, taken in key order."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            yield value[0]
        else:
            for part in value:
                yield from _input_names(part)


def _sizes(shape: Any) -> tuple[int | None, ...]:
    items = shape["items"] if isinstance(shape, dict) else shape
    return tuple(None if item is None else int(item) for item in items)


def _dtype(options: dict[str, Any]) -> str:
    dtype = options.get("dtype") or "float32"
    if isinstance(dtype, dict):
        dtype = dtype.get("config", {}).get("name", "float32")
    # A mixed-precision policy describes the computation: its inputs are float32.
    return "float32" if str(dtype).startswith("mixed_") else str(dtype)
