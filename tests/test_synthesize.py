"""Calibration data without data: samples that have the statistics of a model's batch norms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.commands.synthesize import _ends
from edgeopt.evaluation.samples import random_inputs
from edgeopt.formats.synthesis import smooth
from edgeopt.model import InputPreprocessing, Preprocessing, TensorSpec
from edgeopt.plugin.synthesis import Start
from in_process import Edgeopt
from needs import needs

needs("tensorflow", "keras", "torch")
pytestmark = pytest.mark.slow

IMAGE = TensorSpec(name="image", shape=(1, 3, 12, 12), layout="NCHW")
NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8) if norm else torch.nn.Identity()
        self.head = torch.nn.Linear(8, 4)
        if norm:
            coarse = 2 * torch.rand(256, 3, 4, 4) - 0.6
            values = self.conv(torch.nn.functional.interpolate(coarse, size=12, mode="bilinear")).detach()
            self.norm.running_mean.copy_(values.mean((0, 2, 3)))
            self.norm.running_var.copy_(values.var((0, 2, 3)))

    def forward(self, image):
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))
"""
RECIPE = """
version: 1
name: net
model:
  factory: net:Net
  inputs: [{name: image, shape: [1, 3, 12, 12], layout: NCHW}]
  preprocess: {scale: 1/255, mean: [0.5, 0.4, 0.3], std: [0.25], layout: NHWC}
formats: [onnx]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras

    inputs = keras.Input((12, 12, 3), name="image")
    inner = keras.Sequential([keras.layers.Input((12, 12, 3)), keras.layers.Conv2D(8, 3)], name="nested")
    inner.add(keras.layers.BatchNormalization(name="norm"))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(inner(inputs)))
    network = keras.Model(inputs, keras.layers.Dense(4)(pooled))
    coarse = np.random.default_rng(0).uniform(-0.6, 1.4, (256, 4, 4, 3))
    values = np.asarray(inner.layers[0](coarse.repeat(3, 1).repeat(3, 2))).reshape(-1, 8)
    inner.layers[-1].moving_mean.assign(values.mean(0))
    inner.layers[-1].moving_variance.assign(values.var(0))
    path = tmp_path_factory.mktemp("keras") / "net.keras"
    network.save(path)
    return path


def assert_alike(values: Any, mean: Any, variance: Any) -> None:
    flat, mean, deviation = np.asarray(values).reshape(-1, 8), np.asarray(mean), np.sqrt(np.asarray(variance))
    assert np.abs((flat.mean(0) - mean) / deviation).max() < 0.1
    assert np.abs(flat.std(0) / deviation - 1).max() < 0.1


def test_samples_of_a_recipe_have_the_statistics_and_the_range(
    edgeopt: Edgeopt, recipe: Path, tmp_path: Path
) -> None:
    import torch

    out = tmp_path / "made.npz"
    said = edgeopt("synthesize", recipe, "--range", "0,255", "--out", out, "--store", tmp_path / "store")
    assert said.code == 0, said.err
    assert f"calibration: {{uses: npz, with: {{path: {out}}}}}" in said.out
    raw = np.load(out)["x"]
    assert raw.shape == (64, 12, 12, 3)  # in the layout of the data
    assert (raw.min(), raw.max()) == (0, 255)
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    net = scope["Net"]().eval()
    inputs = (raw / 255 - [0.5, 0.4, 0.3]) / 0.25
    with torch.no_grad():
        values = net.conv(torch.tensor(inputs.transpose(0, 3, 1, 2), dtype=torch.float32)).permute(0, 2, 3, 1)
    assert_alike(values, net.norm.running_mean, net.norm.running_var)


def test_samples_of_a_keras_model_are_its_inputs(edgeopt: Edgeopt, keras_file: Path, tmp_path: Path) -> None:
    import keras

    out = tmp_path / "made.npz"
    said = edgeopt("synthesize", keras_file, "--out", out, "--samples", "70")
    assert said.code == 0, said.err
    assert "give it with --range" in said.out
    inputs = np.load(out)["x"]
    assert inputs.shape == (70, 12, 12, 3)
    network = keras.saving.load_model(keras_file)
    conv, norm = network.get_layer("nested").layers
    assert_alike(conv(inputs), norm.moving_mean, norm.moving_variance)


def test_the_samples_are_the_same_every_time(edgeopt: Edgeopt, recipe: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{number}.npz" for number in range(2))
    for out in (first, second):
        few = ("--samples", "4", "--steps", "3", "--store", tmp_path / "store")
        assert edgeopt("synthesize", recipe, *few, "--out", out).code == 0
    assert np.array_equal(np.load(first)["x"], np.load(second)["x"])


def test_what_cannot_be_synthesized(edgeopt: Edgeopt, recipe: Path, toy_onnx: Path, tmp_path: Path) -> None:
    without = ("--set", "model.arguments={norm: false}", "--store", tmp_path / "store")
    said = edgeopt("synthesize", recipe, *without, "--out", tmp_path / "x.npz")
    assert said.code == 3 and "no batch norm, whose statistics could stand for data" in said.err
    said = edgeopt("synthesize", toy_onnx, "--out", tmp_path / "x.npz")
    assert said.code == 2 and "batch norms are folded" in said.err
    assert edgeopt("synthesize", recipe, "--range", "255,0").code == 2
    said = edgeopt("synthesize", recipe, "--range", "0-255")
    assert said.code == 2 and "write --range 0,255" in said.err


@pytest.fixture
def toy_onnx(tmp_path: Path) -> Path:
    import onnx

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "relu", ends[:1], ends[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "r.onnx"
    )
    return tmp_path / "r.onnx"


def test_what_preprocessing_does_can_be_undone() -> None:
    steps = Preprocessing(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), layout="NHWC")
    raw = np.random.default_rng(0).uniform(0, 255, (12, 12, 3)).astype(np.float32)
    assert np.allclose(steps.undo(steps.apply(raw, IMAGE), IMAGE), raw[np.newaxis], atol=1e-3)
    low, high = _ends(InputPreprocessing(steps, (IMAGE,)).of(0, IMAGE), IMAGE, (0, 255))
    assert np.allclose(low[0, :, 0, 0], [-2.5, -4 / 3, -0.75]) and np.allclose(
        high[0, :, 0, 0], [2.5, 2, 1.75]
    )


def test_noise_of_images_is_smooth() -> None:
    (noise,) = random_inputs((IMAGE,), 16)
    values = smooth(noise, "NCHW")
    near = np.mean(values[..., 1:] * values[..., :-1])
    assert near > 0.5 and values.std() == pytest.approx(1, rel=1e-3)
    assert np.mean(noise[..., 1:] * noise[..., :-1]) < 0.1
    tokens = np.arange(4)
    assert smooth(tokens, None) is tokens and not Start(tokens).changes
