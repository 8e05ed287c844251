"""A layer is called as in its Keras model, in every format: a pattern means the layer that it says."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeopt.formats.layer_names import calls, keras_layer, means, means_part
from edgeopt.formats.tflite import weighted as tflite_weighted
from edgeopt.formats.torch import overrides
from edgeopt.formats.torch import program as torch_program
from edgeopt.model import Model, Preprocessing
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.quantize_onnx import QuantizeOnnx
from edgeopt.stages.quantize_tflite import QuantizeTflite

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.slow

# Names as Keras gives them, so that each is the next one's name with a number; outputs tell the layers apart.
BUILD = """
import sys
from pathlib import Path
import keras
from keras import layers as L
from edgeopt.model import Model
from edgeopt.plugin import Context

root = Path(sys.argv[1])
def context(name):
    (root / name).mkdir()
    return Context(root / name, None, progress=lambda line: None, note=lambda line: None)
"""
TENSORFLOW = """
from edgeopt.stages.keras_to_onnx import KerasToOnnx
from edgeopt.stages.keras_to_tflite import KerasToTflite

image = L.Input((8, 8, 3), name="image")
x = L.Conv2D(4, 3, activation="relu", name="conv2d")(image)
x = L.Conv2D(5, 3, activation="relu", name="conv2d_1")(x)
inner_in = L.Input((4, 4, 5))
inner = keras.Model(inner_in, L.Conv2D(6, 1, name="conv2d")(inner_in), name="head")
x = L.Conv2D(7, 3, activation="relu", name="conv2d_2")(inner(x))
shared = L.Conv2D(7, 1, name="again")
x = shared(L.ReLU()(shared(x)))
network = keras.Model(image, L.Dense(9, name="dense")(L.Flatten()(x)), name="model")
network.save(root / "net.keras")
source = Model(format="keras", path=root / "net.keras")
for name, stage in {"tflite": KerasToTflite(), "onnx": KerasToOnnx()}.items():
    (root / f"{name}.json").write_text(stage.run(source, context(name)).model_dump_json())
"""
TORCH = """
from edgeopt.stages.keras_to_exported_program import KerasToExportedProgram

made = KerasToExportedProgram().run(Model(format="keras", path=root / "net.keras"), context("program"))
(root / "program.json").write_text(made.model_dump_json())
"""
LAYERS = {"conv2d", "conv2d_1", "head/conv2d", "conv2d_2", "again", "again:2", "dense"}


class Noise(Dataset):
    """A few images."""

    def samples(self) -> Iterator[Sample]:
        rng = np.random.default_rng(0)
        for _ in range(8):
            yield Sample((rng.random((8, 8, 3)).astype(np.float32),))

    def digest(self) -> str:
        return "noise"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """The network as TFLite, ONNX and exported program, each made in a process of its own."""
    for name in ("tensorflow", "keras", "tf2onnx", "torch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs the extras 'keras' and 'torch'")
    root = tmp_path_factory.mktemp("named")
    for backend, code in (("tensorflow", TENSORFLOW), ("torch", TORCH)):
        done = subprocess.run(
            [sys.executable, "-c", BUILD + code, str(root)],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: Model.model_validate(json.loads((root / f"{name}.json").read_text()))
        for name in ("tflite", "onnx", "program")
    }


def context(folder: Path) -> Context:
    folder.mkdir()
    return Context(folder, Feed(Noise(), Preprocessing()), progress=lambda _: None, note=lambda _: None)


ELEMENTS = [("conv2d", 108), ("conv2d_1", 180), ("head/conv2d", 30), ("conv2d_2", 378), ("dense", 252)]
"""Weights that each layer has: no two have as many."""


def test_every_format_has_the_names_of_keras(converted: dict[str, Model]) -> None:
    assert {layer.name for layer in tflite_weighted.read(converted["tflite"].path)} == LAYERS
    nodes = onnx.load(converted["onnx"].path).graph.node
    assert {node.name for node in nodes if node.op_type in ("Conv", "MatMul", "Gemm")} == LAYERS
    graph, _ = torch_program.plain_graph(converted["program"])
    assert {layer.name for layer in overrides.quantizable(graph)} == LAYERS


@pytest.mark.parametrize(("name", "elements"), ELEMENTS)
def test_the_layer_that_is_named_stays_float_and_no_other(
    converted: dict[str, Model], tmp_path: Path, name: str, elements: int
) -> None:
    lite = QuantizeTflite(layers={name: "float32"}).run(converted["tflite"], context(tmp_path / "tflite"))
    kept = [layer.elements for layer in tflite_weighted.read(lite.path) if layer.weight == "float32"]
    assert kept == [elements]
    made = QuantizeOnnx(layers={name: "float32"}).run(converted["onnx"], context(tmp_path / "onnx"))
    assert float_elements(made.path) == [elements]
    graph, _ = torch_program.plain_graph(converted["program"])
    layers = overrides.quantizable(graph)
    (meant,) = overrides.precisions(layers, {name: "float32"})
    assert [layer.elements for layer in layers if layer.name == meant] == [elements]


def float_elements(path: Path) -> list[int]:
    """How many weights the layers have that an ONNX file keeps in float."""
    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    return [
        int(np.prod(weights[node.input[1]].dims))
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in weights
    ]


def test_all_calls_of_a_layer_are_meant_or_one_of_them() -> None:
    names = calls(["again", "head/conv2d", "again"])
    assert names == ["again", "head/conv2d", "again:2"]
    assert [name for name in names if means("again", name)] == ["again", "again:2"]
    assert [name for name in names if means("again:2", name)] == ["again:2"]
    assert not means("conv2d", "head/conv2d") and means_part("conv2d", "head/conv2d")


@pytest.mark.parametrize(
    ("operation", "layer"),
    [
        ("model/conv2d_1/convolution", "conv2d_1"),
        ("model/head/conv2d/convolution1", "head/conv2d"),
        ("model/again/convolution_1", "again"),
        ("model/dense/MatMul", "dense"),
        ("model/re_lu/Relu", ""),
    ],
)
def test_what_tensorflow_calls_an_operation_tells_the_layer(operation: str, layer: str) -> None:
    assert keras_layer(operation) == layer
