"""Layers of Keras that ExecuTorch runs only after a rewriting, float and int8."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from needs import needs

needs("keras", "torch", "torchao", "executorch")
pytestmark = [pytest.mark.slow]

CONVERT = """
import json, os, sys
from pathlib import Path
os.environ["KERAS_BACKEND"] = "torch"
import keras
import numpy as np
import torch
from keras import layers
from edgeopt.formats.source import inspect
from edgeopt.formats.torch.lab import runtimes
from edgeopt.model import Preprocessing
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.keras_to_exported_program import KerasToExportedProgram
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack

root = Path(sys.argv[1])
keras.utils.set_random_seed(0)

def net(shape, *parts, pool=layers.GlobalAveragePooling2D):
    return keras.Sequential([layers.Input(shape, name="given"), *parts, pool(), layers.Dense(4)])

NETS = {
    "mono": net((200, 1), layers.Conv1D(8, 16, 4, activation="relu"), layers.Conv1D(8, 3),
                pool=layers.GlobalAveragePooling1D),
    "resized": net((12, 12, 3), layers.Resizing(9, 7), layers.Conv2D(8, 3, activation="relu")),
    # Normalized before the convolution, as in DenseNet: nothing before it takes the constants in.
    "preceded": net((12, 12, 3), layers.Conv2D(8, 3), layers.MaxPooling2D(), layers.BatchNormalization(),
                    layers.ReLU(), layers.Conv2D(8, 3)),
    "grouped": net((12, 12, 3), layers.Conv2D(16, 3), layers.GroupNormalization(4), layers.ReLU()),
}

class Noise(Dataset):
    shape: tuple[int, ...]
    seed: int = 0

    def samples(self):
        random = np.random.default_rng(self.seed)
        for _ in range(32):
            yield Sample((random.normal(0, 1, self.shape).astype(np.float32),))

    def digest(self):
        return "noise"

def context(name):
    (root / name).mkdir()
    return Context(root / name, Feed(Noise(shape=shape), Preprocessing()), lambda line: None)

ends = ((0.5, 2), (-1, 1), (-0.5, 0.5), (0.2, 2))
NETS["preceded"].layers[2].set_weights([np.linspace(*each, 8, dtype=np.float32) for each in ends])
report = {}
for name, model in NETS.items():
    path, shape = root / f"{name}.keras", model.input_shape[1:]
    model.save(path)
    program = KerasToExportedProgram().run(inspect(path).model, context(name))
    int8 = QuantizeXnnpack().run(program, context(name + "-int8"))
    for kind, source in (("float", program), ("int8", int8)):
        made = ExportedProgramToExecutorch().run(source, context(f"{name}-{kind}-pte"))
        run = runtimes.load_executorch(made.path.read_bytes())
        power = noise = 0.0
        for sample in Noise(shape=shape, seed=1).samples():
            x = torch.from_numpy(sample.inputs[0][None])
            with torch.no_grad():
                wanted, found = model(x, training=False), run(x)[0]
            power, noise = power + float((wanted**2).sum()), noise + float(((found - wanted) ** 2).sum())
        report[f"{name} {kind}"] = 10 * np.log10(power / max(noise, 1e-30))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The signal-to-noise ratios in dB; in a process of its own, where the backend of Keras is PyTorch."""
    folder: Path = tmp_path_factory.mktemp("keras")
    command = [sys.executable, "-W", "ignore", "-c", CONVERT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["mono", "resized", "preceded", "grouped"])
def test_keras_layers_run_in_executorch(report: Any, name: str) -> None:
    """Audio of one channel, images that are resized, a normalization before its layer, and one of groups."""
    assert report[f"{name} float"] > 100
    assert report[f"{name} int8"] > 25
