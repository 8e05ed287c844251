"""Float TFLite to int8: accuracy, size, what stays float, determinism and memory."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats import tflite
from edgeopt.model import Model, Preprocessing, content_digest
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.quantize_tflite import QuantizeTflite

if any(importlib.util.find_spec(name) is None for name in ("ai_edge_quantizer", "tensorflow")):
    pytest.skip("needs the extra 'keras'", allow_module_level=True)

# The float model is made in a process of its own: TensorFlow stays out of this one.
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
folder = Path(sys.argv[1])
network.save(folder / "toy.keras")
model = Model(format="keras", path=folder / "toy.keras")
print(KerasToTflite().run(model, Context(folder, None, print)).model_dump_json())
"""


class Noise(Dataset):
    """Random images, made one by one."""

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


def python(script: str, *arguments: object, seed: int = 0) -> str:
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
    return run.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.model_validate_json(python(TOY, tmp_path_factory.mktemp("toy")))


def context(folder: Path, data: Dataset | None) -> Context:
    folder.mkdir(parents=True)
    return Context(folder, Feed(data, Preprocessing()) if data is not None else None, lambda line: None)


def outputs(path: Path, samples: list[np.ndarray]) -> np.ndarray:
    """Run one by one; integer inputs and outputs are converted with their scale and zero point."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for sample in samples:
        value = sample[np.newaxis]
        if taken["dtype"] == np.int8:
            scale, zero = taken["quantization"]
            value = np.clip(np.round(value / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(taken["index"], value)
        interpreter.invoke()
        result = interpreter.get_tensor(given["index"])
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            result = (result.astype(np.float32) - zero) * np.float32(scale)
        results.append(result)
    return np.concatenate(results)


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


@pytest.mark.parametrize("io", ["float32", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_toy_is_int8_and_close(tmp_path: Path, toy: Model, io: Any, per_channel: bool) -> None:
    stage = QuantizeTflite(io=io, per_channel=per_channel)
    result = stage.run(toy, context(tmp_path / "out", Noise()))
    samples = [sample.inputs[0] for sample in Noise(count=16).samples()]
    assert snr_db(outputs(toy.path, samples), outputs(result.path, samples)) > 30
    assert [spec.dtype for spec in (*result.inputs, *result.outputs)] == [io, io]
    assert [spec.name for spec in (*result.inputs, *result.outputs)] == ["image", "classes"]
    assert result.inputs[0].layout == "NHWC"
    assert (result.inputs[0].scale is not None) == (io == "int8")
    graph = tflite.read(result.path)
    ends = 1 if io == "float32" else 0
    assert (graph.count("QUANTIZE"), graph.count("DEQUANTIZE")) == (ends, ends)
    assert graph.float_weighted() == []
    inner = [op for op in graph.operators if op.kind not in {"QUANTIZE", "DEQUANTIZE"}]
    assert {dtype for op in inner for dtype in op.outputs} <= {"int8"}


def test_float_file_has_float_weights(toy: Model) -> None:
    kinds = [line.split()[0] for line in tflite.read(toy.path).float_weighted()]
    assert kinds == ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]


def test_a_layer_left_float_is_refused_by_name(
    tmp_path: Path, toy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library skips what its policy does not cover without a word; here the policy is made to skip."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    original = QuantizeTflite._recipe

    def without_depthwise(self: QuantizeTflite) -> Any:
        recipe = original(self)
        skipped = qtyping.TFLOperationName.DEPTHWISE_CONV_2D
        recipe.add_quantization_config(".*", skipped, algorithm_key=AlgorithmName.NO_QUANTIZE)
        return recipe

    monkeypatch.setattr(QuantizeTflite, "_recipe", without_depthwise)
    with pytest.raises(StageError, match="stayed float although int8 was asked for: DEPTHWISE_CONV_2D"):
        QuantizeTflite().run(toy, context(tmp_path / "out", Noise()))


def test_int8_file_is_not_quantized_again(tmp_path: Path, toy: Model) -> None:
    once = QuantizeTflite(io="int8").run(toy, context(tmp_path / "a", Noise()))
    with pytest.raises(StageError, match="quantized already"):
        QuantizeTflite().run(once, context(tmp_path / "b", Noise()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs calibration data"),
        (Noise(count=0), "calibration data is empty"),
        (Noise(broken=True), "sample 0 holds NaN"),
        (Noise(shape=(8, 8, 3)), r"has the shape \[1, 8, 8, 3\]"),
    ],
)
def test_unusable_calibration_is_explained(
    tmp_path: Path, toy: Model, data: Dataset | None, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        QuantizeTflite().run(toy, context(tmp_path / "out", data))


def test_not_a_tflite_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"not a model at all")
    with pytest.raises(StageError, match=r"x\.tflite is not a TFLite model"):
        tflite.read(path)


RUN = """
import resource, sys
from pathlib import Path
from edgeopt.model import Model
sys.path.insert(0, sys.argv[4])
from test_quantize_tflite import Noise, QuantizeTflite, content_digest, context
model = Model.model_validate_json(sys.argv[1])
result = QuantizeTflite().run(model, context(Path(sys.argv[2]), Noise(count=int(sys.argv[3]))))
assert "tensorflow" not in sys.modules
print(content_digest(result.path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_deterministic_across_processes_and_memory_does_not_grow(tmp_path: Path, toy: Model) -> None:
    here = Path(__file__).parent
    runs = [
        python(RUN, toy.model_dump_json(), tmp_path / str(seed), count, here, seed=seed).split()
        for seed, count in ((1, 256), (2, 256), (3, 4096))
    ]
    assert runs[0][0] == runs[1][0]
    assert int(runs[2][1]) <= 1.2 * int(runs[0][1])
    here_result = QuantizeTflite().run(toy, context(tmp_path / "here", Noise(count=256)))
    assert content_digest(here_result.path) == runs[0][0]


REAL = """
import sys
from pathlib import Path
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_tflite import KerasToTflite
model = Model(format="tf_keras", path=Path(sys.argv[1]))
print(KerasToTflite().run(model, Context(Path(sys.argv[2]), None, print)).model_dump_json())
"""


class Stored(Dataset):
    """Samples of an .npz file."""

    file: Path

    def samples(self) -> Iterator[Sample]:
        with np.load(self.file) as stored:
            values, labels = stored["x"], stored["y"]
        for value, label in zip(values, labels, strict=True):
            yield Sample((value,), int(label))

    def digest(self) -> str:
        return self.file.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "calibration", "evaluation", "least_snr", "most_bytes"),
    [
        ("kws_ref_model", "kws/calibration100.npz", "kws/evaluation400.npz", 25, 53_936),
        ("resnet8.h5", "cifar10/calibration512.npz", "cifar10/test446.npz", 20, 110_000),
    ],
)
def test_real_models_lose_less_than_a_point(
    tmp_path: Path, name: str, calibration: str, evaluation: str, least_snr: float, most_bytes: int
) -> None:
    if not os.environ.get("EDGEOPT_DATA"):
        pytest.skip("EDGEOPT_DATA is not set")
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("needs the extra 'keras'")
    data = Path(os.environ["EDGEOPT_DATA"])
    source = Model.model_validate_json(python(REAL, data / "mlperf-tiny" / name, tmp_path))
    result = QuantizeTflite().run(source, context(tmp_path / "out", Stored(file=data / calibration)))
    kept = list(Stored(file=data / evaluation).samples())
    samples = [sample.inputs[0].astype(np.float32) for sample in kept]
    labels = np.array([sample.label for sample in kept])
    before, after = outputs(source.path, samples), outputs(result.path, samples)
    drop = np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels)
    assert drop <= 0.01
    assert np.mean(before.argmax(1) == after.argmax(1)) > 0.96
    assert snr_db(before, after) > least_snr
    assert result.path.stat().st_size <= most_bytes
