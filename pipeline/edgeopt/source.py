"""What a model file is, found out by reading it: no framework is imported and nothing in it is run.

``inspect`` names the format and, where the file tells, the inputs. ``check_weights`` looks through a
checkpoint for anything that would run code when it is loaded. Both refuse with what is wrong, where,
and how to fix it. This is the early and friendly check; the loaders themselves still run with
``weights_only=True`` and ``safe_mode=True``.

Formats read here: Keras archive (https://keras.io/api/models/model_saving_apis/), HDF5, SavedModel
and ONNX as protobuf wire data (https://protobuf.dev/programming-guides/encoding/), torch archives
(torch/serialization.py and torch/export/pt2_archive), safetensors, FlatBuffers file identifiers.
"""

import difflib
import importlib.util
import json
import mmap
import os
import pickletools
import struct
import subprocess
import sys
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.errors import MissingPackageError, UsageError
from edgeopt.model import Layout, Model, TensorSpec

JSON_LIMIT = 64 << 20
"""Bytes of configuration that are read; the largest public models stay under a tenth of it."""
PICKLE_LIMIT = 64 << 20
"""Bytes of pickle that are looked through: tensors lie outside of it, so real ones are small."""
HDF5_SECONDS = 20
ENTRY_LIMIT = 100_000
"""Members of an archive, or files of a folder."""


class Source(BaseModel):
    """A model as it was found. ``layers`` counts the layer classes where the file tells them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Model
    framework: Literal["keras", "torch"] | None = None
    notes: tuple[str, ...] = ()
    layers: dict[str, int] = Field(default_factory=dict)


class _Kind(NamedTuple):
    """What the content of a file shows it to be."""

    name: str
    words: str


_KERAS = _Kind("keras", "a Keras archive (.keras)")
_HDF5 = _Kind("hdf5", "an HDF5 file (.h5)")
_EXPORTED = _Kind("exported_program", "a torch exported program (.pt2)")
_SCRIPT = _Kind("torchscript_module", "a TorchScript module (.pt)")
_LITE = _Kind("torchscript", "a TorchScript file for the lite interpreter (.ptl)")
_CHECKPOINT = _Kind("checkpoint", "a torch checkpoint (.pt, .pth)")
_LEGACY = _Kind("legacy", "a torch checkpoint in the format before 1.6 (.pt, .pth, .th)")
_PICKLE = _Kind("pickle", "a bare Python pickle")
_SAFETENSORS = _Kind("safetensors", "a safetensors file (.safetensors)")
_TFLITE = _Kind("tflite", "a TFLite file (.tflite)")
_EXECUTORCH = _Kind("executorch", "an ExecuTorch program (.pte)")
_ONNX = _Kind("onnx", "an ONNX file (.onnx)")
_ZIP = _Kind("zip", "a zip archive that holds no known model")
_LFS = _Kind("lfs", "a Git LFS pointer, the file itself was never fetched ('git lfs pull')")
_HTML = _Kind("html", "a web page, so the download went wrong")
_UNKNOWN = _Kind("unknown", "nothing that is known here")

_BY_SUFFIX = {
    ".keras": _KERAS,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".pt2": _EXPORTED,
    ".ptl": _LITE,
    ".safetensors": _SAFETENSORS,
    ".tflite": _TFLITE,
    ".pte": _EXECUTORCH,
    ".onnx": _ONNX,
}
_WEIGHTS = (_CHECKPOINT, _LEGACY, _SAFETENSORS)
_KNOWN = ".keras, .h5, a SavedModel folder, .pt2, a TorchScript .pt, .tflite, .onnx, .ptl, .pte"
_MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading damaged or hostile content raises; zipfile answers an encrypted member
and json too deep a nesting with a RuntimeError."""


def inspect(path: Path, *, trust: bool = False) -> Source:
    """Find out what the model at ``path`` is, and what goes in, where the file tells.

    ``trust`` allows what would run code from the file: Lambda layers, and custom classes that are
    imported from elsewhere.

    Raises:
        UsageError: when the file is missing, empty, damaged, not what its name says, holds weights
            only, or would run code.
    """
    _present(path)
    try:
        if path.is_dir():
            return _saved_model(path, trust)
        kind = _identify(path)
        expected = _BY_SUFFIX.get(path.suffix.lower(), kind)
        if kind != expected:
            raise UsageError(
                f"{path} is not {expected.words}: its content is {kind.words}",
                fix="give the right file, or name it after what it holds",
            )
        reader = _READERS.get(kind.name)
        if reader is None:
            raise UsageError(f"{path} is not a model: it is {kind.words}", fix=f"models are: {_KNOWN}")
        return reader(path, trust)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", fix="check the file") from error
    except _MALFORMED as error:
        raise _damaged(path, error) from error


def is_weights(path: Path) -> bool:
    """Whether the file holds weights without a network: a torch checkpoint or safetensors."""
    try:
        return path.is_file() and _identify(path) in _WEIGHTS
    except (OSError, *_MALFORMED):
        return False


def check_weights(path: Path, *, trust: bool = False) -> tuple[str, ...]:
    """Look through a torch checkpoint or safetensors file without loading it.

    Returns notes on what ``trust`` let through.

    Raises:
        UsageError: when it is missing, damaged, no checkpoint, or names anything that
            ``torch.load(weights_only=True)`` would refuse.
    """
    _present(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder, where a file of weights is expected", fix=_FIX_WEIGHTS)
    try:
        kind = _identify(path)
        if path.suffix.lower() == ".safetensors" and kind != _SAFETENSORS:
            raise UsageError(f"{path} is not {_SAFETENSORS.words}: it is {kind.words}", fix=_FIX_WEIGHTS)
        if kind == _SAFETENSORS:
            _check_safetensors(path)
            return ()
        if kind not in _WEIGHTS:
            raise UsageError(f"{path} holds no weights: it is {kind.words}", fix=_FIX_WEIGHTS)
        refused = _refused_by_torch(path, kind)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", fix="check the file") from error
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    if not refused:
        return ()
    # Names say more than instructions do, which are refused for what they could bring.
    refused = [name for name in refused if not name.startswith(_INSTRUCTION)] or refused
    names = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
    if any("torch.nn.modules." in name for name in refused):
        raise UsageError(
            f"{path} is a whole pickled module, not weights: loading it would run code ({names})",
            fix=f"where the network's code is at hand: {_RESAVE}, and give that file",
        )
    if trust:
        return (f"{path.name} can run code when it is loaded ({names}); model.trust allows it",)
    raise UsageError(
        f"{path}: loading it could run code: it holds {names}",
        fix=f"save the weights alone, {_RESAVE}; or, if you trust where it comes from, set model.trust: true",
    )


_RESAVE = "torch.save(model.state_dict(), 'weights.pt')"
_INSTRUCTION = "the pickle instruction "
_FIX_WEIGHTS = f"give a file made by {_RESAVE} or by safetensors"


def _damaged(path: Path, error: Exception) -> UsageError:
    why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return UsageError(f"{path} is damaged: {why}", fix="copy or save it again")


def _present(path: Path) -> None:
    try:
        if not path.exists():
            folder = path.parent
            names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            near = difflib.get_close_matches(path.name, names, 1)
            fix = f"did you mean {near[0]!r}?" if near else "check the path"
            raise UsageError(f"no such model: {path}", fix=fix)
        if path.is_file() and path.stat().st_size == 0:
            raise UsageError(f"{path} is empty", fix="copy or save it again")
        if not path.is_file() and not path.is_dir():
            raise UsageError(f"{path} is neither a file nor a folder", fix=f"models are: {_KNOWN}")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", fix="check the path") from error


def _identify(path: Path) -> _Kind:
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return _identify_zip(path)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return _HDF5
    if head[4:8] == b"TFL3":
        return _TFLITE
    if head[4:6] == b"ET" and head[6:8].isdigit():
        return _EXECUTORCH
    if head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        return _LEGACY
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        return _PICKLE
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return _SAFETENSORS
    if head.startswith(b"version https://git-lfs"):
        return _LFS
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or head.lstrip()[:5].lower() == b"<html":
        return _HTML
    return _ONNX if _looks_like_onnx(path) else _UNKNOWN


def _identify_zip(path: Path) -> _Kind:
    with zipfile.ZipFile(path) as archive:
        names = _names(archive)
    if names & {"config.json", "metadata.json", "model.weights.h5"}:
        return _KERAS
    # Everything in an archive that torch wrote lies in one folder, which may have any name.
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names | inner:
        return _EXPORTED
    if "bytecode.pkl" in inner:
        return _LITE
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return _SCRIPT
    return _CHECKPOINT if "data.pkl" in inner else _ZIP


def _names(archive: zipfile.ZipFile) -> set[str]:
    names = archive.namelist()
    if len(names) > ENTRY_LIMIT:
        raise ValueError(f"the archive has {len(names)} members, more than the {ENTRY_LIMIT} allowed")
    return set(names)


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """One member, never more than ``limit`` bytes of it whatever the archive's directory claims."""
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name} is larger than the {limit >> 20} MiB allowed")
    return content


def _json(text: bytes | str) -> Any:
    if len(text) > JSON_LIMIT:
        raise ValueError(f"the configuration is larger than the {JSON_LIMIT >> 20} MiB allowed")
    return json.loads(text)


# Keras: .keras and .h5


def _keras_archive(path: Path, trust: bool) -> Source:
    with zipfile.ZipFile(path) as archive:
        missing = {"config.json", "metadata.json", "model.weights.h5"} - _names(archive)
        if missing:
            raise UsageError(
                f"{path} is not {_KERAS.words}: it has no {', '.join(sorted(missing))}",
                fix="save the whole model: model.save('model.keras')",
            )
        config = _json(_member(archive, "config.json", JSON_LIMIT))
        version = str(_json(_member(archive, "metadata.json", 1 << 20)).get("keras_version", "3"))
    return _from_keras_config(path, config, version, trust)


_READ_HDF5 = """
import json, sys
import h5py

def text(value):
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)

links = []
with h5py.File(sys.argv[1], "r") as file:
    config, version = text(file.attrs.get("model_config")), text(file.attrs.get("keras_version"))
    file.visititems_links(
        lambda name, link: links.append(name) if isinstance(link, h5py.ExternalLink) else None
    )
json.dump([config if config is None else config[: int(sys.argv[2])], version, links[:1]], sys.stdout)
"""


def _keras_hdf5(path: Path, trust: bool) -> Source:
    if importlib.util.find_spec("h5py") is None:
        raise MissingPackageError(f"reading {path.name} needs h5py", fix="pip install 'edgeopt[keras]'")
    # In a process of its own: a damaged file can send the HDF5 library into an endless loop or a crash.
    command = [sys.executable, "-P", "-W", "ignore", "-c", _READ_HDF5, str(path), str(JSON_LIMIT + 1)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HDF5_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"its structure cannot be read within {HDF5_SECONDS} seconds") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the HDF5 library crashed on it"]
        raise ValueError(last[0])
    config, version, links = json.loads(done.stdout)
    if config is None:
        raise UsageError(
            f"{path} holds no model: it has no 'model_config', so it is weights only",
            fix="save the whole model: model.save('model.keras')",
        )
    if links:
        # The loader would read a file that the model does not own.
        raise UsageError(
            f"{path} is refused: {links[0]!r} points into another file", fix="save the model again"
        )
    return _from_keras_config(path, _json(config), version or "2", trust)


def _from_keras_config(path: Path, config: Any, version: str, trust: bool) -> Source:
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("its configuration is not that of a Keras model")
    notes = list(_allowed_by_trust(path, config, trust))
    inputs = _keras_inputs(config)
    if not inputs:
        notes.append(_UNTOLD)
    keras_2 = not version.startswith("3")
    if keras_2:
        notes.append(f"saved by Keras {version}: it is loaded through tf_keras")
    return Source(
        model=Model(format="tf_keras" if keras_2 else "keras", path=path, inputs=inputs),
        framework="keras",
        notes=tuple(notes),
        layers=_keras_layers(config),
    )


_UNTOLD = "the file does not tell what goes in: give model.inputs in the recipe"


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object of a Keras configuration, outermost first."""
    # Not recursive: a hostile file may nest deeper than Python's stack.
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_lambda(value: dict[str, Any]) -> bool:
    return value["class_name"] in ("Lambda", "__lambda__")


def _is_custom(value: dict[str, Any]) -> bool:
    if "module" not in value:
        # Keras 2 writes no module, but the registration package: 'mine>Layer'.
        return ">" in str(value["class_name"])
    module = str(value["module"])
    return module not in ("keras", "builtins") and not module.startswith("keras.")


def _called(value: dict[str, Any]) -> str:
    """The name of a layer, as the user knows it, and its class."""
    config = value.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    known = str(value.get("registered_name") or value["class_name"])
    return f"{name!r} ({known})" if name else f"({known})"


def _allowed_by_trust(path: Path, config: Any, trust: bool) -> Iterator[str]:
    for value in _objects(config):
        if _is_lambda(value):
            if not trust:
                raise UsageError(
                    f"{path} has a Lambda layer, {_called(value)}: loading it would run code from the file",
                    fix="replace it by a layer of Keras; or, if you trust where the file comes from, "
                    "set model.trust: true",
                )
            yield f"Lambda layer {_called(value)} runs code from the file; model.trust allows it"
        elif _is_custom(value):
            fix = "export the model with its graph: model.export('folder'), and give that folder"
            if not value.get("module"):
                # Registered in a script: no import brings it back, so trusting the file does not help.
                raise UsageError(f"{path} needs a custom class that is not in it, {_called(value)}", fix=fix)
            if not trust:
                raise UsageError(
                    f"{path} needs a custom class from {value['module']!r}, {_called(value)}",
                    fix=f"{fix}; or, if you trust that module, set model.trust: true",
                )
            yield f"custom class {_called(value)} is imported from {value['module']!r}; model.trust allows it"


def _top_layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    return [layer for layer in layers or () if isinstance(layer, dict)] if isinstance(layers, list) else []


def _keras_layers(config: dict[str, Any]) -> dict[str, int]:
    """Layer classes, those of nested models included."""
    waiting, found = [config], Counter[str]()
    while waiting:
        for layer in _top_layers(waiting.pop(0)):
            if layer.get("class_name") in ("Functional", "Sequential", "Model"):
                waiting.append(layer)
            elif layer.get("class_name") != "InputLayer":
                found[str(layer.get("class_name"))] += 1
    return dict(found)


def _keras_inputs(config: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """Inputs in the order in which the model takes them; empty where the configuration does not tell."""
    inner = config.get("config")
    layers = _top_layers(config)
    first: Layout = "NCHW" if '"channels_first"' in json.dumps(layers) else "NHWC"
    specs = {}
    for layer in layers:
        options = layer.get("config")
        if layer.get("class_name") == "InputLayer" and isinstance(options, dict):
            shape = options.get("batch_shape", options.get("batch_input_shape"))
            if shape is not None:
                name = str(options.get("name") or layer.get("name"))
                specs[name] = _spec(name, _tuple(shape), _keras_dtype(options), first)
    order = list(_input_names(inner.get("input_layers"))) if isinstance(inner, dict) else []
    if specs:
        return tuple(specs[name] for name in order or specs if name in specs)
    # A Sequential model without an InputLayer tells the shape on its first layer, or once it is built.
    options = layers[0].get("config") if layers else None
    shape = options.get("batch_input_shape") if isinstance(options, dict) else None
    if shape is None and isinstance(inner, dict):
        shape = inner.get("build_input_shape")
    if not shape or not isinstance(options, dict):
        return ()
    return (_spec("input", _tuple(shape), _keras_dtype(options), first),)


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


def _tuple(shape: Any) -> tuple[int | None, ...]:
    items = shape["items"] if isinstance(shape, dict) else shape
    return tuple(None if item is None else int(item) for item in items)


def _keras_dtype(options: dict[str, Any]) -> str:
    dtype = options.get("dtype") or "float32"
    if isinstance(dtype, dict):
        dtype = dtype.get("config", {}).get("name", "float32")
    # A mixed policy computes in another type than it takes in.
    return "float32" if str(dtype).startswith("mixed_") else str(dtype)


def _spec(name: str, shape: tuple[int | None, ...], dtype: str, layout: Layout | None) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, layout=layout if len(shape) == 4 else None)


# Protobuf, read on the wire: SavedModel and ONNX


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of each field of one message; nested messages are left as bytes."""
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("it is cut off, or not protobuf")

    while at < end:
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}.get(wire, -1)
        if number == 0 or size < 0 or size > end - at:
            raise ValueError("it is cut off, or not protobuf")
        at += size
        yield number, data[at - size : at]


def _messages(data: memoryview, *numbers: int) -> Iterator[memoryview]:
    """The messages at a path of field numbers."""
    for number, value in _fields(data):
        if number == numbers[0] and isinstance(value, memoryview):
            if len(numbers) == 1:
                yield value
            else:
                yield from _messages(value, *numbers[1:])


def _text(data: memoryview, *numbers: int) -> str:
    found = next(_messages(data, *numbers), None)
    return "" if found is None else bytes(found[:JSON_LIMIT]).decode()


def _number(data: memoryview, field: int) -> int:
    return next((v for n, v in _fields(data) if n == field and isinstance(v, int)), 0)


class _Mapped:
    """A file as a memory view: a large file costs address space, not memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> memoryview:
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)
        return self._view

    def __exit__(self, *_: object) -> None:
        # Slices of the view may live on in a traceback, so the map is left to the garbage collector.
        self._view.release()


_FROM_GRAPH = "it is converted from its graph, for TFLite and ONNX only"
_TENSORFLOW_TYPES = {
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


def _saved_model(path: Path, trust: bool) -> Source:
    graph = path / "saved_model.pb"
    if not graph.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise UsageError(
            f"{path} is not a SavedModel folder: it has no saved_model.pb (it holds {found})",
            fix="give the folder that holds saved_model.pb, or a model file",
        )
    _stays_inside(path)
    _present(graph)
    with _Mapped(graph) as data:
        meta = next(_messages(data, 2), None)
        if meta is None:
            raise ValueError("saved_model.pb holds no graph")
        inputs, outputs = _signature(meta)
        config = _keras_metadata(path, meta)
    notes: list[str] = []
    layers: dict[str, int] = {}
    format = "saved_model"
    if config is None:
        notes.append(
            "no Keras configuration inside: it is converted from its graph, for TFLite and ONNX only"
        )
    elif not trust and any(_is_lambda(value) for value in _objects(config)):
        notes.append(f"it has a Lambda layer: {_FROM_GRAPH} (model.trust: true rebuilds it as a Keras model)")
    elif any(_is_custom(value) for value in _objects(config)):
        notes.append(f"it has custom layers: {_FROM_GRAPH}")
    else:
        format, layers = "tf_keras", _keras_layers(config)
        inputs = _keras_inputs(config) or inputs
        outputs = ()
    if not inputs:
        notes.append(_UNTOLD)
    model = Model(format=format, path=path, inputs=inputs, outputs=outputs)
    return Source(model=model, framework="keras", notes=tuple(notes), layers=layers)


def _stays_inside(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it: only what was given is read or copied."""
    home, seen = folder.resolve(), 0
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in chain(folders, files):
            seen += 1
            entry = Path(place, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(home):
                link = f"{entry.relative_to(folder)} is a link to {entry.resolve()}"
                raise UsageError(
                    f"{folder} is refused: {link}, outside of it",
                    fix="put the file itself into the folder",
                )
            if seen > ENTRY_LIMIT:
                raise ValueError(f"the folder has more than the {ENTRY_LIMIT} files allowed")


def _keras_metadata(path: Path, meta: memoryview) -> dict[str, Any] | None:
    """The Keras configuration of the root object, where the model can be rebuilt from it.

    Up to TensorFlow 2.4 it lies in the object graph, later in ``keras_metadata.pb``.
    """
    root = next(_messages(meta, 7, 1), None)
    if root is None or not _text(root, 4, 1).startswith("_tf_keras_"):
        return None
    text = _text(root, 4, 3)
    beside = path / "keras_metadata.pb"
    if not text and beside.is_file() and beside.stat().st_size:
        with _Mapped(beside) as data:
            for node in _messages(data, 1):
                if _text(node, 3) == "root":
                    text = _text(node, 5)
                    break
    config = _json(text) if text else None
    if not isinstance(config, dict) or config.get("class_name") not in ("Functional", "Sequential", "Model"):
        return None
    return config if _top_layers(config) else None


def _signature(meta: memoryview) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of ``serving_default``, each in the order of their names."""
    signatures = {_text(entry, 1): entry for entry in _messages(meta, 5)}
    chosen = signatures.get("serving_default") or signatures.get("serve") or memoryview(b"")

    def specs(field: int) -> tuple[TensorSpec, ...]:
        found = []
        for entry in _messages(chosen, 2, field):
            info = next(_messages(entry, 2), memoryview(b""))
            shape = []
            for size in (_number(dimension, 1) for dimension in _messages(info, 3, 2)):
                shape.append(None if size >> 63 else size)  # -1 arrives as a 64-bit two's complement
            dtype = _TENSORFLOW_TYPES.get(_number(info, 2), "unknown")
            found.append(_spec(_text(entry, 1), tuple(shape), dtype, "NHWC"))
        return tuple(sorted(found, key=lambda spec: spec.name))

    return specs(1), specs(2)


_ONNX_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_ONNX_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}


def _looks_like_onnx(path: Path) -> bool:
    """Whether it is a ModelProto: a plausible version, a graph, and no field that ONNX does not have."""
    version, graph = 0, False
    with _Mapped(path) as data:
        try:
            for number, value in _fields(data):
                if number not in _ONNX_FIELDS:
                    return False
                if number == 1:
                    version = value if isinstance(value, int) else 0
                graph = graph or (number == 7 and isinstance(value, memoryview))
        except ValueError:
            return False
    return 0 < version < 1000 and graph


def _onnx(path: Path, trust: bool) -> Source:
    with _Mapped(path) as data:
        graph = next(_messages(data, 7))
        weights = {_text(tensor, 8) for tensor in _messages(graph, 5)}
        operators = Counter(_text(node, 4) for node in _messages(graph, 1))

        def specs(field: int) -> tuple[TensorSpec, ...]:
            found = []
            for info in _messages(graph, field):
                shape = tuple(_number(dimension, 1) or None for dimension in _messages(info, 2, 1, 2, 1))
                element = next((_number(tensor, 1) for tensor in _messages(info, 2, 1)), 0)
                dtype = _ONNX_TYPES.get(element, "unknown")
                # Both layouts are common in ONNX files, so none is claimed.
                found.append(_spec(_text(info, 1), shape, dtype, None))
            return tuple(found)

        inputs = tuple(spec for spec in specs(11) if spec.name not in weights)
        model = Model(format="onnx", path=path, inputs=inputs, outputs=specs(12))
    return Source(model=model, layers=dict(operators))


# torch


_TORCH_TYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
}


def _exported_program(path: Path, trust: bool) -> Source:
    with zipfile.ZipFile(path) as archive:
        programs = sorted(
            name
            for name in _names(archive)
            if name.endswith(".json") and name.partition("/")[2].startswith("models/")
        )
        if not programs:
            raise UsageError(
                f"{path} was written by an older torch: it has no models/*.json inside",
                fix="load it there and save it again with torch >= 2.9",
            )
        if len(programs) > 1:
            names = ", ".join(Path(name).stem for name in programs)
            raise UsageError(f"{path} holds several programs: {names}", fix="save each to a file of its own")
        program = _json(_member(archive, programs[0], JSON_LIMIT))
    graph = program["graph_module"]["graph"]
    signature = program["graph_module"]["signature"]
    notes = []

    def specs(side: str, key: str) -> tuple[TensorSpec, ...]:
        found = []
        for entry in signature[side]:
            argument = entry.get(key, {}).get("arg", {})
            name = argument.get("as_tensor", {}).get("name")
            if name is not None:
                value = graph["tensor_values"][name]
                # A size that is no plain number is symbolic: free.
                shape = tuple(size.get("as_int") for size in value["sizes"])
                found.append(_spec(name, shape, _TORCH_TYPES.get(value["dtype"], "unknown"), "NCHW"))
            elif key in entry:
                notes.append(f"a {key.replace('_', ' ')} is not a tensor: {', '.join(argument) or 'nothing'}")
        return tuple(found)

    model = Model(
        format="exported_program",
        path=path,
        inputs=specs("input_specs", "user_input"),
        outputs=specs("output_specs", "user_output"),
    )
    operators = Counter(str(node["target"]).split(".")[-2:][0] for node in graph["nodes"])
    return Source(model=model, framework="torch", notes=tuple(notes), layers=dict(operators))


def _torchscript(path: Path, trust: bool) -> Source:
    model = Model(format="torchscript_module", path=path)
    return Source(model=model, framework="torch", notes=(_UNTOLD,))


def _weights_only(path: Path, trust: bool) -> Source:
    # A whole module is told apart from weights, which need another answer.
    check_weights(path, trust=True)
    raise UsageError(
        f"{path} holds weights without a network",
        fix=f"say what builds the network: model: {{factory: 'module:function', weights: {path.name}}}",
    )


def _converted(format: str) -> Callable[[Path, bool], Source]:
    return lambda path, trust: Source(model=Model(format=format, path=path))


_READERS: dict[str, Callable[[Path, bool], Source]] = {
    "keras": _keras_archive,
    "hdf5": _keras_hdf5,
    "exported_program": _exported_program,
    "torchscript_module": _torchscript,
    "checkpoint": _weights_only,
    "legacy": _weights_only,
    "safetensors": _weights_only,
    "onnx": _onnx,
    "tflite": _converted("tflite"),
    "torchscript": _converted("torchscript"),
    "executorch": _converted("executorch"),
}


def _check_safetensors(path: Path) -> None:
    """Header of the format: 8 bytes of length, then JSON of name -> dtype, shape, data_offsets."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = _json(file.read(min(length, JSON_LIMIT + 1)))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"tensor {name!r} lies outside of the file")


class _Bounded:
    """A stream for ``pickletools`` that stops a pickle from growing without end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = PICKLE_LIMIT

    def _count(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"the pickle is larger than the {PICKLE_LIMIT >> 20} MiB allowed")
        return piece

    def read(self, size: int = -1) -> bytes:
        return self._count(self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._count(self._stream.readline(self._left + 1))


def _refused_by_torch(path: Path, kind: _Kind) -> list[str]:
    """Globals and instructions that the unpickler of ``weights_only=True`` does not take."""
    refused: dict[str, None] = {}
    if kind == _LEGACY:
        with path.open("rb") as file:
            stream = _Bounded(file)
            # Magic number, protocol, machine, the object itself, and the keys of its storages.
            for _ in range(5):
                refused.update(_scan(stream))
        return list(refused)
    with zipfile.ZipFile(path) as archive:
        for name in sorted(_names(archive)):
            if name.partition("/")[2] == "data.pkl":
                with archive.open(name) as member:
                    refused.update(_scan(_Bounded(member)))
    return list(refused)


def _scan(stream: _Bounded) -> dict[str, None]:
    refused: dict[str, None] = {}
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            if opcode.name == "STACK_GLOBAL":
                # The names were pushed as text just before; a memo lookup would hide them.
                module, name = strings[-2:] if len(strings) > 1 else ["an unknown module", "unknown"]
            else:
                module, _, name = str(argument).partition(" ")
            full = _python_3_name(module, name)
            if full not in _ALLOWED_GLOBALS:
                refused[full] = None
            elif opcode.name != "GLOBAL":
                refused[_INSTRUCTION + opcode.name] = None
        elif opcode.name not in _ALLOWED_INSTRUCTIONS:
            # Text in another encoding than torch writes may still name what is fetched next.
            refused[_INSTRUCTION + opcode.name] = None
        if isinstance(argument, str):
            strings = [*strings[-1:], argument]
    return refused


def _python_3_name(module: str, name: str) -> str:
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


_ALLOWED_INSTRUCTIONS = frozenset(
    "NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE "
    "NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE "
    "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 PROTO STOP".split()
)
_PLAIN = (
    "_codecs.encode builtins.bytearray builtins.complex builtins.set collections.Counter "
    "collections.OrderedDict torch.Size torch.Tensor torch.device torch.nn.parameter.Parameter "
    "torch.serialization._get_layout torch._tensor._rebuild_from_type_v2 torch.storage.TypedStorage "
    "torch.storage.UntypedStorage"
)
_REBUILD = (
    "device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter "
    "parameter_with_state qtensor sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass"
)
_DTYPES = (
    "bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 "
    "float64 float4_e2m1fn_x2 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu "
    "int16 int32 int64 int8 qint32 qint8 quint2x4 quint4x2 quint8 uint16 uint32 uint64 uint8 "
    "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine "
    "per_tensor_symmetric"
)
_STORED = tuple("BFloat16 Bool Byte Char Double Float Half Int Long Short".split())
_COMPLEX = ("ComplexDouble", "ComplexFloat")
_QUANTIZED = tuple("QInt32 QInt8 QUInt8 QUInt2x4 QUInt4x2".split())
_SPARSE = tuple(name for name in _STORED if name != "Bool")
_ALLOWED_GLOBALS = frozenset(
    (
        *_PLAIN.split(),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILD.split()),
        *(f"torch.{name}" for name in _DTYPES.split()),
        *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        *(f"torch.{name}Storage" for name in (*_STORED, *_COMPLEX, *_QUANTIZED)),
        *(f"torch.cuda.{name}Storage" for name in (*_STORED, *_COMPLEX)),
        *(f"torch.{place}{name}Tensor" for place in ("", "cuda.") for name in _STORED),
        *(f"torch.{place}sparse.{name}Tensor" for place in ("", "cuda.") for name in _SPARSE),
    )
)
"""What ``torch.load(weights_only=True)`` of torch 2.13 takes (torch/_weights_only_unpickler.py)."""
