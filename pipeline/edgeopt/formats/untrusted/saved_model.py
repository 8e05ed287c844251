"""What loading or running a SavedModel folder would run, write or read.

Two loaders read the folder: ``tf.saved_model.load`` the graph, whose operators run with the model and some of
them while it is loaded, and tf_keras the configuration of every Keras layer, in ``keras_metadata.pb``.

Field numbers: tensorflow/core/protobuf/saved_model.proto, meta_graph.proto, saver.proto,
saved_object_graph.proto, tensorflow/core/framework/graph.proto, function.proto, node_def.proto.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import keras_config
from .protobuf import mapped, messages, text
from .tensorflow_operators import ALLOWED

GRAPH = "saved_model.pb"
METADATA = "keras_metadata.pb"
_SAVES = frozenset("SaveV2 MergeV2Checkpoints Save SaveSlices".split())
_RESTORES = frozenset("RestoreV2 Restore RestoreSlice".split())
_CHECKPOINT = _SAVES | _RESTORES
"""Operators that the saver of a model needs, and nothing else in it."""


class _Node(NamedTuple):
    name: str
    operator: str
    inputs: tuple[str, ...]
    functions: tuple[str, ...]


class _Saver(NamedTuple):
    filename: str
    save: str
    restore: str


def chosen_signature(names: Iterable[str]) -> str:
    """The signature that is used: TensorFlow Serving's default, Keras' ``serve``, or the first by name."""
    known = sorted(names)
    return next((name for name in ("serving_default", "serve", *known) if name in known), "")


def findings(folder: Path) -> list[str]:
    """Operators of the graph that do more than compute, and files outside the folder.

    Raises:
        ValueError, OSError: a file is damaged.
    """
    found: list[str] = []
    with mapped(folder / GRAPH) as data:
        for graph in messages(data, 2):
            found += _operators(graph)
            for asset in messages(graph, 6):
                found += (
                    f"the asset {name!r}, outside the folder"
                    for name in map(_text, messages(asset, 2))
                    if re.search(r"^[/\\]|^\w+:|(^|[/\\])\.\.([/\\]|$)", name)
                )
    return list(dict.fromkeys(found))


def keras_findings(folder: Path) -> list[keras_config.Finding]:
    """What tf_keras would run to rebuild the layers; unknown classes are not among it: it skips them.

    Raises:
        ValueError, OSError: a file is damaged.
    """
    found = []
    for config in _metadata(folder):
        if isinstance(config, dict):
            # Models are loaded with compile=False: their losses and metrics are not rebuilt.
            config = {key: value for key, value in config.items() if key != "training_config"}
        found += [each for each in keras_config.findings(config) if each.code]
    return found


def _metadata(folder: Path) -> Iterator[Any]:
    """The configuration of every Keras object; TensorFlow before 2.5 stores it in the object graph."""
    with mapped(folder / GRAPH) as data:
        for user_object in messages(data, 2, 7, 1, 4):
            if text(user_object, 1).startswith("_tf_keras_"):
                yield from (json.loads(_text(config)) for config in messages(user_object, 3) if len(config))
    metadata = folder / METADATA
    if metadata.is_file() and metadata.stat().st_size:
        with mapped(metadata) as data:
            for node in messages(data, 1):
                # Every occurrence of the field: protobuf readers take the last one.
                yield from (json.loads(_text(config)) for config in messages(node, 5) if len(config))


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _operators(graph: memoryview) -> Iterator[str]:
    """Operators of one graph and its functions that are not allowed where they are."""
    nodes = {node.name: node for node in _nodes(messages(graph, 2, 1))}
    bodies: dict[str, list[_Node]] = {}
    for function in messages(graph, 2, 2, 1):
        bodies.setdefault(text(function, 1, 1), []).extend(_nodes(messages(function, 3)))
    known = ALLOWED | _CHECKPOINT | {"ShardedFilename"}
    for node in [*nodes.values(), *(node for body in bodies.values() for node in body)]:
        if node.operator not in known and node.operator not in bodies:
            yield f"the operator {node.operator} ({node.name})"
    yield from _outside_saver(graph, nodes, _touching(bodies))


def _nodes(encoded: Iterator[memoryview]) -> Iterator[_Node]:
    for node in encoded:
        values = [value for entry in messages(node, 5) for value in messages(entry, 2)]
        called = [name for value in values for name in messages(value, 10, 1)]
        called += [name for value in values for name in messages(value, 1, 9, 1)]
        inputs = tuple(re.sub(r"^\^|:.*$", "", _text(name)) for name in messages(node, 3))
        yield _Node(text(node, 1), text(node, 2), inputs, tuple(map(_text, called)))


def _touching(bodies: dict[str, list[_Node]]) -> dict[str, set[str]]:
    """The checkpoint operators that each function reaches, also through functions that it calls."""
    touched = {
        name: {node.operator for node in body if node.operator in _CHECKPOINT}
        for name, body in bodies.items()
    }
    changed = True
    while changed:
        changed = False
        for name, body in bodies.items():
            for callee in {callee for node in body for callee in (node.operator, *node.functions)}:
                if not touched.get(callee, set()) <= touched[name]:
                    touched[name] |= touched[callee]
                    changed = True
    return {name: operators for name, operators in touched.items() if operators}


def _outside_saver(
    graph: memoryview, nodes: dict[str, _Node], functions: dict[str, set[str]]
) -> Iterator[str]:
    """Checkpoint operators that anything but the saver can reach."""
    saver = _Saver(*(re.sub(r"^\^|:.*$", "", text(graph, 3, number)) for number in (1, 2, 3)))
    saving, restoring = _ancestors(nodes, saver.save), _ancestors(nodes, saver.restore)
    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    # What a signature, an initializer or an object of the model names can run without the saver.
    named = b"\0".join(bytes(part) for number in (4, 5, 7) for part in messages(graph, number))
    for node in nodes.values():
        touched = {node.operator} & _CHECKPOINT
        touched = touched.union(*(functions.get(name, set()) for name in (node.operator, *node.functions)))
        if not touched:
            continue
        reached = _reached(readers, node.name)
        place = saving - restoring if touched & _SAVES else restoring
        if touched & _SAVES and touched & _RESTORES:
            place = set()
        foreign = node.operator in _RESTORES and (not node.inputs or node.inputs[0] != saver.filename)
        if foreign or not reached <= place or any(_names(named, name) for name in reached):
            yield f"the operator {sorted(touched)[0]} ({node.name}), outside the saver"
    for name, operators in functions.items():
        if _names(named, name):
            yield f"the operator {sorted(operators)[0]} in the function {name}, outside the saver"


def _names(encoded: bytes, name: str) -> bool:
    """Whether encoded messages contain a name, as a whole or with the index of an output."""
    return re.search(re.escape(name.encode()) + rb"(?![\w./-])", encoded) is not None


def _ancestors(nodes: dict[str, _Node], name: str) -> set[str]:
    return (
        _reached({node.name: list(node.inputs) for node in nodes.values()}, name) if name in nodes else set()
    )


def _reached(edges: dict[str, list[str]], start: str) -> set[str]:
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(edges.get(name, ()))
    return reached
