"""Fine-tuning Keras models: it restores accuracy, keeps zeros and shared values, and survives kill -9.

Everything runs in separate processes, so that TensorFlow and torch are never loaded together.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tf_keras", "keras")):
    pytest.skip("needs the extra 'keras'", allow_module_level=True)

pytestmark = pytest.mark.slow

MODEL = Path(__file__).resolve().parent.parent / "recipes" / "digits" / "digits.keras"

PRELUDE = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
import keras
from keras import layers as L
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.errors import StageError
from edgeopt.formats.keras.files import archive as keras_archive
from edgeopt.formats.keras.prune import sparsity as keras_sparsity
from edgeopt.formats.keras.train.fake_quant import FakeQuantized
from edgeopt.formats.keras.graph.to_tf_keras import rebuild
from edgeopt.model import Model, Preprocessing
from edgeopt.plugin import Context, Feed
from edgeopt.stages.cluster_keras import ClusterKeras
from edgeopt.stages.finetune_keras import FinetuneKeras
from edgeopt.stages.prune_keras import PruneKeras

root, source = Path(sys.argv[1]), Model(format="keras", path=Path(sys.argv[2]))
report = {}
preprocessing = Preprocessing(scale=1 / 16)
train = Feed(Digits(part="train", limit=640), preprocessing)
calibration = Feed(Digits(part="calibration"), preprocessing)

def context(name, **more):
    folder = root / name
    folder.mkdir(parents=True)
    usual = dict(calibration=calibration, progress=lambda line: None, note=lambda line: None)
    return Context(folder, **usual | dict(training=train, source=source) | more)

def kernels(path):
    network = keras.saving.load_model(path)
    return {k.path: k.values for k in keras_sparsity.kernels(network, "toy")}

judged = list(Digits(part="evaluation").samples())
images = np.stack([sample.inputs[0] for sample in judged]).astype(np.float32) / 16
labels = np.array([sample.label for sample in judged])

def accuracy(path):
    network = keras.saving.load_model(path)
    return float(np.mean(np.argmax(network(images, training=False), axis=1) == labels))

def refused(stage, model, name, **more):
    try:
        stage.run(model, context(name, **more))
    except StageError as problem:
        return str(problem)
    return "not refused"
"""

LEARN = """
said, notes = [], []
report["source"] = accuracy(source.path)
small = PruneKeras(channels=0.5, importance="weights").run(source, context("small"))
report["pruned"] = accuracy(small.path)
tuned = FinetuneKeras(epochs=7, batch_size=32, augment=["shift"]).run(
    small, context("tuned", progress=said.append, note=notes.append)
)
report["tuned"] = accuracy(tuned.path)
report["said"], report["notes"] = said, notes
network = keras.saving.load_model(tuned.path)
last, before = network.layers[-1], keras.saving.load_model(source.path)
report["as_before"] = [
    last.activation.__name__, network.get_layer("bn1").momentum == before.get_layer("bn1").momentum,
    tuned.inputs[0].name, tuned.outputs[0].name,
]
supervised = FinetuneKeras(epochs=2, batch_size=32, distill=False).run(small, context("supervised"))
report["supervised"] = accuracy(supervised.path)

sparse = PruneKeras(weights=0.8).run(source, context("sparse"))
mixed = ClusterKeras(clusters=6).run(sparse, context("mixed"))
kept = FinetuneKeras(epochs=3, batch_size=32).run(mixed, context("kept"))
was, now = kernels(mixed.path), kernels(kept.path)
report["kept"] = {
    "zeros": all(np.array_equal(was[name] == 0, now[name] == 0) for name in was),
    "values": max(len(np.unique(now[name])) for name in now),
    "moved": min(float(np.abs(was[name] - now[name]).max()) for name in was),
    "record": keras_archive.kept_in(kept.path) == keras_archive.kept_in(mixed.path),
    "accuracy": [accuracy(mixed.path), accuracy(kept.path)],
}
gradual = FinetuneKeras(epochs=4, batch_size=32).run(sparse, context("gradual"))
was, now = kernels(sparse.path), kernels(gradual.path)
report["gradual"] = {
    "shares": [[float(np.mean(k[name] == 0)) for k in (was, now)] for name in was],
    "elsewhere": sum(int(np.sum((was[name] == 0) != (now[name] == 0))) for name in was),
    "accuracy": [accuracy(sparse.path), accuracy(gradual.path)],
    "dense": [sorted(keras_archive.dense_in(path)) == sorted(keras_archive.kept_in(path).sparse)
              for path in (sparse.path, gradual.path)],
}
report["nan"] = refused(FinetuneKeras(epochs=1, learning_rate=1e18), small, "nan")
report["no_data"] = refused(FinetuneKeras(epochs=1), small, "no_data", training=None)

# Two outputs of very different size; the student has forgotten the smaller one.
network = keras.saving.load_model(source.path)
inner = L.Rescaling(100.0, name="large")(network.layers[-2].output)
small_head = L.Dense(4, name="small")(network.layers[-2].output)
keras.Model(network.inputs, [inner, small_head]).save(root / "two.keras")
forgetful = keras.saving.load_model(root / "two.keras")
forgetful.get_layer("small").kernel.assign(np.zeros(forgetful.get_layer("small").kernel.shape, np.float32))
forgetful.save(root / "forgetful.keras")
two, forgotten = (Model(format="keras", path=root / f"{name}.keras") for name in ("two", "forgetful"))
report["kl of two"] = refused(FinetuneKeras(epochs=1), forgotten, "kl", source=two)
taught = FinetuneKeras(epochs=3, batch_size=32, loss="mse").run(forgotten, context("taught", source=two))
wanted, got = (keras.saving.load_model(model.path)(images, training=False) for model in (two, taught))
report["taught"] = [
    float(np.mean((np.asarray(b) - a) ** 2) / np.mean(np.asarray(a) ** 2)) for a, b in zip(wanted, got)
]

# The same in one output: channels of different size.
def joined(small):
    network = keras.saving.load_model(source.path)
    parts = [L.Dense(8, name="large"), L.Dense(8, name="small")]
    ends = [L.Reshape((8, 1))(part(network.layers[-2].output)) for part in parts]
    model = keras.Model(network.inputs, L.Concatenate(axis=2)([L.Rescaling(100.0)(ends[0]), ends[1]]))
    for part, scale in zip(parts, (1.0, small)):
        values = np.random.default_rng(1).standard_normal(part.kernel.shape)
        part.kernel.assign((scale * 0.1 * values).astype(np.float32))
    path = root / f"joined{small}.keras"
    model.save(path)
    return Model(format="keras", path=path)

whole, partly = joined(1.0), joined(0.0)
tuned = FinetuneKeras(epochs=5, batch_size=32, loss="mse").run(partly, context("joined", source=whole))
wanted, got = (np.asarray(keras.saving.load_model(model.path)(images, training=False))[..., 1]
               for model in (whole, tuned))
report["joined"] = float(np.mean((got - wanted) ** 2) / np.mean(wanted**2))

aware = FinetuneKeras(epochs=2, batch_size=32, quantization_aware=True, learning_rate=0.005).run(
    kept, context("aware")
)
was, now = kernels(kept.path), kernels(aware.path)
report["aware"] = {
    "accuracy": accuracy(aware.path),
    "moved": min(float(np.abs(was[name] - now[name]).max()) for name in was),
    "zeros": all(np.array_equal(was[name] == 0, now[name] == 0) for name in was),
    "values": max(len(np.unique(now[name])) for name in now),
    "statistics": float(np.abs(
        np.asarray(keras.saving.load_model(aware.path).get_layer("bn1").moving_mean)
        - np.asarray(keras.saving.load_model(kept.path).get_layer("bn1").moving_mean)
    ).max()),
}
given = L.Input((8, 8, 1))
for name, layer in {
    "separable": L.SeparableConv2D(4, 3, name="apart"), "unknown": L.GroupNormalization(1, name="grouped"),
}.items():
    network = keras.Sequential([given, layer, L.Flatten(), L.Dense(10, activation="softmax")])
    network.save(root / f"{name}.keras")
    model = Model(format="keras", path=root / f"{name}.keras")
    report[name] = refused(FinetuneKeras(epochs=1, quantization_aware=True), model, name)

# Every kind of layer that is converted to tf_keras, and one that computes differently there
x = image = L.Input((8, 8, 3))
x = L.LeakyReLU(negative_slope=0.2)(L.SeparableConv2D(6, 3, padding="same")(x))
x = L.PReLU(shared_axes=[1, 2])(L.DepthwiseConv2D(3, depth_multiplier=2)(x))
inner_in = L.Input((6, 6, 12))
inner = keras.Model(inner_in, L.BatchNormalization(epsilon=0.01)(L.Conv2D(12, 1)(inner_in)), name="inner")
x = inner(x) + x
x = L.Concatenate()([L.MaxPooling2D(2)(x), L.AveragePooling2D(2)(x)])
x = L.Dense(4, activation="softmax")(L.Flatten()(x))
network = keras.Model(image, x)
data = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
crossed = rebuild(network, "toy").network
report["crossed"] = float(np.abs(np.asarray(crossed(data)) - np.asarray(network(data))).max())
print(json.dumps(report))
"""

RESUME = """
name = sys.argv[3]
small = Model(format="keras", path=root / "small" / "model.keras")
if not small.path.exists():
    PruneKeras(channels=0.5).run(source, context("small"))

said = []
def say(line):
    said.append(line)
    if name == "killed" and line.startswith("epoch 2/"):
        os.kill(os.getpid(), signal.SIGKILL)

options = dict(epochs=4, batch_size=64, augment=["shift", "mixup"], held_out=0.2)
folder = "whole" if name == "whole" else "cut"
done = FinetuneKeras(**options).run(small, context(name, progress=say, checkpoints=root / (folder + "_kept")))
print(json.dumps(said))
"""


def start(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def python(script: str, *arguments: object) -> Any:
    run = start(script, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return python(LEARN, tmp_path_factory.mktemp("learn"), MODEL)


def test_distillation_brings_the_accuracy_back(report: Any) -> None:
    assert report["source"] > 0.97
    assert report["pruned"] < 0.5
    assert report["tuned"] > 0.9


def test_progress_tells_loss_agreement_and_time_left(report: Any) -> None:
    assert report["said"][0].startswith("removing") or report["said"][0].startswith("before training: loss")
    last = report["said"][-1]
    assert last.startswith("epoch 7/7: loss ")
    assert "agreement" in last
    assert last.endswith("0 s left")
    assert any("epoch" in note and "kept" in note for note in report["notes"])


def test_what_training_changed_is_given_back(report: Any) -> None:
    assert report["as_before"] == ["softmax", True, "image", "probabilities"]


def test_labels_can_be_learned_instead(report: Any) -> None:
    assert report["supervised"] > report["pruned"] + 0.1


def test_zeros_and_shared_values_stay(report: Any) -> None:
    kept = report["kept"]
    assert kept["zeros"]
    assert kept["values"] <= 6
    assert kept["moved"] > 1e-4
    assert kept["record"]
    assert kept["accuracy"][1] > kept["accuracy"][0]


def test_zeros_come_step_by_step(report: Any) -> None:
    gradual = report["gradual"]
    assert all(before == after for before, after in gradual["shares"])
    assert gradual["elsewhere"] > 0  # chosen during training, not all in advance
    assert gradual["accuracy"][1] > gradual["accuracy"][0]
    assert gradual["dense"] == [True, False]


def test_quantization_aware_training_comes_back_in_float(report: Any) -> None:
    aware = report["aware"]
    assert aware["accuracy"] > report["kept"]["accuracy"][1] - 0.03
    assert aware["moved"] > 1e-5
    assert aware["statistics"] > 1e-5
    assert aware["zeros"]
    assert aware["values"] <= 6


def test_layers_that_cannot_be_trained_for_int8_are_named(report: Any) -> None:
    assert (
        "layer 'apart' (SeparableConv2D) of separable.keras cannot be trained with fake quantization"
        in report["separable"]
    )
    assert (
        "layer 'grouped' (GroupNormalization) of unknown.keras cannot be trained with fake quantization"
        in report["unknown"]
    )


def test_layers_cross_to_tf_keras(report: Any) -> None:
    assert report["crossed"] < 1e-6


def test_a_loss_that_is_not_finite_stops_training(report: Any) -> None:
    assert "the loss is" in report["nan"]
    assert "learning_rate" in report["nan"]
    assert "needs training data" in report["no_data"]


def test_every_channel_of_an_output_is_taught(report: Any) -> None:
    assert report["joined"] < 0.1  # without training, it is 1


def test_every_output_is_taught(report: Any) -> None:
    large, small = report["taught"]  # relative error powers; without training, the second one is 1
    assert large < 0.05 and small < 0.3
    assert "teaches one output of class scores, and the model has 2 outputs" in report["kl of two"]


def test_killed_training_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    assert python(RESUME, tmp_path, MODEL, "whole")[-1].startswith("epoch 4/4")
    killed = start(RESUME, tmp_path, MODEL, "killed")
    assert killed.returncode == -9
    said = python(RESUME, tmp_path, MODEL, "resumed")
    assert said[0] == "resuming after epoch 2"
    assert len(said) == 3
    assert (tmp_path / "resumed" / "model.keras").read_bytes() == (
        tmp_path / "whole" / "model.keras"
    ).read_bytes()
