"""Kinds of Keras models: layers for training, half precision, states, text, layers of Keras 2."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import UsageError
from edgeopt.formats.source import inspect
from test_stages_tensorflow import python

pytestmark = pytest.mark.slow

OWN_LAYERS = """
import keras

class Scale(keras.layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return keras.ops.tanh(x * self.factor)

@keras.saving.register_keras_serializable("own")
def inverted(x):
    return keras.ops.erfinv(keras.ops.tanh(x))

@keras.saving.register_keras_serializable("own")
def clipped(x):
    return keras.ops.minimum(x, 0.5)
"""

CONVERT = """
from edgeopt.formats.source import inspect
random = np.random.default_rng(0)
layers, old_layers = keras.layers, tf_keras.layers

def new(*parts, shape=(12, 12, 4), end=True):
    end = [layers.GlobalAveragePooling2D(), layers.Dense(3)] if end else []
    return keras.Sequential([layers.Input(shape, name="image"), *parts, *end])

def old(*parts, shape=(12, 12, 4), end=True):
    end = [old_layers.GlobalAveragePooling2D(), old_layers.Dense(3)] if end else []
    return tf_keras.Sequential([old_layers.InputLayer(shape, name="image"), *parts, *end])

def half(library, policy, build):
    set_policy = library.mixed_precision.set_global_policy
    set_policy(policy)
    try:
        return build()
    finally:
        set_policy("float32")

def snr(found, expected):
    found, expected = (np.concatenate([np.ravel(v).astype(np.float64) for v in s]) for s in (found, expected))
    return float(10 * np.log10((expected**2).sum() / max(((found - expected) ** 2).sum(), 1e-30)))

def conv(library, **options):
    return library.layers.Conv2D(8, 3, **options)

inner = old(old_layers.SeparableConv2D(4, 3), shape=(10, 10, 8), end=False)
image = old_layers.Input((12, 12, 4))
nested = tf_keras.Model(image, old_layers.GlobalAveragePooling2D()(inner(conv(tf_keras)(image))))
tokens = old_layers.Input((6, 8))
attended = old_layers.MultiHeadAttention(2, 4)(tokens, value=tokens)
attention = tf_keras.Model(tokens, old_layers.LayerNormalization()(old_layers.Add()([attended, tokens])))
ids = keras.Input((6,), dtype="float32")
buckets = layers.Discretization(bin_boundaries=[-0.5, 0.0, 0.5])(ids)
sequence = {"shape": (6, 4), "end": False}
models = {
    "normalization": new(layers.Normalization(mean=[1, 2, 3, 4], variance=[1, 4, 9, 16]), conv(keras)),
    "gelu": new(conv(keras, activation="gelu"), layers.Activation("celu")),
    "grouped": new(conv(keras, groups=4)),
    "buckets": keras.Model(ids, layers.Flatten()(layers.Embedding(4, 2)(buckets))),
    "random": new(layers.RandomFlip(), layers.RandomZoom(0.2), conv(keras), layers.GaussianNoise(0.5)),
    "mixed_float16": half(keras, "mixed_float16", lambda: new(conv(keras))),
    "mixed_bfloat16": half(keras, "mixed_bfloat16", lambda: new(conv(keras))),
    "float16": half(keras, "float16", lambda: new(conv(keras))),
    "old_mixed": half(tf_keras, "mixed_float16", lambda: old(conv(tf_keras))),
    "old_float16": half(tf_keras, "float16", lambda: old(conv(tf_keras))),
    "old_separable": old(
        old_layers.SeparableConv2D(8, 3), old_layers.Conv2DTranspose(4, 3), old_layers.LeakyReLU(0.2)
    ),
    "old_recurrent": old(
        old_layers.Bidirectional(old_layers.GRU(3, return_sequences=True)),
        old_layers.RNN([old_layers.LSTMCell(4), old_layers.GRUCell(3)]), **sequence
    ),
    "old_random": old(
        old_layers.RandomFlip(), old_layers.RandomHeight(0.1), old_layers.RandomCrop(8, 8), conv(tf_keras)
    ),
    "old_normalization": old(
        old_layers.Normalization(mean=[1, 2, 3, 4], variance=[1, 4, 9, 16]), conv(tf_keras)
    ),
    "old_nested": nested,
    "old_attention": attention,
}
block = {"kernel_size": 3, "repeats": 2, "filters_in": 32, "filters_out": 16, "expand_ratio": 2,
         "id_skip": True, "strides": 2, "se_ratio": 0.25}
from keras.src.applications.efficientnet import EfficientNet  # for a small one: the public ones have one size
models["efficientnet"] = EfficientNet(
    0.5, 1.0, 32, blocks_args=[block], input_shape=(32, 32, 3), weights=None, classes=3
)
state = keras.Input(batch_shape=(2, 6, 4))
models["stateful"] = keras.Model(state, layers.LSTM(5, stateful=True)(state))
random_bias = {"bias_initializer": "random_normal"}
models["gru"] = new(layers.GRU(5, return_sequences=True, **random_bias), layers.GRU(3), **sequence)
both = layers.Bidirectional(layers.LSTM(5, return_sequences=True, **random_bias))
models["bidirectional"] = new(both, layers.Bidirectional(layers.GRU(3, **random_bias)), **sequence)
models["lstm"] = new(layers.LSTM(96), shape=(40, 64), end=False)
models["old_stateful"] = tf_keras.Sequential([old_layers.GRU(5, stateful=True, batch_input_shape=(2, 6, 4))])
whole = {name: new(conv(keras)) for name in ("mixed_float16", "mixed_bfloat16", "float16")}
whole |= {name: old(conv(tf_keras)) for name in ("old_mixed", "old_float16")}

for name, network in models.items():
    path = root / (name + (".h5" if name.startswith("old_") else ".keras"))
    network.save(path)
    shape = network.inputs[0].shape[1:]
    values = [random.standard_normal((1, *shape)).astype(np.float32)]
    fresh = np.repeat(values[0], 2, axis=0) if "stateful" in name else values[0]
    expected = [np.asarray(network(fresh, training=False))[:1].astype(np.float32)]
    row = report[name] = {}
    if name in whole:
        # What 16-bit arithmetic rounds depends on weights and processor; the files compute in float32.
        whole[name].set_weights(network.get_weights())
        exact = [np.asarray(whole[name](fresh, training=False))]
        row["source"] = snr(expected, exact)
        expected = exact
    np.savez(root / (name + ".npz"), x=values[0], y=expected[0])
    source = inspect(path)
    row["notes"] = list(source.notes)
    for stage, run in ((KerasToTflite(), run_tflite), (KerasToOnnx(), run_onnx)):
        try:
            done = stage.run(source.model, context(name + stage.produces))
        except StageError as problem:
            row[stage.produces] = str(problem)
        else:
            row[stage.produces] = snr(run(done.path, values), expected)
            row[stage.produces + "_bytes"] = done.path.stat().st_size
    if source.model.format == "tf_keras":
        crossed = TfKerasToKeras().run(source.model, context(name + "crossed"))
        loaded = keras.saving.load_model(crossed.path, compile=False)
        row["keras"] = snr([loaded(values[0], training=False)], expected)

sys.path.insert(0, str(root))
from own_layers import Scale, clipped, inverted
own = new(conv(keras, activation=clipped), Scale(), shape=(12, 12, 4))
own.save(root / "own.keras")
new(conv(keras, activation=inverted, name="stem")).save(root / "inverted.keras")
value = random.standard_normal((1, 12, 12, 4)).astype(np.float32)
expected = [np.asarray(own(value, training=False))]
sys.path.remove(str(root))
del sys.modules["own_layers"]
source = inspect(root / "own.keras", trust=True, code=root / "own_layers.py")
for stage, run in ((KerasToTflite, run_tflite), (KerasToOnnx, run_onnx)):
    done = stage(trust=True, code=root / "own_layers.py").run(source.model, context("own" + stage.produces))
    report["own_" + stage.produces] = snr(run(done.path, [value]), expected)
inverted = inspect(root / "inverted.keras", trust=True, code=root / "own_layers.py").model
report["inverted"] = refused(KerasToOnnx(trust=True, code=root / "own_layers.py"), inverted, "inverted")
sigmoid = old(conv(tf_keras, activation="hard_sigmoid"))
sigmoid.save(root / "sigmoid.h5")
report["sigmoid"] = refused(TfKerasToKeras(), inspect(root / "sigmoid.h5").model, "sigmoid")

class Named(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def scale(self, x):
        return {"y": 2.0 * x}

named = Named()
tf.saved_model.save(named, str(root / "named"), signatures={"zoom": named.scale, "scale": named.scale})
source = inspect(root / "named")
report["named"] = [[spec.name for spec in source.model.inputs], list(source.notes)]
values = [np.ones((1, 4), np.float32)]
named_lite = KerasToTflite().run(source.model, context("named_lite"))
report["named_tflite"] = run_tflite(named_lite.path, values)[0].tolist()
named_onnx = KerasToOnnx().run(source.model, context("named_onnx"))
report["named_onnx"] = run_onnx(named_onnx.path, values)[0].tolist()

vectorizer = layers.TextVectorization(output_sequence_length=4)
vectorizer.adapt(["red green", "blue"])
text, other = keras.Input((1,), dtype="string", name="text"), keras.Input((3,), name="other")
found = layers.Flatten()(layers.Embedding(8, 2)(vectorizer(text)))
spoken = keras.Model([text, other], layers.Concatenate()([found, other]))
spoken.save(root / "spoken.keras")
model = keras.saving.load_model(root / "spoken.keras")
try:
    inspect(root / "spoken.keras")
except Exception as problem:
    line = problem.fix.partition("layer, ")[2].partition(".save(")[0]
    cut = eval(line, {"keras": keras, "model": model})
    word, rest = tf.constant([["red"]]), tf.ones((1, 3))
    report["cut"] = error([cut([vectorizer(word), rest])], [model([word, rest])])
spoken.export(str(root / "spoken"), verbose=False)
print(json.dumps(report))
"""


EXPORT = """
import collections, json, os, sys
from pathlib import Path
os.environ["KERAS_BACKEND"] = "torch"
import keras
import numpy as np
import torch
from edgeopt.formats.source import inspect
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_exported_program import KerasToExportedProgram

root = Path(sys.argv[1])
report = {}
for name in ("random", "mixed_float16", "mixed_bfloat16", "stateful", "lstm", "gru", "bidirectional"):
    folder = root / (name + "_exported")
    folder.mkdir()
    context = Context(folder, None, lambda line: None)
    done = KerasToExportedProgram().run(inspect(root / (name + ".keras")).model, context)
    known = np.load(root / (name + ".npz"))
    program = torch.export.load(done.path)
    found = program.module()(torch.from_numpy(known["x"]))
    found = found if isinstance(found, torch.Tensor) else next(iter(found))
    noise = ((found.detach().numpy() - known["y"]) ** 2).sum()
    decibels = float(10 * np.log10((known["y"] ** 2).sum() / max(noise, 1e-30)))
    report[name] = [decibels, collections.Counter(str(node.target) for node in program.graph.nodes)]
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keras_models")
    (made / "own_layers.py").write_text(OWN_LAYERS)
    return made


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    return python(CONVERT, folder)


@pytest.mark.parametrize(
    ("name", "decibels"),
    [
        ("normalization", 100),
        ("efficientnet", 100),
        ("gelu", 100),
        ("grouped", 100),
        ("random", 100),
        ("stateful", 100),
        ("lstm", 100),
        ("gru", 100),
        ("bidirectional", 100),
        ("old_stateful", 100),
        ("mixed_float16", 100),
        ("float16", 100),
        ("mixed_bfloat16", 100),
        ("old_mixed", 100),
        ("old_float16", 100),
        ("old_separable", 100),
        ("old_recurrent", 100),
        ("old_random", 100),
        ("old_normalization", 100),
        ("old_nested", 100),
        ("old_attention", 100),
    ],
)
def test_every_kind_reaches_tflite_and_onnx_and_keras_3(report: Any, name: str, decibels: float) -> None:
    targets = ("tflite", "onnx", "keras") if name.startswith("old_") else ("tflite", "onnx")
    for target in targets:
        assert isinstance(report[name][target], float), report[name][target]
        assert report[name][target] > decibels, target


@pytest.fixture(scope="module")
def programs(report: Any, folder: Path) -> Any:
    """The SNR of exported programs, and how often each operator is in them."""
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_layers_for_training_are_left_out_on_the_way_to_torch(programs: Any) -> None:
    assert min(decibels for decibels, _ in programs.values()) > 100


@pytest.mark.parametrize(
    ("name", "lstm", "gru"), [("lstm", 1, 0), ("stateful", 1, 0), ("gru", 0, 2), ("bidirectional", 2, 2)]
)
def test_recurrent_layers_are_one_operator_in_torch(programs: Any, name: str, lstm: int, gru: int) -> None:
    """Not unrolled."""
    count = programs[name][1]
    assert (count.get("aten.lstm.input", 0), count.get("aten.gru.input", 0)) == (lstm, gru)
    assert not {"aten.tanh.default", "aten.sigmoid.default"} & set(count)


def test_a_recurrent_layer_has_its_weights_once_in_tflite(report: Any) -> None:
    weights = 4 * 96 * (64 + 96 + 1) * 4
    assert weights < report["lstm"]["tflite_bytes"] < 1.03 * report["lstm"]["onnx_bytes"] + 2**15


@pytest.mark.parametrize(
    ("name", "decibels"),
    [("mixed_float16", 50), ("float16", 50), ("old_mixed", 50), ("old_float16", 50), ("mixed_bfloat16", 30)],
)
def test_a_source_of_16_bits_rounds_as_much_as_its_type(report: Any, name: str, decibels: float) -> None:
    assert report[name]["source"] > decibels


def test_buckets_reach_onnx(report: Any) -> None:
    assert report["buckets"]["onnx"] > 100


def test_notes_say_what_is_changed_for_inference(report: Any) -> None:
    assert any("float16 are converted to float32" in note for note in report["mixed_float16"]["notes"])
    assert any("stateful layers (lstm): every run begins" in note for note in report["stateful"]["notes"])
    assert report["gelu"]["notes"] == []


def test_hard_sigmoid_of_keras_2_is_refused_by_layer(report: Any) -> None:
    assert "layer 'conv2d" in report["sigmoid"]
    assert "clip(0.2 x + 0.5)" in report["sigmoid"]


def test_what_onnx_lacks_is_named_by_layer_with_the_way_through_pytorch(report: Any) -> None:
    assert re.search(r"ONNX has no counterpart of Erfinv \(\w+/stem/", report["inverted"])
    assert "stages: [keras_to_exported_program, exported_program_to_onnx]" in report["inverted"]


def test_custom_layers_of_a_named_file_are_converted(report: Any, folder: Path) -> None:
    assert min(report["own_tflite"], report["own_onnx"]) > 100
    with pytest.raises(UsageError, match=r"is a (class|function) of") as refusal:
        inspect(folder / "own.keras")
    assert "model: {path: own.keras, code: layers.py, trust: true}" in refusal.value.fix


def test_a_signature_of_another_name_is_used_and_named(report: Any) -> None:
    assert report["named"] == [["x"], [report["named"][1][0], "of its signatures, 'scale' is used"]]
    assert report["named_tflite"] == report["named_onnx"] == [[2.0] * 4]


def test_text_is_refused_with_the_line_that_cuts_the_model(report: Any, folder: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        inspect(folder / "spoken.keras")
    assert "input 'text' takes text, layer 'text_vectorization' (TextVectorization)" in refusal.value.message
    assert report["cut"] == 0
    with pytest.raises(UsageError, match=r"input '\w*text\w*' takes text"):
        inspect(folder / "spoken")
