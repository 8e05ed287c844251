"""A detector's usual export: boxes up to 640 and scores up to 1 in one tensor, which 8 bits cannot hold."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from edgeopt.commands.optimize import optimize
from edgeopt.results import Report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_workers")]

MODEL = """
import sys
import keras, numpy as np
from keras import layers as L
keras.utils.set_random_seed(0)
image = L.Input((16, 16, 1), name="image")
x = L.Conv2D(16, 3, strides=2, padding="same", activation="relu")(image)
x = L.Conv2D(16, 3, padding="same", activation="relu")(x)
boxes = L.Rescaling(640.0)(L.Conv2D(4, 1, activation="sigmoid", name="box")(x))
scores = L.Conv2D(3, 1, activation="sigmoid", name="score")(x)
found = L.Reshape((64, 7), name="found")(L.Concatenate()([boxes, scores]))
keras.Model(image, found).save(sys.argv[1])
np.savez(sys.argv[2], x=np.random.default_rng(0).normal(0, 2, (64, 16, 16, 1)).astype(np.float32))
"""
RECIPE = """
version: 1
name: joined
model: {path: joined.keras}
data:
  calibration: {uses: npz, with: {path: data.npz}}
  evaluation: {uses: npz, with: {path: data.npz}}
  allow_leak: true
optimize: {int8: {quantize: int8}}
formats: [tflite, onnx, torchscript, executorch]
latency: {min_runs: 2, min_seconds: 0}
"""
FORMATS = ("tflite", "onnx", "torchscript", "executorch")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    for name in ("keras", "torch", "litert_torch", "onnxruntime", "tf2onnx", "executorch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    folder = tmp_path_factory.mktemp("joined")
    command = [sys.executable, "-c", MODEL, str(folder / "joined.keras"), str(folder / "data.npz")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    return optimize(folder / "recipe.yaml", out=folder / "out", store=folder / "store")


@pytest.mark.parametrize("name", FORMATS)
def test_scores_beside_boxes_stay_alive(report: Report, name: str) -> None:
    (int8,) = [each for each in report.results if (each.variant, each.format) == ("int8", name)]
    assert int8.status == "ok", int8.reason
    assert any("stay in float, which adds no bytes" in note for note in int8.notes)
    assert report.folder is not None
    with (
        np.load(report.folder / "golden" / f"float.{name}.host.npz") as wanted,
        np.load(report.folder / "golden" / f"int8.{name}.host.npz") as found,
    ):
        before, after = (each["output_0"].reshape(-1, 7) for each in (wanted, found))
    # With one scale for all, a step would be 2.5, and every score 0.
    assert np.abs(after[:, 4:] - before[:, 4:]).max() < 0.05
    assert np.abs(after[:, :4] - before[:, :4]).max() < 16  # 2.5 % of the range
