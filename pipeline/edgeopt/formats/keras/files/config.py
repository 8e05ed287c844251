"""The configuration that Keras stores in its files: inputs, layers, and objects that would run code.

Keras 3: https://keras.io/api/models/model_saving_apis/. Keras 2 writes the same keys, except ``module``.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.formats.specs import missing_code, tensor
from edgeopt.formats.untrusted import BY_TRUST
from edgeopt.formats.untrusted import keras_config as untrusted
from edgeopt.model import Layout, TensorSpec

MODELS = ("Functional", "Sequential", "Model")


def allowed_by_trust(path: Path, config: Any, trust: bool) -> Iterator[str]:
    """Notes on the objects that run code or open files, which ``trust`` allows.

    Raises:
        UsageError: an object does so without ``trust``.
    """
    for found in untrusted.findings(config):
        fix = "export the model with its graph, model.export('folder'), and use that folder"
        if not found.code and not trust:
            raise missing_code(path, f"a custom class that it does not contain, {found}")
        if not trust:
            own = found.reason.startswith(("is a class of", "is a function of"))
            line = f", with its Python file, model: {{path: {path.name}, code: layers.py, trust: true}}"
            fix = f"use layers of Keras, or {fix}; or, {BY_TRUST}{line if own else ''}"
            raise UsageError(f"{path}: {found}", fix=fix)
        yield f"{found}; model.trust allows it"


def custom_class(config: Any) -> str:
    """The first class that Keras lacks and cannot import, as a clause; empty if there is none."""
    missing = (found for found in untrusted.findings(config) if not found.code)
    return next((f"a custom class that it does not contain, {found}" for found in missing), "")


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


def changed_for_inference(config: dict[str, Any]) -> Iterator[str]:
    """Notes on what files that are made from the model compute in another way than its layers say."""
    text = json.dumps(config)
    for half in ("float16", "bfloat16"):
        if f'"mixed_{half}"' in text or f'"{half}"' in text:
            yield f"layers that compute in {half} are converted to float32, which edge runtimes compute in"
    stateful = [
        str(layer["config"].get("name"))
        for layer in untrusted.objects(config)
        if isinstance(layer.get("config"), dict) and layer["config"].get("stateful") is True
    ]
    if stateful:
        yield (
            f"stateful layers ({', '.join(sorted(set(stateful))[:3])}): every run begins without a state, "
            "also that of the source model; to carry it over, build the model with the state as input and "
            "output: output, *state = LSTM(n, return_state=True)(x, initial_state=[h, c])"
        )


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


def output_count(config: dict[str, Any]) -> int | None:
    """The number of outputs; None if the configuration does not list them."""
    inner = config.get("config")
    listed = inner.get("output_layers") if isinstance(inner, dict) else None
    if isinstance(listed, list) and listed:
        # A single output is not in a list of its own: [layer, node, tensor].
        return 1 if isinstance(listed[0], str) else len(listed)
    if isinstance(listed, dict):
        return len(listed)
    return 1 if config.get("class_name") == "Sequential" else None


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
