"""Keras and SavedModel to TFLite, ONNX and Keras 3: outputs, names, order, determinism, refusals.

The stages run in separate processes, as in the pipeline, so that TensorFlow and torch are never loaded
together.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tf_keras")):
    pytest.skip("needs the extra 'keras'", allow_module_level=True)

PRELUDE = """
import json, os, sys
from pathlib import Path
import numpy as np
import keras, tf_keras
import tensorflow as tf
from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.config.files import content_digest
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_onnx import KerasToOnnx
from edgeopt.stages.keras_to_tflite import KerasToTflite
from edgeopt.stages.tf_keras_to_keras import TfKerasToKeras

root = Path(sys.argv[1])
report = {}

def context(name):
    folder = root / name
    folder.mkdir(parents=True)
    return Context(folder, None, lambda line: None)

def small(library, name="toy"):
    layers = library.layers
    return library.Sequential([
        (layers.Input if library is keras else layers.InputLayer)((16, 16, 3), name="image"),
        layers.Conv2D(8, 3, padding="same", use_bias=False),
        layers.BatchNormalization(moving_variance_initializer="ones", moving_mean_initializer="ones"),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax", name="classes"),
    ], name=name)

def run_tflite(path, values):
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), values, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]

def run_onnx(path, values):
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, values, strict=True)))

def error(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)

def refused(stage, model, name):
    try:
        stage.run(model, context(name))
    except StageError as problem:
        return str(problem)
    return "not refused"
"""

CONVERT = """
keras.utils.set_random_seed(1)
tf_keras.utils.set_random_seed(1)
image = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
new, old = small(keras), small(tf_keras)
new.save(root / "toy.keras")
old.save(root / "toy.h5")
old.save(root / "toy_saved")
tf.saved_model.save(old, root / "plain")
sources = {
    "keras": ("keras", "toy.keras", new), "h5": ("tf_keras", "toy.h5", old),
    "folder": ("tf_keras", "toy_saved", old), "saved_model": ("saved_model", "plain", old),
}
for key, (kind, name, network) in sources.items():
    expected = [network(image, training=False)]
    source = Model(format=kind, path=root / name)
    light = KerasToTflite().run(source, context(key + ".tflite"))
    open_ = KerasToOnnx().run(source, context(key + ".onnx"))
    graph = read_signature(light.path).graph
    report[key] = {
        "tflite": error(run_tflite(light.path, [image]), expected),
        "onnx": error(run_onnx(open_.path, [image]), expected),
        "dtypes": sorted({t.dtype for op in graph.operations for t in op.outputs}),
        "kinds": [op.kind for op in graph.operations],
        "transposes": graph.count("TRANSPOSE"),
        "shapes": [list(m.inputs[0].shape) for m in (light, open_)],
        "layouts": [m.inputs[0].layout for m in (light, open_)],
        "names": [[m.inputs[0].name, m.outputs[0].name] for m in (light, open_)],
        "opset": onnx_model_file.load(open_.path).opset_import[0].version,
    }
crossed = TfKerasToKeras().run(Model(format="tf_keras", path=root / "toy.h5"), context("crossed"))
loaded = keras.saving.load_model(crossed.path, compile=False)
report["crossed"] = error([loaded(image, training=False)], [old(image, training=False)])

# Inputs and outputs whose names do not sort in their order
layers = keras.layers
zeta, alpha = keras.Input((4,), name="zeta"), keras.Input((3,), name="alpha")
last = layers.Dense(2, name="y_last")(layers.Concatenate()([zeta, alpha]))
first = layers.Dense(6, name="b_first")(zeta)
two = keras.Model([zeta, alpha], [last, first])
two.save(root / "two.keras")
values = [np.ones((1, 4), np.float32), np.full((1, 3), 2, np.float32)]
for stage, run in ((KerasToTflite(), run_tflite), (KerasToOnnx(), run_onnx)):
    done = stage.run(Model(format="keras", path=root / "two.keras"), context("two" + type(stage).__name__))
    report["two_" + done.format] = {
        "inputs": [spec.name for spec in done.inputs], "outputs": [spec.name for spec in done.outputs],
        "error": error(run(done.path, values), two(values)),
    }

# Dynamic dimensions: requested, or taken from the model's description
layers = keras.layers
open_input = layers.Input((None, None, 1), name="i")
free = keras.Sequential([open_input, layers.Conv2D(2, 3), layers.GlobalMaxPooling2D()])
free.save(root / "free.keras")
source = Model(format="keras", path=root / "free.keras")
report["open"] = refused(KerasToTflite(), source, "open")
told = source.model_copy(update={"inputs": (TensorSpec(name="i", shape=(None, 9, 7, 1), layout="NHWC"),)})
report["told"] = list(KerasToTflite().run(told, context("told")).inputs[0].shape)

# Python code in a model file
for library, name in ((keras, "code.keras"), (tf_keras, "code.h5"), (tf_keras, "code_saved")):
    layers = library.layers
    code = library.Sequential([layers.InputLayer((4,)), layers.Lambda(lambda x: x * 2, name="doubler")])
    code.save(root / name)
    source = Model(format="keras" if library is keras else "tf_keras", path=root / name)
    report[name] = refused(KerasToTflite(), source, "refused_" + name)
trusted = KerasToTflite(trust=True).run(
    Model(format="tf_keras", path=root / "code.h5"), context("trusted")
)
report["trusted"] = error(run_tflite(trusted.path, [values[0]]), [values[0] * 2])
report["lambda_across"] = refused(
    TfKerasToKeras(trust=True), Model(format="tf_keras", path=root / "code.h5"), "across"
)
(root / "broken.keras").write_bytes(b"nothing of the kind")
report["broken"] = refused(KerasToOnnx(), Model(format="keras", path=root / "broken.keras"), "broken")
print(json.dumps(report))
"""

DIGESTS = """
os.chdir(root)
names = {"keras": "toy.keras", "tf_keras": "toy.h5"}
order = list(names)[:: int(sys.argv[3])]
for kind in order:
    source = Model(format=kind, path=Path(sys.argv[2]) / names[kind])
    stages = [KerasToTflite(), KerasToOnnx()] + ([TfKerasToKeras()] if kind == "tf_keras" else [])
    for stage in stages:
        done = stage.run(source, context(kind + type(stage).__name__))
        report[kind + " " + done.format] = content_digest(done.path)
print(json.dumps(report))
"""

REAL = """
data = Path(sys.argv[2])
scales = {"kws_ref_model": 10, "resnet8.h5": 64, "vww_mobilenetv1.h5": 1, "ad_autoencoder.h5": 1}
for name, scale in scales.items():
    source = Model(format="tf_keras", path=data / "mlperf-tiny" / name)
    network = tf_keras.models.load_model(source.path, compile=False)
    light = KerasToTflite().run(source, context(name + ".tflite"))
    shape = light.inputs[0].shape
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * scale
    expected = [network(value, training=False)]
    open_ = KerasToOnnx().run(source, context(name + ".onnx"))
    crossed = TfKerasToKeras().run(source, context(name + ".keras"))
    rebuilt = keras.saving.load_model(crossed.path, compile=False)
    report[name] = [
        error(run_tflite(light.path, [value]), expected), error(run_onnx(open_.path, [value]), expected),
        error([rebuilt(value, training=False)], expected),
    ]
print(json.dumps(report))
"""


def python(script: str, *arguments: object, seed: int = 0) -> Any:
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONHASHSEED": str(seed),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorflow")


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    return python(CONVERT, folder)


@pytest.mark.parametrize("source", ["keras", "h5", "folder", "saved_model"])
def test_converted_files_give_the_outputs_of_the_source(report: Any, source: str) -> None:
    found = report[source]
    assert found["tflite"] < 1e-5
    assert found["onnx"] < 1e-5
    assert found["dtypes"] == ["float32"]
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SOFTMAX"} <= set(found["kinds"])
    assert found["transposes"] == 0
    assert found["shapes"] == [[1, 16, 16, 3]] * 2
    assert found["layouts"] == ["NHWC"] * 2
    assert found["opset"] == 17


@pytest.mark.parametrize("source", ["keras", "h5", "folder"])
def test_inputs_and_outputs_keep_their_names(report: Any, source: str) -> None:
    assert report[source]["names"] == [["image", "classes"]] * 2


@pytest.mark.parametrize("target", ["two_tflite", "two_onnx"])
def test_inputs_and_outputs_keep_their_order(report: Any, target: str) -> None:
    assert report[target]["inputs"] == ["zeta", "alpha"]
    assert report[target]["outputs"] == ["y_last", "b_first"]
    assert report[target]["error"] < 1e-5


def test_rebuilt_in_keras_3(report: Any) -> None:
    assert report["crossed"] < 1e-5


def test_open_dimensions_are_asked_for(report: Any) -> None:
    assert "free.keras has open dimensions: [1, ?, ?, 1]" in report["open"]
    assert "in model.inputs, such as {name: i, shape: [1, 96, 96, 1]}; for several sizes" in report["open"]
    assert report["told"] == [1, 9, 7, 1]


@pytest.mark.parametrize("name", ["code.keras", "code.h5", "code_saved"])
def test_lambda_layer_is_refused_with_the_flag_that_allows_it(report: Any, name: str) -> None:
    assert f"{name} contains more than a network: 'doubler' (Lambda) runs code" in report[name]
    assert "trust: true" in report[name]


def test_trusted_lambda_layer_is_converted(report: Any) -> None:
    assert report["trusted"] == 0
    assert "layer 'doubler' of code.h5 cannot be rebuilt in Keras 3" in report["lambda_across"]


def test_a_file_of_another_kind_is_named(report: Any) -> None:
    assert "broken.keras is damaged: it is neither a .keras archive nor an HDF5 file" in report["broken"]


def test_same_bytes_in_another_process_and_order(folder: Path, report: Any, tmp_path: Path) -> None:
    """A warm worker has converted other models before, which must not affect a file."""
    runs = []
    for step in (1, -1):
        scratch = tmp_path / str(step)
        scratch.mkdir()
        runs.append(python(DIGESTS, scratch, folder, step, seed=step + 1))
    assert len(runs[0]) == 5
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_real_models(tmp_path: Path) -> None:
    data = os.environ.get("EDGEOPT_DATA")
    if not data:
        pytest.skip("EDGEOPT_DATA is not set")
    errors = python(REAL, tmp_path, data)
    assert set(errors) == {"kws_ref_model", "resnet8.h5", "vww_mobilenetv1.h5", "ad_autoencoder.h5"}
    assert max(max(values) for values in errors.values()) < 1e-4
