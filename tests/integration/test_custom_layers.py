"""A Keras model with layers of its author, whose Python file the recipe names."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bare_runtimes import answers, snr_db
from edgeopt.commands.optimize import optimize
from needs import needs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_workers")]

LAYERS = """
import keras


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="factor")

    def call(self, x):
        return keras.ops.tanh(x * self.factor)


@keras.saving.register_keras_serializable("own")
def clipped(x):
    return keras.ops.minimum(x, 0.5)
"""
MAKE = """
import sys
import numpy as np
import keras
from keras import layers
from my_layers import Scale, clipped

keras.utils.set_random_seed(0)
image = layers.Input((6, 6, 3), name="image")
x = Scale(name="scale")(layers.Conv2D(8, 3, activation=clipped, name="conv")(image))
net = keras.Model(image, layers.Dense(4, name="scores")(layers.GlobalAveragePooling2D()(x)))
net.save("own.keras")
x = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)
np.savez("data.npz", x=x, y=np.asarray(net(x)))
"""
RECIPE = """
version: 1
name: own
model: {path: own.keras, code: my_layers.py, trust: true}
data:
  evaluation: {uses: npz, with: {path: data.npz, inputs: [x], label: null}}
formats: [tflite, torchscript]
latency: {min_runs: 2, min_seconds: 0}
"""


def test_layers_of_a_named_file_reach_every_format(tmp_path: Path) -> None:
    needs("keras", "torch", "ai_edge_litert")
    for name, text in (("my_layers.py", LAYERS), ("make.py", MAKE), ("recipe.yaml", RECIPE)):
        (tmp_path / name).write_text(text)
    subprocess.run([sys.executable, "make.py"], cwd=tmp_path, check=True, capture_output=True)
    report = optimize(tmp_path / "recipe.yaml", out=tmp_path / "out", store=tmp_path / "store")
    assert report.source is not None and report.source.status == "ok", report.source
    assert [row.format for row in report.results] == ["tflite", "torchscript"]
    with np.load(tmp_path / "data.npz") as data:
        values, expected = data["x"], data["y"].astype(np.float64)
    for row in report.results:
        assert row.status == "ok", row.reason
        assert row.measurements["max_abs_error"].value < 1e-5
        assert row.artifact is not None
        (found,) = answers(tmp_path / "out" / row.artifact.path, values)
        assert snr_db(found, expected) > 100
