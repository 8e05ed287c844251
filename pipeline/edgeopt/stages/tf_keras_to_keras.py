"""Keras 2 models (.h5, SavedModel) to Keras 3, which makes its other backends available."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.keras.graph import to_keras_3
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Worker
from edgeopt.stages._keras import KerasStage

TOLERANCE = 1e-5
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Earliest date that a ZIP archive can store."""


class TfKerasToKeras(KerasStage):
    """Read configuration and weights with tf_keras, rebuild the layers in Keras 3 and copy the weights.

    The outputs are compared with those of the source on random inputs (max \\|error\\| < 1e-5, relative to
    the largest output if that exceeds 1).
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tf_keras"})
    produces: ClassVar[str] = "keras"
    worker: ClassVar[Worker] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "tf_keras", "h5py")
    extra: ClassVar[str | None] = "keras"
    revision: ClassVar[int] = 2
    preference: ClassVar[int] = -1

    def run(self, model: Model, context: Context) -> Model:
        """Rebuild one model.

        Raises:
            StageError: a layer cannot be rebuilt in Keras 3, or the outputs differ.
        """
        old = keras_loading.load_tf_keras(model.path, self.trust, self.code)
        context.progress("rebuilding in Keras 3")
        new = _rebuild(old, model.path.name)
        _copy_weights(old, new)
        inputs = _specs(new.inputs, [str(tensor.name) for tensor in new.inputs], model.inputs)
        outputs = _specs(new.outputs, keras_loading.output_names(new), ())
        _compare(old, new, inputs, model.path.name)
        path = context.folder / "model.keras"
        _save(new, path)
        return Model(format="keras", path=path, inputs=inputs, outputs=outputs)


def _rebuild(old: Any, name: str) -> Any:
    import keras

    if not hasattr(old, "get_config") or not getattr(old, "inputs", None):
        raise StageError(
            f"{name} is a subclassed model, whose architecture cannot be rebuilt",
            fix="convert it through its SavedModel instead",
        )
    kinds: dict[str, Any] = {"Functional": keras.Model, "Sequential": keras.Sequential, "Model": keras.Model}
    kind = type(old).__name__
    # Layer by layer before the whole model, so that the error names the layer.
    for layer in _layers(old):
        _check_layer(layer, name)
    if kind not in kinds:
        raise StageError(
            f"{name} is a {kind}; only Sequential and functional models can be rebuilt in Keras 3"
        )
    try:
        return kinds[kind].from_config(to_keras_3.network_config(old.get_config()))
    except keras_loading.UNREADABLE as error:
        raise StageError(f"Keras 3 cannot rebuild {name}: {keras_loading.reason(error)}") from error


def _layers(network: Any) -> Iterator[Any]:
    """All layers, those of nested models included."""
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def _check_layer(layer: Any, name: str) -> None:
    """Raise for a layer that Keras 3 lacks or cannot build from its configuration."""
    import keras

    kind = type(layer).__name__
    fix = "replace the layer by built-in ones, or use formats that Keras 2 models reach (tflite, onnx)"
    if kind == "InputLayer":
        return
    config = layer.get_config()
    if "hard_sigmoid" in (config.get("activation"), config.get("recurrent_activation")):
        raise StageError(
            f"layer {layer.name!r} of {name} cannot be rebuilt in Keras 3: its hard_sigmoid, "
            "clip(0.2 x + 0.5), is another function there, clip(x / 6 + 0.5)",
            fix=fix,
        )
    described = to_keras_3.layer_config({"class_name": kind, "config": config})
    known = getattr(keras.layers, described["class_name"], None)
    if kind == "Lambda" or known is None:
        reason = "contains Python code" if kind == "Lambda" else "is not a Keras 3 layer"
        raise StageError(
            f"layer {layer.name!r} of {name} cannot be rebuilt in Keras 3: {kind} {reason}", fix=fix
        )
    try:
        known.from_config(described["config"])
    except keras_loading.UNREADABLE as error:
        raise StageError(
            f"Keras 3 cannot rebuild layer {layer.name!r} ({kind}) of {name}: {keras_loading.reason(error)}",
            fix=fix,
        ) from error


def _copy_weights(old: Any, new: Any) -> None:
    for source in old.layers:
        target = new.get_layer(source.name)
        if hasattr(source, "layers"):
            _copy_weights(source, target)
            continue
        try:
            target.set_weights(source.get_weights())
        except ValueError as error:
            raise StageError(
                f"the weights of layer {source.name!r} do not match the Keras 3 layer: {error}"
            ) from error
        if hasattr(target, "finalize_state"):
            target.finalize_state()  # Normalization computes with the mean and deviation of this call


def _specs(tensors: Any, names: list[str], known: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    layouts = [spec.layout for spec in known] if len(known) == len(names) else [None] * len(names)
    specs = []
    for tensor, name, layout in zip(tensors, names, layouts, strict=True):
        shape = tuple(tensor.shape)
        image = (layout or "NHWC") if len(shape) == 4 else None
        specs.append(TensorSpec(name=name, shape=shape, dtype=str(tensor.dtype), layout=image))
    return tuple(specs)


def _compare(old: Any, new: Any, inputs: tuple[TensorSpec, ...], name: str) -> None:
    """Compare both on two random samples; open dimensions get the size 16."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    values = [
        # Integers are indices: those of any table are below 2.
        (random.integers(0, 2, shape) if spec.takes_integers else random.standard_normal(shape)).astype(
            spec.dtype
        )
        for spec in inputs
        for shape in [[2, *(size or 16 for size in spec.shape[1:])]]
    ]

    def outputs(network: Any) -> list[Any]:
        structure = keras_loading.input_structure(network)
        return list(tf.nest.flatten(network(tf.nest.pack_sequence_as(structure, values), training=False)))

    expected, actual = outputs(old), outputs(new)
    for before, after in zip(expected, actual, strict=True):
        largest = max(1.0, float(np.abs(before).max()))
        error = float(np.abs(np.asarray(before) - np.asarray(after)).max()) / largest
        if not error < TOLERANCE:
            raise StageError(
                f"{name} rebuilt in Keras 3 has different outputs: max |error| {error:.2g}, "
                f"allowed {TOLERANCE:g}{_first_difference(old, new, values)}"
            )


def _first_difference(old: Any, new: Any, values: list[Any]) -> str:
    """Name the first layer with weights whose output differs, for the error message."""
    import keras
    import tensorflow as tf
    import tf_keras

    shared = [layer.name for layer in old.layers if not hasattr(layer, "layers") and layer.get_weights()]
    before = tf_keras.Model(old.inputs, [old.get_layer(name).output for name in shared])(values)
    after = keras.Model(new.inputs, [new.get_layer(name).output for name in shared])(values)
    for name, one, other in zip(shared, tf.nest.flatten(before), tf.nest.flatten(after), strict=True):
        if not np.allclose(one, other, rtol=1e-4, atol=1e-5):
            return f"; the first layer that differs is {name!r}"
    return ""


def _save(network: Any, path: Path) -> None:
    """Save without dates, so that equal models give equal bytes."""
    network.save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(entries["metadata.json"])
    metadata.pop("date_saved", None)
    entries["metadata.json"] = json.dumps(metadata, sort_keys=True).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    path.write_bytes(content.getvalue())
