"""A SavedModel folder: its signature and, if present, its Keras configuration.

Field numbers: tensorflow/core/protobuf/saved_model.proto, meta_graph.proto, saved_object_graph.proto.
"""

import os
from itertools import chain
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.formats.keras.files import config as keras_config
from edgeopt.formats.keras.files import vectorizers
from edgeopt.formats.specs import UNDECLARED, tensor
from edgeopt.formats.untrusted import BY_TRUST, saved_model
from edgeopt.formats.untrusted import keras_config as untrusted_config
from edgeopt.formats.untrusted.protobuf import mapped, messages, number, text
from edgeopt.formats.untrusted.saved_model import chosen_signature
from edgeopt.formats.wire import bounded
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin.contents import Source

GRAPH = "saved_model.pb"
FROM_GRAPH = "only its graph is used, which can be converted to TFLite and ONNX only"
TYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}


def read(path: Path, trust: bool) -> Source:
    """The model in a SavedModel folder; a Keras configuration is used if it has built-in layers only.

    Raises:
        UsageError: the folder is not a SavedModel, has a link that leads out of it, or its graph does more
            than compute and is not trusted.
    """
    file = path / "saved_model.pb"
    if not file.is_file():
        members = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise UsageError(
            f"{path} is not a SavedModel folder: saved_model.pb not found (it contains {members})",
            fix="use the folder that contains saved_model.pb, or a model file",
        )
    _stays_inside(path)
    with mapped(file) as data:
        graph = next(messages(data, 2), None)
        if graph is None:
            raise ValueError("saved_model.pb contains no graph")
        signature, inputs, outputs = _signature(graph)
        config = _keras_configuration(path, graph)
    operators = saved_model.findings(path)
    if operators and not trust:
        raise UsageError(
            f"{path} contains more than a network: {operators[0]}",
            fix=f"save it without operators that read or write files or call Python; or, {BY_TRUST}",
        )
    note = "" if config else f"the SavedModel has no Keras configuration: {FROM_GRAPH}"
    if config:
        code = saved_model.keras_findings(path)
        if code and not trust:
            note = f"the layer {code[0]}: {FROM_GRAPH} (model.trust: true rebuilds it as a Keras model)"
        elif any(not found.code for found in untrusted_config.findings(config)):
            note = f"the model has custom layers: {FROM_GRAPH}"
        else:
            inputs, outputs = keras_config.inputs(config) or inputs, ()
    vectorizers.refuse_signature(path, inputs)
    named = f"of its signatures, {signature!r} is used" if signature not in ("", "serving_default") else ""
    allowed = (f"{operator}; model.trust allows it" for operator in operators)
    notes = (*allowed, *filter(None, (note, named)), *([] if inputs else [UNDECLARED]))
    model = Model(format="saved_model" if note else "tf_keras", path=path, inputs=inputs, outputs=outputs)
    layers = keras_config.layers(config) if config and not note else {}
    return Source(model=model, framework="keras", notes=notes, layers=layers)


def _stays_inside(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it: no other files may be read or copied."""
    home, seen = folder.resolve(), 0
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in chain(folders, files):
            seen += 1
            entry = Path(place, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(home):
                link = f"{entry.relative_to(folder)} is a link to {entry.resolve()}"
                raise UsageError(
                    f"{folder} is rejected: {link}, outside the folder",
                    fix="copy the file itself into the folder",
                )
            if seen > bounded.ENTRY_LIMIT:
                raise ValueError(f"the folder has more than {bounded.ENTRY_LIMIT} files, the limit")


def _keras_configuration(path: Path, graph: memoryview) -> dict[str, Any] | None:
    """The Keras configuration of the root object, if the model can be rebuilt from it.

    TensorFlow stores it in the object graph up to version 2.4, in ``keras_metadata.pb`` since.
    """
    root = next(messages(graph, 7, 1), None)
    if root is None or not text(root, 4, 1).startswith("_tf_keras_"):
        return None
    config = text(root, 4, 3)
    metadata = path / "keras_metadata.pb"
    if not config and metadata.is_file() and metadata.stat().st_size:
        with mapped(metadata) as data:
            nodes = (node for node in messages(data, 1) if text(node, 3) == "root")
            config = next((text(node, 5) for node in nodes), "")
    return keras_config.rebuildable(bounded.json_value(config)) if config else None


def _signature(graph: memoryview) -> tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Name, inputs and outputs of the signature that is used, both sorted by name."""
    signatures = {text(entry, 1): entry for entry in messages(graph, 5)}
    name = chosen_signature(name for name in signatures if not name.startswith("__"))
    chosen = signatures.get(name, memoryview(b""))
    return name, _specs(chosen, 1), _specs(chosen, 2)


def _specs(signature: memoryview, field: int) -> tuple[TensorSpec, ...]:
    specs = []
    for entry in messages(signature, 2, field):
        info = next(messages(entry, 2), memoryview(b""))
        sizes = (number(dimension, 1) for dimension in messages(info, 3, 2))
        # Protobuf encodes -1 as a 64-bit two's complement.
        shape = tuple(None if size >> 63 else size for size in sizes)
        specs.append(tensor(text(entry, 1), shape, TYPES.get(number(info, 2), "unknown"), "NHWC"))
    return tuple(sorted(specs, key=lambda spec: spec.name))
