"""Loading Keras models (Keras 3, Keras 2 through tf_keras, SavedModel) without running embedded code.

A Lambda layer is Python bytecode inside a data file. The configuration is searched for such layers before
the model is loaded, because the ``.h5`` and SavedModel loaders of tf_keras have no safe mode.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.model import Model, TensorSpec

CODE = frozenset({"Lambda", "__lambda__"})
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError)
"""Exceptions that Keras raises for models that it cannot rebuild; the type depends on the layer."""

_IN_TEXT = re.compile(rb'"class_name":\s*"(?:\w+>)?Lambda",\s*"config":\s*\{"name":\s*"([^"]+)"')


class Program(NamedTuple):
    """A model as one TensorFlow function of batch 1 with positional inputs.

    The function returns a dictionary from output name to tensor; ``owner`` holds the variables.
    """

    function: Any
    owner: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


def lambda_layers(path: Path) -> list[str]:
    """Names of the layers that contain Python code, found without loading the model."""
    if path.is_dir():
        content = b"".join(
            (path / name).read_bytes()
            for name in ("saved_model.pb", "keras_metadata.pb")
            if (path / name).exists()
        )
        return sorted({name.decode() for name in _IN_TEXT.findall(content)})
    return sorted(set(_code_layers(configuration(path))))


def configuration(path: Path) -> Any:
    """The architecture stored in a ``.keras`` or ``.h5`` file, as plain values.

    Raises:
        StageError: the file is neither, or contains weights only.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "config.json" in archive.namelist():
                return json.loads(archive.read("config.json"))
        raise StageError(f"{path.name} is a zip archive without config.json, not a Keras model")
    import h5py

    if not h5py.is_hdf5(path):
        raise StageError(
            f"{path.name} is neither a .keras archive nor an HDF5 file", fix="save it with model.save(...)"
        )
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        raise StageError(
            f"{path.name} contains weights without an architecture",
            fix="save the whole model with model.save(...), not model.save_weights(...)",
        )
    return json.loads(text)


def _code_layers(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        kind = value.get("class_name")
        if isinstance(kind, str) and kind.rpartition(">")[2] in CODE:
            config = value.get("config")
            name = config.get("name") if isinstance(config, dict) else None
            yield str(name or value.get("name") or kind)
            return
        for inner in value.values():
            yield from _code_layers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code_layers(inner)


def refuse_code(path: Path) -> None:
    """Reject a model that contains Python code.

    Raises:
        StageError: the model has Lambda layers; the message names them and the option that allows them.
    """
    layers = lambda_layers(path)
    if layers:
        raise StageError(
            f"{path.name} contains Python code in Lambda layer{'s' if len(layers) > 1 else ''} "
            f"{', '.join(repr(name) for name in layers)}; loading the model would run that code",
            fix="if you trust the file, set the option 'trust: true' of this stage",
        )


def load_keras(path: Path, trust: bool) -> Any:
    """Load a ``.keras`` file with Keras 3.

    Raises:
        StageError: for Lambda layers without ``trust``, and for files that Keras 3 cannot rebuild.
    """
    import keras

    if not trust:
        refuse_code(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except UNREADABLE as error:
        raise StageError(
            f"Keras cannot load {path.name}: {reason(error)}",
            fix="custom layers must be exported as a SavedModel: model.export(...)",
        ) from error


def load_tf_keras(path: Path, trust: bool) -> Any:
    """Load a Keras 2 ``.h5`` file, SavedModel folder or ``.keras`` file with tf_keras.

    Raises:
        StageError: for Lambda layers without ``trust``, and for files that tf_keras cannot rebuild.
    """
    import tf_keras

    if not trust:
        refuse_code(path)
    try:
        return tf_keras.models.load_model(path, compile=False)
    except UNREADABLE as error:
        raise StageError(
            f"tf_keras cannot load {path.name}: {reason(error)}",
            fix="custom layers must be exported as a SavedModel: tf.saved_model.save(...)",
        ) from error


def load_program(model: Model, trust: bool) -> Program:
    """Load a ``keras``, ``tf_keras`` or ``saved_model`` model as a TensorFlow function of batch 1.

    Open dimensions other than the batch take their size from ``model.inputs``.

    Raises:
        StageError: the model cannot be loaded, or a dimension remains open.
    """
    if model.format == "saved_model":
        return _signature(model)
    if model.format == "keras":
        return _traced(load_keras(model.path, trust), model, layer_scopes)
    return _traced(load_tf_keras(model.path, trust), model, nullcontext)


@contextmanager
def layer_scopes() -> Iterator[None]:
    """Context in which Keras 3 names the operators of a layer after the layer alone, as tf_keras does.

    Keras 3 enters the name scope of a layer twice, to build it and to call it, and TensorFlow numbers the
    second scope: ``conv2d_1`` for ``conv2d``, which may be the name of the next layer. A scope given as a
    full path with a trailing slash is entered without numbering; the operators of further calls are
    numbered instead.
    """
    import tensorflow as tf

    numbering: Any = tf.name_scope

    class FullPathScope(numbering):
        def __init__(self, name: str) -> None:
            outer = tf.get_current_name_scope()
            relative = bool(name) and not name.endswith("/")
            super().__init__((f"{outer}/{name}/" if outer else f"{name}/") if relative else name)

    tf.name_scope = FullPathScope
    try:
        yield
    finally:
        tf.name_scope = numbering


def _traced(network: Any, model: Model, scopes: Callable[[], AbstractContextManager[None]]) -> Program:
    import tensorflow as tf

    if not getattr(network, "inputs", None):
        raise StageError(
            f"{model.path.name} is a subclassed model without known inputs",
            fix="call it once on real data before saving, or export it as a SavedModel",
        )
    names = [str(tensor.name).partition(":")[0] for tensor in network.inputs]
    inputs = _fixed(model, names, [(t.shape, tf.as_dtype(t.dtype).name) for t in network.inputs])
    structure = input_structure(network)
    outputs = _unique(output_names(network))

    def call(*tensors: Any) -> dict[str, Any]:
        with scopes():
            result = network(tf.nest.pack_sequence_as(structure, list(tensors)), training=False)
        return dict(zip(outputs, tf.nest.flatten(result), strict=True))

    # The variables themselves: a SavedModel of a Keras 3 model object would lose their values.
    owner = tf.Module()
    owner.held = [v if isinstance(v, tf.Variable) else v.value for v in network.variables]
    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in inputs]
    return Program(tf.function(call, input_signature=signature), owner, inputs, outputs)


def input_structure(network: Any) -> Any:
    """The structure of the network's argument: one tensor, or a list or dictionary of tensors."""
    try:
        return network.input
    except AttributeError:  # a Keras 3 Sequential model that has not been called
        return network.inputs[0]


def output_names(network: Any) -> list[str]:
    """The names of the output layers."""
    names = getattr(network, "output_names", None)
    return [str(name) for name in names] if names else [str(network.layers[-1].name)]


def _signature(model: Model) -> Program:
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(model.path))
    except UNREADABLE as error:
        raise StageError(f"TensorFlow cannot load {model.path.name}: {reason(error)}") from error
    signatures = loaded.signatures
    if not signatures:
        raise StageError(
            f"{model.path.name} has no signature to call",
            fix="save it with tf.saved_model.save(model, path, signatures=...)",
        )
    # `serving_default` is the convention of TensorFlow Serving; otherwise any, but always the same one.
    serving = signatures.get("serving_default") or signatures[sorted(signatures)[0]]
    arguments = serving.structured_input_signature[1]
    names = _order(list(arguments), model)
    inputs = _fixed(model, names, [(arguments[name].shape, arguments[name].dtype.name) for name in names])
    outputs = tuple(sorted(serving.structured_outputs))

    def call(*tensors: Any) -> dict[str, Any]:
        result = serving(**dict(zip(names, tensors, strict=True)))
        return {name: result[name] for name in outputs}

    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in inputs]
    return Program(tf.function(call, input_signature=signature), loaded, inputs, outputs)


def _order(names: list[str], model: Model) -> list[str]:
    """Inputs in the order of ``model.inputs`` if it names all of them, otherwise sorted."""
    declared = [spec.name for spec in model.inputs]
    return declared if sorted(declared) == sorted(names) else sorted(names)


def _fixed(model: Model, names: list[str], tensors: list[tuple[Any, str]]) -> tuple[TensorSpec, ...]:
    """Input specs of batch 1; open dimensions of ``tensors`` take their size from ``model.inputs``."""
    declared_specs = model.inputs if len(model.inputs) == len(names) else (None,) * len(names)
    specs = []
    for name, (shape, dtype), declared in zip(_unique(names), tensors, declared_specs, strict=True):
        sizes: list[int | None] = [1, *list(shape)[1:]]
        if declared is not None and len(declared.shape) == len(sizes):
            pairs = zip(sizes[1:], declared.shape[1:], strict=True)
            sizes = [1, *(size if size is not None else other for size, other in pairs)]
        if None in sizes:
            text = ", ".join("?" if size is None else str(size) for size in sizes)
            raise StageError(
                f"input {name!r} of {model.path.name} has open dimensions: [{text}]",
                fix="set the full input shape in the recipe, such as inputs: [{shape: [1, 96, 96, 3]}]",
            )
        layout = (declared.layout if declared is not None else None) or "NHWC"
        specs.append(
            TensorSpec(name=name, shape=tuple(sizes), dtype=dtype, layout=layout if len(sizes) == 4 else None)
        )
    return tuple(specs)


def _unique(names: list[str]) -> tuple[str, ...]:
    """Unique names that are identifiers, as TensorFlow signatures require."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        clean = re.sub(r"\W", "_", name)
        counts[clean] = counts.get(clean, 0) + 1
        result.append(clean if counts[clean] == 1 else f"{clean}_{counts[clean]}")
    return tuple(result)


def reason(error: BaseException) -> str:
    """The line of a long Keras message that states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Exception encountered:")]
    return (causes or lines or [type(error).__name__])[0].removeprefix("Exception encountered: ")[:400]
