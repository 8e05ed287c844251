"""The lists of what model files may contain are complete, and ordinary models are not refused.

Each framework is asked in a process of its own: TensorFlow and torch must not share one.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import UsageError
from edgeopt.formats.source import inspect
from edgeopt.formats.untrusted import keras_config, tensorflow_operators, torch_operators
from needs import needs

pytestmark = pytest.mark.slow

KERAS = r"""
import inspect, json, os, sys, warnings
warnings.simplefilter("ignore")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, tensorflow as tf, tf_keras
from tensorflow.python.framework import op_def_registry
from tensorflow.python.util import tf_export
found = {"classes": [], "functions": [], "operators": [], "files": []}
for library in (keras, tf_keras):
    for kind in ("layers", "initializers", "regularizers", "constraints", "losses", "metrics", "optimizers"):
        module = getattr(library, kind)
        found["classes"] += [name for name in dir(module) if inspect.isclass(getattr(module, name))]
    found["functions"] += [name for name in dir(library.activations)
                           if inspect.isfunction(getattr(library.activations, name))]
allowed = json.loads(sys.argv[1])
for name in allowed:
    operator = op_def_registry.get(name)
    names = [part.name for part in (*operator.input_arg, *operator.attr)] if operator else ["unknown"]
    suspicious = any(word in " ".join(names) for word in ("file", "path_", "url", "address"))
    found["operators"] += [name] * (suspicious or operator is None)
tf_export.get_symbol_from_name("nn.relu")
for name, symbol in tf_export._NAME_TO_SYMBOL_MAPPING.items():
    if inspect.isfunction(symbol):
        parameters = " ".join(inspect.signature(symbol).parameters)
        if any(word in parameters for word in ("file", "directory", "url", "stream", "export_dir")):
            found["files"].append(name)

small = tf_keras.Input((8, 8, 3), name="image")
x = tf_keras.layers.Rescaling(1 / 255)(small)
x = tf.nn.relu(tf_keras.layers.Conv2D(4, 3, kernel_regularizer="l2")(x)) * 2 + x[:, :6, :6, :1]
x = tf.concat([tf.reduce_mean(x, [1, 2]), tf.math.sigmoid(tf.reshape(x, [-1, 144]))], axis=-1)
x = tf_keras.layers.Bidirectional(tf_keras.layers.LSTM(2))(x[:, None, :])
model = tf_keras.Model(small, tf_keras.layers.Dense(2, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy", tf_keras.metrics.AUC()])
for suffix in (".h5", ".keras"):
    model.save("operators" + suffix)
model.save("operators", save_format="tf")
third = keras.Input((8, 8, 3), name="image")
y = keras.layers.RandomFlip()(third)
y = keras.layers.Conv2D(4, 3, activation=keras.activations.gelu, kernel_constraint="max_norm")(y)
y = keras.ops.reshape(keras.ops.relu(y) * 2, (-1, 36, 4))
y = keras.layers.MultiHeadAttention(2, 2)(y, y)
inner = keras.Sequential([keras.Input((36, 4)), keras.layers.GRU(3)]); inner.compile("sgd", "mse")
new = keras.Model(third, keras.layers.Dense(2)(inner(y)))
new.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, 9)), "mse", metrics=["mae"])
inner.save("new.h5"); new.save("new.keras"); new.export("exported", verbose=False)
from keras.src.applications.convnext import LayerScale
keras.Sequential([keras.Input((4,)), LayerScale(0.5, 4), keras.layers.Dense(2)]).save("application.keras")
words = keras.Sequential([keras.Input((1,), dtype="string"),
                          keras.layers.TextVectorization(vocabulary=["a", "b"])])
words.save("words.keras")
old_words = tf_keras.Sequential([tf_keras.layers.Input((1,), dtype="string"),
                                 tf_keras.layers.StringLookup(vocabulary=["a", "b"])])
old_words.save("words", save_format="tf")
print(json.dumps(found))
"""

TORCH = """
import json, torch
import torch.ao.quantization.fx._decomposed
print(json.dumps(sorted({schema.name for schema in torch._C._jit_get_all_schemas()
                         if any("str" in str(argument.type) for argument in schema.arguments)})))
"""

RUN_CODE = {"Lambda", "JaxLayer", "FlaxLayer", "TorchModuleWrapper", "TFSMLayer", "DenseFeatures"}
"""Layers of Keras that are deliberately not in the list."""


def run(program: str, *arguments: str, cwd: Path) -> Any:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    needs("tensorflow", "keras", "tf_keras")
    folder = tmp_path_factory.mktemp("keras")
    return run(KERAS, json.dumps(sorted(tensorflow_operators.ALLOWED)), cwd=folder), folder


def test_every_class_of_keras_is_known(keras: tuple[Any, Path]) -> None:
    known = keras_config.LAYERS | keras_config.PARTS | keras_config.LEGACY_PARTS
    unknown = set(keras[0]["classes"]) - known - RUN_CODE
    assert unknown <= {"OptimizerMap", "MultiOptimizer", "serialize", "deserialize"}, sorted(unknown)
    functions = set(keras[0]["functions"]) - {"get", "serialize", "deserialize"}
    assert functions <= keras_config.ACTIVATIONS, sorted(functions - keras_config.ACTIVATIONS)


def test_no_allowed_operator_of_tensorflow_names_a_file(keras: tuple[Any, Path]) -> None:
    assert keras[0]["operators"] == []
    config = {"class_name": "TFOpLambda", "config": {"name": "x"}}
    assert len(keras[0]["files"]) > 50
    for function in keras[0]["files"]:
        config["config"]["function"] = function  # type: ignore[index]
        assert keras_config.findings(config), function


@pytest.mark.parametrize(
    "name",
    ["operators.h5", "operators.keras", "operators", "new.keras", "application.keras", "new.h5", "exported"],
)
def test_ordinary_models_are_not_refused(keras: tuple[Any, Path], name: str) -> None:
    source = inspect(keras[1] / name)
    assert not any("trust" in note for note in source.notes), source.notes


@pytest.mark.parametrize("name", ["words.keras", "words"])
def test_tables_of_words_are_not_taken_for_files(keras: tuple[Any, Path], name: str) -> None:
    with pytest.raises(UsageError, match="takes text") as refused:
        inspect(keras[1] / name)
    assert re.search(r"keras\.Model\(model\.get_layer\('\w+'\)\.output, model\.outputs\)", refused.value.fix)
    assert "trust" not in f"{refused.value} {refused.value.fix}"


def test_no_allowed_operator_of_torch_takes_an_unknown_text(tmp_path: Path) -> None:
    needs("torch")
    reviewed = json.loads((Path(__file__).parent / "data" / "torch_text_operators.json").read_text("utf-8"))
    names = (name.partition("::")[::2] for name in run(TORCH, cwd=tmp_path))
    taking_text = {f"{space}::{name}" for space, name in names if torch_operators.allowed(space, name)}
    assert taking_text <= set(reviewed), sorted(taking_text - set(reviewed))
    assert not torch_operators.allowed("aten", "from_file") and not torch_operators.allowed("c10d", "send")
