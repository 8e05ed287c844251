"""Loading Keras models (Keras 3, Keras 2 through tf_keras, SavedModel) without running embedded code.

Files are scanned before they are loaded: a Lambda layer is Python bytecode inside a data file, other layers
and functions are imported by name, and the safe modes of the loaders do not cover all of it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.keras.files.custom_layers import custom_objects
from edgeopt.formats.keras.files.inference import for_inference
from edgeopt.formats.specs import sizes_to_state
from edgeopt.formats.untrusted import keras_files, saved_model
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Model, TensorSpec

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError)
"""Exceptions that Keras raises for models that it cannot rebuild; the type depends on the layer."""
CUSTOM = (
    "name the Python file of custom layers in the recipe, model: {path: ..., code: layers.py, trust: true}, "
    "or use the graph of the model: model.export('folder')"
)


class Program(NamedTuple):
    """A model as one TensorFlow function of batch 1 with positional inputs.

    The function returns a dictionary from output name to tensor; ``owner`` holds the variables.
    """

    function: Any
    owner: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


def refuse_code(path: Path, *, keras: bool = True) -> None:
    """Reject a model that runs code or operators that do more than compute, or reads other files.

    Args:
        path: a ``.keras`` or ``.h5`` file, or a SavedModel folder.
        keras: whether Keras rebuilds the layers of a SavedModel, rather than TensorFlow its graph.

    Raises:
        StageError: with what was found, and the option that allows it.
    """
    try:
        if path.is_dir():
            found = saved_model.findings(path)
            found += [str(each) for each in saved_model.keras_findings(path)] if keras else []
        else:
            found = keras_files.findings(path)
    except (*UNREADABLE, *MALFORMED) as error:
        message = f"{path.name} is damaged: {reason(error)}"
        raise StageError(message, fix="copy or save it again") from error
    if found:
        raise StageError(
            f"{path.name} contains more than a network: {'; '.join(found[:3])}",
            fix="if you trust the file, set the option 'trust: true' of this stage (model.trust: true)",
        )


def load_keras(path: Path, trust: bool, code: Path | None = None) -> Any:
    """Load a ``.keras`` file with Keras 3.

    Raises:
        StageError: the file does more than compute and is not trusted, or Keras 3 cannot rebuild it.
    """
    import keras

    if not trust:
        refuse_code(path)
    custom = custom_objects(code)
    try:
        network = keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=not trust)
    except UNREADABLE as error:
        raise StageError(
            f"Keras cannot load {path.name}: {reason(error)}",
            fix=CUSTOM,
        ) from error
    return for_inference(network)


def load_tf_keras(path: Path, trust: bool, code: Path | None = None) -> Any:
    """Load a Keras 2 ``.h5`` file, SavedModel folder or ``.keras`` file with tf_keras.

    Raises:
        StageError: the file does more than compute and is not trusted, or tf_keras cannot rebuild it.
    """
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    if not trust:
        refuse_code(path)
    custom = custom_objects(code)
    try:
        # Without this scope, tf_keras unmarshals the Lambda layers of legacy formats regardless of safe_mode.
        with SafeModeScope(not trust):
            network = tf_keras.models.load_model(path, custom_objects=custom, compile=False)
    except UNREADABLE as error:
        raise StageError(
            f"tf_keras cannot load {path.name}: {reason(error)}",
            fix=CUSTOM,
        ) from error
    return for_inference(network)


def load_program(model: Model, trust: bool, code: Path | None = None) -> Program:
    """Load a ``keras``, ``tf_keras`` or ``saved_model`` model as a TensorFlow function of batch 1.

    Open dimensions other than the batch take their size from ``model.inputs``.

    Raises:
        StageError: the model cannot be loaded, or a dimension remains open.
    """
    if model.format == "saved_model":
        return _signature(model, trust)
    if model.format == "keras":
        return _traced(load_keras(model.path, trust, code), model, layer_scopes)
    return _traced(load_tf_keras(model.path, trust, code), model, nullcontext)


def traced(program: Program, model: Model) -> Any:
    """The function of a program as a graph.

    Raises:
        StageError: a layer cannot be called on inputs of these shapes and types, or not in a graph.
    """
    import tensorflow as tf

    try:
        return program.function.get_concrete_function()
    except (*UNREADABLE, RuntimeError, tf.errors.OpError) as error:
        raise StageError(
            f"{model.path.name} cannot be called on {', '.join(_shapes(program))}: {reason(error)}",
            fix="correct the inputs in the recipe, or the layer that the message names",
        ) from error


def _shapes(program: Program) -> Iterator[str]:
    return (f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in program.inputs)


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
    """The names of the outputs, in their order: the keys of a dictionary, otherwise the output layers."""
    structure = getattr(network, "output", None)
    if isinstance(structure, dict) and len(structure) == len(network.outputs):
        return sorted(map(str, structure))
    names = getattr(network, "output_names", None)
    return [str(name) for name in names] if names else [str(network.layers[-1].name)]


def _signature(model: Model, trust: bool) -> Program:
    import tensorflow as tf

    if not trust:
        refuse_code(model.path, keras=False)
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
    serving = signatures[saved_model.chosen_signature(signatures)]
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
                fix=sizes_to_state(name, sizes),
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
