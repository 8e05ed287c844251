"""The names of layers in the source model, in what edgeopt shows of the files of a PyTorch model."""

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.commands.diagnose import diagnose
from edgeopt.commands.optimize import optimize
from edgeopt.commands.parity import LayerDifference, _name, first_layer
from edgeopt.errors import StageError
from edgeopt.formats.known import format_named
from edgeopt.formats.layer_names import SourceNames, matching
from edgeopt.formats.source import size_breakdown
from edgeopt.formats.torch.lab import xnnpack_tensors
from edgeopt.model import Model
from edgeopt.results import Report
from needs import needs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("kept_workers"),
]

NETS = """
import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(Block(3, 4), Block(4, 5))
        self.down_sample = nn.Conv2d(4, 5, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(5, 6))

    def forward(self, x):
        first = self.features[0](x)
        both = self.features[1](first) + self.down_sample(first)
        return self.head(both.mean((2, 3)))


def samples(seed):
    random = np.random.default_rng(seed)
    for index in range(16):
        yield random.normal(size=(3, 8, 8)).astype(np.float32)
"""
RECIPE = """
version: 1
name: names
model:
  factory: own_named_nets:Net
  inputs: [{name: image, shape: [1, 3, 8, 8], layout: NCHW}]
data:
  calibration: {uses: function, with: {function: 'own_named_nets:samples', arguments: {seed: 0}}}
optimize:
  int8: {quantize: {scheme: int8, layers: {features.1.conv: float32}}}
formats: [tflite, onnx, torchscript, executorch]
devices: [host]
latency: {min_runs: 2, min_seconds: 0}
"""
FORMATS = ("tflite", "onnx", "torchscript", "executorch")
LAYERS = ("features.0.conv", "features.1.conv", "down_sample", "head.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    needs("executorch", "litert_torch", "onnxruntime", "ai_edge_quantizer")
    place = tmp_path_factory.mktemp("names")
    (place / "own_named_nets.py").write_text(NETS)
    (place / "recipe.yaml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return optimize(folder / "recipe.yaml", out=folder / "out", store=folder / "store")


def test_one_option_with_a_name_of_the_source_is_for_all_formats(report: Report, folder: Path) -> None:
    assert {(row.variant, row.format): row.status for row in report.results} == {
        (variant, target): "ok" for variant in ("float", "int8") for target in FORMATS
    }, [row.reason for row in report.results]
    models = folder / "out" / "models"
    types = {layer.name: layer.types[1] for layer in size_breakdown(models / "int8.tflite").layers}
    assert {layer: types[layer] for layer in LAYERS} == {
        layer: "float32" if layer == "features.1.conv" else "int8" for layer in LAYERS
    }
    names = {layer.name for layer in size_breakdown(models / "int8.onnx").layers}
    assert {layer for layer in LAYERS if f"{layer}/weight" not in names} == {"features.1.conv"}
    weights = [tensor for tensor in xnnpack_tensors.read(models / "int8.pte") if tensor.constant]
    assert {tensor.shape: tensor.type for tensor in weights if len(tensor.shape) > 1} == {
        (4, 3, 3, 3): "int8 per channel",
        (5, 3, 3, 4): "float32",  # features.1.conv
        (5, 1, 1, 4): "int8 per channel",
        (6, 5): "int8 per channel",
    }
    with zipfile.ZipFile(models / "int8.ptl") as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "constants/" in entry.filename]
    floats = {4 * 4 * 3 * 9, 4 * 5 * 4 * 9, 4 * 5 * 4, 4 * 6 * 5}
    assert floats.intersection(sizes) == {4 * 5 * 4 * 9}  # those of features.1.conv


@pytest.mark.parametrize("file", ["float.tflite", "int8.tflite", "float.onnx", "int8.onnx"])
def test_inspect_shows_the_names_of_the_source(report: Report, folder: Path, file: str) -> None:
    names = [layer.name for layer in size_breakdown(folder / "out" / "models" / file).layers]
    assert set(LAYERS) <= set(names)
    assert not [name for name in names if "torch" in name or "edgeopt" in name or not name]


def test_the_slimmed_file_itself_has_no_names(report: Report, folder: Path, tmp_path: Path) -> None:
    file = folder / "out" / "models" / "int8.tflite"
    content = file.read_bytes()
    assert b"features" not in content and b"head" not in content
    record = json.loads(file.with_name("int8.tflite.json").read_text())
    assert set(LAYERS) <= set(record["layers"]) and set(LAYERS) <= set(record["operators"])
    other = tmp_path / "int8.tflite"  # the record is of another file
    other.write_bytes(file.with_name("float.tflite").read_bytes())
    (tmp_path / "int8.tflite.json").write_text(json.dumps(record))
    assert "features.0.conv" not in {layer.name for layer in size_breakdown(other).layers}


def test_reports_show_the_names_of_the_source(report: Report) -> None:
    for row in report.results:
        if row.format not in ("tflite", "onnx"):
            continue  # the sizes of these files are not listed by layer
        assert row.artifact is not None and row.artifact.breakdown is not None
        names = {layer.name.partition("/")[0] for layer in row.artifact.breakdown.layers}
        assert set(LAYERS) <= names, (row.variant, row.format)
    timed = [layer["layer"] for row in report.results for layer in row.layers]
    assert "head.1" in timed


def test_diagnosis_shows_the_names_of_the_source(folder: Path, report: Report) -> None:
    for target in ("tflite", "onnx"):
        found = diagnose(folder / "recipe.yaml", "int8", target, samples=4, store=folder / "store")
        names = [layer.name for layer in found.comparison.layers]
        assert set(LAYERS) - {"features.1.conv"} <= set(names)
        assert not [name for name in names if "torch" in name or "edgeopt" in name]
        assert max(Counter(names).values()) == 1
        read = {name for layer in found.comparison.layers for name, _ in layer.inputs}
        assert read <= set(names)


def test_parity_shows_the_names_of_the_source(folder: Path, report: Report) -> None:
    path = folder / "out" / "models" / "int8.tflite"
    kind = format_named("tflite")
    operators = kind.operators(path) or ()
    names = json.loads(path.with_name("int8.tflite.json").read_text())["operators"]
    index = names.index("head.1")
    layer = LayerDifference(index=index, name="", operator=operators[index].kind)
    assert _name(layer, Model(format="tflite", path=path), kind) == "head.1"


class Side:
    """The layers of a slimmed file: without names."""

    def __init__(self, *values: float) -> None:
        self.layers = tuple(np.array([value], np.float32) for value in values)
        self.layer_infos = tuple({"name": "", "operator": "ADD", "scale": None} for _ in values)


def test_parity_compares_layers_without_names_by_their_place() -> None:
    sides: Any = {"x": Side(1, 2, 3), "y": Side(1, 2.5, 3)}
    layer, _ = first_layer(sides)
    assert layer is not None and (layer.index, layer.max_error) == (1, 0.5)


WEIGHTS = (
    *("layer1.0.conv1.weight", "layer1.0.conv1.bias", "layer1.0.bn1.running_mean", "rnn.gru.weight_ih_l0"),
    *("attention.in_proj_weight", "down_sample.weight", "model.fc.weight"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layer1_0_conv1", "layer1.0.conv1"),
        ("layer1_0_conv1:2", "layer1.0.conv1:2"),
        ("rnn_gru/input_l0", "rnn.gru/input_l0"),
        ("attention_in_proj", "attention.in_proj"),
        ("down_sample", "down_sample"),
        ("layer1_0_conv1_token_3", "layer1.0.conv1"),
        ("model_layer1_0_conv1_weight_DequantizeLinear", "layer1.0.conv1/weight"),
        ("model_fc", "model.fc"),
        ("fc", "model.fc"),
        ("add_3", "add_3"),
        ("layer1_0_conv12", "layer1_0_conv12"),
    ],
)
def test_names_in_files_become_those_of_the_source(name: str, expected: str) -> None:
    assert SourceNames.of_weights(WEIGHTS).of(name) == expected
    assert SourceNames().of(name) == name


def test_parts_of_a_recurrent_layer_go_by_its_name_in_the_source() -> None:
    files = ["rnn_gru/input_l0", "rnn_gru/hidden_l0", "rnn_gru_2/input_l0", "rnn_head"]
    assert list(matching(["rnn.gru"], files)) == files[:2]
    assert list(matching(["rnn_gru_2"], files)) == files[2:3]
    with pytest.raises(StageError, match="no layer is called 'rnn'"):
        matching(["rnn"], files)
