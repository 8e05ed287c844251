"""Float TFLite files for quantization tests: a toy and the keyword model, and checks of the results."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeopt.formats.tflite.files.model_file import IDENTIFIER, data_of, load
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.tflite.graph import interpreter as tflite_interpreter
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack
from edgeopt.model import Model, Preprocessing
from edgeopt.plugin import Context, Dataset, Feed, Sample, Trial

# The float models are built in a separate process: TensorFlow must not be loaded in this one.
TOY = """
import sys, keras
from pathlib import Path
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_tflite import KerasToTflite
keras.utils.set_random_seed(1)
layers = keras.layers
network = keras.Sequential([
    layers.Input((16, 16, 3), name="image"),
    layers.Conv2D(8, 3, padding="same", activation="relu"),
    layers.DepthwiseConv2D(3, activation="relu"),
    layers.GlobalAveragePooling2D(),
    layers.Dense(5, activation="softmax", name="classes"),
])
volume = keras.Sequential([
    layers.Input((4, 8, 8, 1), name="volume"),
    layers.Conv3D(4, 3, name="solid"),
    layers.Flatten(),
    layers.Dense(3, name="classes"),
])
loop = keras.Sequential([
    layers.Input((8, 4), name="sequence"),
    layers.LSTM(8, return_sequences=True, name="recurrent"),
    layers.Conv1DTranspose(4, 3, name="up"),
    layers.Flatten(),
    layers.Dense(3, name="classes"),
])
words = keras.Sequential([
    layers.Input((6,), dtype="int32", name="ids"),
    layers.Embedding(50, 8, name="words"),
    layers.Flatten(),
    layers.Dense(3, name="classes"),
])
for name, made in (("toy", network), ("volume", volume), ("loop", loop), ("words", words)):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    made.save(folder / "model.keras")
    model = Model(format="keras", path=folder / "model.keras")
    result = KerasToTflite().run(model, Context(folder, None, print))
    (folder / "model.json").write_text(result.model_dump_json())
"""
REAL = """
import sys
from pathlib import Path
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_tflite import KerasToTflite
model = Model(format="tf_keras", path=Path(sys.argv[1]))
print(KerasToTflite().run(model, Context(Path(sys.argv[2]), None, print)).model_dump_json())
"""


class Noise(Dataset):
    """Random images, generated one by one."""

    count: int = 64
    shape: tuple[int, ...] = (16, 16, 3)
    broken: bool = False

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(5)
        for _ in range(self.count):
            values = random.standard_normal(self.shape).astype(np.float32)
            yield Sample((values * np.float32("nan") if self.broken else values,))

    def digest(self) -> str:
        return "noise"


class Stored(Dataset):
    """Samples of an .npz file."""

    file: Path
    limit: int | None = None

    def samples(self) -> Iterator[Sample]:
        with np.load(self.file) as stored:
            values, labels = stored["x"], stored["y"]
        for value, label in zip(values[: self.limit], labels, strict=False):
            yield Sample((value,), int(label))

    def digest(self) -> str:
        return self.file.name


def python(script: str, *arguments: object, seed: int = 0) -> str:
    """The last line of output of a script in a separate process."""
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONHASHSEED": str(seed),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return (run.stdout.strip().splitlines() or [""])[-1]


def toy_model(name: str, factory: pytest.TempPathFactory) -> Model:
    """``toy``, a small CNN with depthwise convolution; ``volume``, whose Conv3D has no int8 kernel; ``loop``,
    which is recurrent, with a transposed convolution; or ``words``, with the table of an embedding.
    """
    folder = factory.getbasetemp() / "float-toys"
    if not folder.exists():
        folder.mkdir()
        python(TOY, folder)
    return Model.model_validate_json((folder / name / "model.json").read_text())


def real_model(name: str, data: Path, factory: pytest.TempPathFactory) -> Model:
    """A model of MLPerf Tiny as float TFLite, built once per session."""
    folder = factory.getbasetemp() / f"float-{name}"
    note = folder / "model.json"
    if not note.exists():
        folder.mkdir()
        note.write_text(python(REAL, data / "mlperf-tiny" / name, folder))
    return Model.model_validate_json(note.read_text())


class Told:
    """Messages of a stage."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.trials: list[Trial] = []

    def context(self, folder: Path, data: Dataset | None, validation: Dataset | None = None) -> Context:
        folder.mkdir(parents=True)
        feeds = [Feed(part, Preprocessing()) if part is not None else None for part in (data, validation)]
        return Context(
            folder,
            feeds[0],
            lambda line: None,
            validation=feeds[1],
            note=self.notes.append,
            trial=self.trials.append,
        )


def context(folder: Path, data: Dataset | None) -> Context:
    return Told().context(folder, data)


def inputs_of(data: Dataset) -> list[np.ndarray]:
    return [sample.inputs[0].astype(np.float32) for sample in data.samples()]


def outputs(path: Path, samples: Iterable[np.ndarray]) -> np.ndarray:
    """Outputs in LiteRT, sample by sample, dequantized."""
    return tflite_interpreter.outputs(path, [(s[np.newaxis],) for s in samples]).arrays[0]


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def agreement(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.mean(expected.argmax(1) == found.argmax(1)))


def changed(
    source: Model, path: Path, kind: str, place: int, change: Callable[[np.ndarray, int], np.ndarray]
) -> Model:
    """The model with the constants of its ``place``-th operator of a kind changed.

    ``change`` gets each constant input as float32 in its shape, and its place among the operator's inputs.
    """
    from edgeopt.formats.tflite.files.model_file import kind_of

    model = load(source.path).model
    codes = [kind_of(code) for code in model.tables("operator_codes")]
    buffers = list(model.tables("buffers"))
    (graph,) = model.tables("subgraphs")
    operators = [o for o in graph.tables("operators") if codes[o.integer("opcode_index")] == kind]
    for number, index in enumerate(operators[place].numbers("inputs")):
        tensor = graph.tables("tensors")[index]
        data = data_of(buffers[tensor.integer("buffer")])
        if data:
            values = np.frombuffer(data, np.float32).reshape(tensor.numbers("shape")).copy()
            stored = change(values, number).astype(np.float32).tobytes()
            buffers[tensor.integer("buffer")] = Table("Buffer", {"data": Vector("u8", stored)})
    path.write_bytes(pack(model.but(buffers=tuple(buffers)), SCHEMA, IDENTIFIER))
    return source.model_copy(update={"path": path})


def types(path: Path) -> dict[str, tuple[str, str]]:
    """Type of the weights and type computed in, of every layer of a file."""
    from edgeopt.formats.tflite.graph import layers as tflite_layers

    return {layer.name: (layer.weight, layer.activation) for layer in tflite_layers.read(path)}
