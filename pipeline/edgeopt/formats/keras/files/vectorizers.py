"""Layers that look up text or keys in tables, which run on the host: no edge format has a counterpart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.model import TensorSpec

VECTORIZERS = frozenset("TextVectorization StringLookup IntegerLookup Hashing HashedCrossing".split())
TEXT = "string"
NUMBERS_ONLY = "runtimes of edge devices compute on numbers only"


def refuse(path: Path, config: dict[str, Any], inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a Keras model that takes text, or looks keys up in a table.

    Raises:
        UsageError: it names the layer, and the line of Keras that cuts the model behind it.
    """
    texts = [spec.name for spec in inputs if spec.dtype == TEXT]
    found = [layer for layer in _all_layers(config) if layer.get("class_name") in VECTORIZERS]
    if not texts and not found:
        return
    top = [layer for layer in _layers(config) if layer.get("class_name") != "InputLayer"]
    readers = {spec.name: _reader(spec.name, top, config) for spec in inputs}
    first = found[0] if found else next(filter(None, (readers[name] for name in texts)), None)
    what = f"input {texts[0]!r} takes text" if texts else "it looks up keys in a table"
    layer = f", layer {_name(first)!r} ({first['class_name']})" if first else ""
    cut = [
        f"model.get_layer({_name(reader)!r}).output"
        if reader and (name in texts or reader in found)
        else f"model.inputs[{position}]"
        for position, (name, reader) in enumerate(readers.items())
    ] or [f"model.get_layer({_name(first)!r}).output" if first else "..."]
    inside = cut[0] if len(cut) == 1 else "[" + ", ".join(cut) + "]"
    line = f"keras.Model({inside}, model.outputs).save('cut.keras')"
    raise UsageError(
        f"{path}: {what}{layer}, and {NUMBERS_ONLY}",
        fix=f"cut the model behind that layer, {line}, and apply the layer to the data on the host",
    )


def refuse_signature(path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a graph that takes text.

    Raises:
        UsageError: with the name of the input.
    """
    for spec in inputs:
        if spec.dtype == TEXT:
            raise UsageError(
                f"{path}: input {spec.name!r} takes text, and {NUMBERS_ONLY}",
                fix="cut the model behind the layer that turns text into numbers, such as TextVectorization: "
                "keras.Model(model.get_layer('text_vectorization').output, model.outputs).export('cut'), and "
                "apply the layer to the data on the host",
            )


def _layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    inner = config.get("config")
    entries = inner.get("layers") if isinstance(inner, dict) else inner
    return [layer for layer in entries if isinstance(layer, dict)] if isinstance(entries, list) else []


def _all_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All layers, those of nested models after the others."""
    waiting = [config]
    while waiting:
        for layer in _layers(waiting.pop(0)):
            yield layer
            waiting.append(layer)


def _reader(name: str, layers: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any] | None:
    """The first layer that reads an input: named by its references in a functional model, else the first."""
    if config.get("class_name") == "Sequential":
        return layers[0] if layers else None
    reference = f'["{name}", 0, 0'
    return next((layer for layer in layers if reference in json.dumps(layer.get("inbound_nodes"))), None)


def _name(layer: dict[str, Any]) -> str:
    config = layer.get("config")
    return str(layer.get("name") or (config.get("name") if isinstance(config, dict) else ""))
