"""Keras models, and SavedModels with or without a Keras configuration."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError, refuse
from edgeopt_agent.session import ModelSession, Spec


class Session(ModelSession):
    """``.keras`` and ``.h5`` through the Keras that wrote them, 3 or tf_keras; SavedModels through tf_keras.

    Layers with weights of float32 compute in it, and recurrent layers begin every run without a
    state, as in the files that are made from the model.

    A SavedModel that tf_keras cannot load as a Keras model is run through its signature, ``serving_default``
    if it has that; its inputs and outputs are then sorted by name.

    Option ``trust``: load a model that contains more than a network, such as Lambda layers: it can run any
    code. Option ``code``: the module with its custom layers.
    """

    requires = ("keras", "tensorflow")
    known_options = ("trust", "code")

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.set_visible_devices([], "GPU")
        importlib.import_module("keras" if _is_keras_3(path) else "tf_keras")

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        trust = bool(options.get("trust", False))
        if path.is_dir():
            model = _load_saved_model(path, trust)
            if model is None:
                self._use_signature(path)
                return
            self._use_model(model)
            return
        if not trust:
            from edgeopt_untrusted import keras_files

            refuse(path.name, keras_files.findings(path))
        if path.suffix == ".keras" and not zipfile.is_zipfile(path):
            raise AgentError("model", f"{path.name} is not a Keras 3 file: not a zip archive")
        custom = vars(importlib.import_module(str(options["code"]))) if trust and "code" in options else {}
        if _is_keras_3(path):
            import keras

            model = keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=not trust)
        else:
            model = _load_tf_keras(path, trust, custom)
        self._use_model(model)

    def _use_model(self, model: Any) -> None:
        import tensorflow as tf

        declared = getattr(model, "inputs", None)
        if declared:
            self.inputs = [_spec(value) for value in declared]
        structure = _structure(model) if declared else None
        for layer in getattr(model, "_flatten_layers", list)():
            # A mixed policy says how to train fast; files that are made from the model compute in float32.
            half = getattr(layer, "compute_dtype", None) in ("float16", "bfloat16")
            if half and layer.variable_dtype == "float32":
                if hasattr(layer, "_set_dtype_policy"):  # Keras 2
                    layer._set_dtype_policy("float32")
                else:
                    layer.dtype_policy = "float32"
            if not hasattr(layer, "layers") and getattr(layer, "stateful", False):
                layer.stateful = False
                layer.input_spec = None  # the batch that the state was made for

        def call(*tensors: Any) -> Any:
            nested = tensors[0] if structure is None else tf.nest.pack_sequence_as(structure, list(tensors))
            return tf.nest.map_structure(_in_numpy_type, model(nested, training=False))

        self.output_names = list(getattr(model, "output_names", None) or ())
        self.model = model
        self.function = tf.function(call, reduce_retracing=True)

    def _use_signature(self, path: Path) -> None:
        import tensorflow as tf

        from edgeopt_untrusted import saved_model

        # The signature does not keep the loaded object and its variables alive: this reference does.
        self.model = tf.saved_model.load(str(path))
        if not self.model.signatures:
            raise AgentError("model", f"{path.name} has no signature to call")
        function = self.model.signatures[saved_model.chosen_signature(self.model.signatures)]
        specs = function.structured_input_signature[1]
        names = sorted(specs)
        self.inputs = [_spec(specs[name], name) for name in names]

        def call(*tensors: Any) -> Any:
            results: Any = function(**dict(zip(names, tensors)))
            return results

        self.function = call

    @property
    def max_batch(self) -> int | None:
        return None if self.inputs is None else super().max_batch

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import numpy as np
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        start = time.perf_counter()
        results = self.function(*tensors)
        seconds = time.perf_counter() - start
        if isinstance(results, dict):
            self.output_names = sorted(results)  # the order in which they are flattened
        return [np.asarray(value) for value in tf.nest.flatten(results)], seconds


def _is_keras_3(path: Path) -> bool:
    """Whether Keras 3 wrote a file, which says so; folders and files of others are those of tf_keras.

    A file that cannot be read is left to the loader, which reports it.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"]).startswith("3")
        if path.is_file() and path.suffix != ".keras":
            import h5py

            with h5py.File(str(path), "r") as file:
                version = file.attrs["keras_version"]
            return (version.decode() if isinstance(version, bytes) else str(version)).startswith("3")
    return path.suffix == ".keras"


def _in_numpy_type(value: Any) -> Any:
    """A tensor of a 16-bit float type as float32: NumPy lacks bfloat16."""
    import tensorflow as tf

    return tf.cast(value, tf.float32) if value.dtype in (tf.float16, tf.bfloat16) else value


def _structure(model: Any) -> Any:
    """The structure of the model's argument: one tensor, or a list or dictionary of tensors."""
    try:
        return model.input
    except AttributeError:  # a Keras 3 Sequential model that has not been called
        return model.inputs[0]


def _load_tf_keras(path: Path, trust: bool, custom: Any) -> Any:
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    # Without this scope, tf_keras unmarshals the Lambda layers of legacy formats regardless of safe_mode.
    with SafeModeScope(not trust):
        return tf_keras.models.load_model(path, custom_objects=custom, compile=False)


def _load_saved_model(path: Path, trust: bool) -> Any:
    """The Keras model in a SavedModel; ``None`` if tf_keras cannot load it, or would run its code."""
    import tf_keras

    from edgeopt_untrusted import saved_model

    if not (path / saved_model.GRAPH).is_file():
        raise AgentError("model", f"{path.name} is not a SavedModel: {saved_model.GRAPH} is missing")
    if not trust:
        refuse(path.name, saved_model.findings(path))
        if saved_model.keras_findings(path):
            return None
    with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
        model = _load_tf_keras(path, trust, {})
        if isinstance(model, tf_keras.Model):
            return model
    return None


def _spec(value: Any, name: str = "") -> Spec:
    shape = tuple(None if size is None else int(size) for size in value.shape)
    return Spec(name or str(value.name), shape, getattr(value.dtype, "name", str(value.dtype)))
