"""Keras files that run code, call functions of TensorFlow, or read files; written without a framework."""

import copy
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hostile.case import SECRET, Case

if TYPE_CHECKING:
    import h5py

Layer = dict[str, Any]


def _model(*extra: Layer) -> Layer:
    """A functional model of Keras 2 with one dense layer and the layers in ``extra``."""
    dense = {"name": "d", "trainable": True, "dtype": "float32", "units": 3, "activation": "linear"}
    layers = [
        {
            "class_name": "InputLayer",
            "name": "image",
            "config": {"batch_input_shape": [None, 4], "dtype": "float32", "name": "image"},
            "inbound_nodes": [],
        },
        {"class_name": "Dense", "name": "d", "config": dense, "inbound_nodes": [[["image", 0, 0, {}]]]},
        *extra,
    ]
    ends = {"input_layers": [["image", 0, 0]], "output_layers": [["d", 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "m", "layers": layers, **ends}}


def _layer(kind: str, *call: Any, module: str = "", **config: Any) -> Layer:
    """A layer ``ev`` that is called with the constants in ``call``, or with the output of the dense layer."""
    node = ["_CONSTANT_VALUE", -1, *(call if len(call) == 2 else (*call, {}))] if call else ["d", 0, 0, {}]
    layer = {"class_name": kind, "name": "ev", "config": {"name": "ev", **config}, "inbound_nodes": [[node]]}
    return {**layer, "module": module, "registered_name": kind} if module else layer


def _operator(function: str, *call: Any, kind: str = "TFOpLambda") -> Layer:
    return _layer(kind, *call, trainable=True, dtype="float32", function=function)


def _function(name: Any, module: str, *call: Any, **more: Any) -> Layer:
    node = ["_CONSTANT_VALUE", -1, *(call or ("1",)), {}]
    kind = {"class_name": "function", "module": module, "config": name, "registered_name": name}
    return {**kind, "name": "ev", "inbound_nodes": [node], **more}


def _with_dense(**options: Any) -> Layer:
    model = _model()
    model["config"]["layers"][1]["config"].update(options)
    return model


def _configurations(mark: Path) -> Iterator[tuple[str, Layer, str]]:
    """Names, configurations, and a word of each refusal; what they would touch is named after the file."""

    def touched(name: str) -> str:
        return str(mark / name)

    write = {"contents": "written by a model file"}
    yield "op-write", _model(_operator("io.write_file", touched("op-write"), write)), "io.write_file"
    yield "op-write-v1", _model(_operator("compat.v1.write_file", touched("w1"), write)), "write_file"
    yield "op-raw", _model(_operator("raw_ops.WriteFile", touched("raw"), write)), "raw_ops.WriteFile"
    copied = {"dst": touched("op-copy"), "overwrite": True}
    yield "op-copy", _model(_operator("io.gfile.copy", str(SECRET), copied)), "io.gfile.copy"
    yield "op-read", _model(_operator("io.read_file", str(SECRET), {})), "io.read_file"
    yield "op-library", _model(_operator("load_library", touched("evil.so"), {})), "load_library"
    yield "op-library-v1", _model(_operator("load_op_library", touched("evil.so"), {})), "load_op_library"
    yield "op-remove", _model(_operator("io.gfile.rmtree", touched("victim"), {})), "io.gfile.rmtree"
    yield "op-makedirs", _model(_operator("io.gfile.makedirs", touched("made"), {})), "io.gfile.makedirs"
    yield "op-print", _model(_operator("print", "x", {"output_stream": f"file://{mark}/p"})), "calls print"
    sampler = _operator("random.fixed_unigram_candidate_sampler", [[1]], {"vocab_file": str(SECRET)})
    yield "op-vocabulary", _model(sampler), "fixed_unigram_candidate_sampler"
    slicing = _operator("io.gfile.makedirs", touched("sliced"), {}, kind="SlicingOpLambda")
    yield "op-slicing", _model(slicing), "io.gfile.makedirs"
    method = _layer("ClassMethod", touched("cm"), cls_symbol="io.TFRecordWriter", method_name="write")
    yield "op-class-method", _model(method), "TFRecordWriter"
    yield "op-method", _model(_layer("InstanceMethod", attr_name="__class__")), "__class__"
    yield "op-property", _model(_layer("InstanceProperty", attr_name="graph")), "graph"
    node = {"name": "ev", "op": "WriteFile", "input": ["a", "b"]}
    constants = {"0": touched("node"), "1": "written"}
    yield "op-node", _model(_layer("TensorFlowOpLayer", node_def=node, constants=constants)), "WriteFile"
    escaped = _operator("io.gfile.makedirs", touched("nested"), {})
    nested = {"class_name": "Sequential", "name": "inner", "config": {"name": "inner", "layers": [escaped]}}
    yield "op-nested", _model(nested), "io.gfile.makedirs"
    wrapped = _layer("TimeDistributed", layer=_operator("io.gfile.makedirs", touched("wrapped"), {}))
    yield "op-wrapped", _model(wrapped), "io.gfile.makedirs"

    code = f"open({touched('exec')!r}, 'w')"
    yield "exec", _model(_function("exec", "builtins", code)), "exec"
    yield "eval", _model(_function("eval", "builtins", code)), "eval"
    yield "os-system", _model(_function("system", "os", f"touch {mark}/system")), "'os'"
    hidden = _function("relu", "builtins", code, registered_name="exec")
    yield "exec-registered", _model(hidden), "builtins"
    activation = {"class_name": "function", "module": "builtins", "config": "exec", "registered_name": "exec"}
    yield "exec-activation", _with_dense(activation=activation), "exec"
    popen = {"class_name": "Popen", "module": "subprocess", "config": {"args": ["touch", touched("popen")]}}
    yield "popen-initializer", _with_dense(kernel_initializer=popen), "subprocess"
    utility = {"class_name": "get_file", "module": "keras.utils", "config": {"origin": f"file://{SECRET}"}}
    yield "keras-get-file", _with_dense(kernel_initializer=utility), "keras.utils"
    yield "module-of-others", _model(_layer("Dense", module="their.layers", units=3)), "their.layers"
    spec = {
        "class_name": "__typespec__",
        "spec_name": "Popen",
        "module": "subprocess",
        "registered_name": None,
    }
    yield "type", _with_dense(bias_initializer={**spec, "config": []}), "subprocess"

    yield "lambda", _model(_layer("Lambda", function=["4wA=", None, None])), "Lambda"
    yield (
        "lambda-function",
        _with_dense(activation={"class_name": "__lambda__", "config": {"value": "4wA="}}),
        "",
    )
    yield "torch-module", _model(_layer("TorchModuleWrapper", module="keras.layers")), "TorchModuleWrapper"
    saved = _layer("TFSMLayer", module="keras.layers", filepath=str(SECRET.parent))
    yield "saved-model-layer", _model(saved), "TFSMLayer"
    yield "vocabulary", _model(_layer("StringLookup", vocabulary=str(SECRET))), str(SECRET)
    yield "vocabulary-text", _model(_layer("TextVectorization", vocabulary=str(SECRET))), str(SECRET)


def hdf5(path: Path, config: Layer, edit: "Callable[[h5py.File], None]" = lambda file: None) -> Path:
    """An ``.h5`` file as tf_keras writes it; ``edit`` changes its weights."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"image", b"d"]
        weights.create_group("image").attrs["weight_names"] = np.array([], "S1")
        weights.create_group("d").attrs["weight_names"] = [b"d/kernel:0", b"d/bias:0"]
        weights["d/d/kernel:0"] = np.ones((4, 3), np.float32)
        weights["d/d/bias:0"] = np.ones(3, np.float32)
        edit(file)
    return path


def archive(path: Path, config: Layer, weights: Path, version: str = "2.15.0") -> Path:
    """A ``.keras`` archive around weights."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("config.json", json.dumps(config))
        target.writestr("metadata.json", json.dumps({"keras_version": version}))
        target.write(weights, "model.weights.h5")
    return path


def _elsewhere(folder: Path) -> "dict[str, Callable[[h5py.File], None]]":
    """Weights that are stored in another file, in each way that HDF5 has."""
    import h5py

    def external(file: "h5py.File") -> None:
        del file["model_weights/d/d/kernel:0"]
        store = [(str(SECRET), 0, 48)]
        file.create_dataset("model_weights/d/d/kernel:0", (4, 3), "<f4", external=store)

    def virtual(file: "h5py.File") -> None:
        del file["model_weights/d/d/kernel:0"]
        layout = h5py.VirtualLayout((4, 3), "<f4")
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "secret", (4, 3))
        file.create_virtual_dataset("model_weights/d/d/kernel:0", layout)

    def link(file: "h5py.File") -> None:
        del file["model_weights/d/d/kernel:0"]
        file["model_weights/d/d/kernel:0"] = h5py.ExternalLink(str(folder / "other.h5"), "secret")

    def group(file: "h5py.File") -> None:
        del file["model_weights/d"]
        file["model_weights/d"] = h5py.ExternalLink("other.h5", "group")

    return {"external": external, "virtual": virtual, "link": link, "group-link": group}


def build(folder: Path, mark: Path) -> Iterator[Case]:
    """Build the files; ``mark`` is the folder whose content none of them may change."""
    import h5py

    with h5py.File(folder / "other.h5", "w") as other:
        other["secret"] = np.full((4, 3), 7, np.float32)
    plain = hdf5(folder / "plain.h5", _model())
    for number, (name, config, word) in enumerate(_configurations(mark)):
        # Most as an archive, for its faster scan; each kind also as the file of the older format.
        if number % 4 == 0:
            yield Case(hdf5(folder / f"{name}.h5", config), word)
        else:
            yield Case(archive(folder / f"{name}.keras", config, plain), word)
    third = copy.deepcopy(_model(_layer("TorchModuleWrapper", module="keras.layers")))
    yield Case(archive(folder / "torch-module-3.keras", third, plain, "3.10.0"), "TorchModuleWrapper")
    for name, edit in _elsewhere(folder).items():
        file = hdf5(folder / f"stored-{name}.h5", _model(), edit)
        yield Case(file, "the file", allowed_by_trust=False)
        inner = archive(
            folder / f"stored-{name}.keras", _model(), file, "3.10.0" if name == "link" else "2.15.0"
        )
        yield Case(inner, "the file", allowed_by_trust=False)
