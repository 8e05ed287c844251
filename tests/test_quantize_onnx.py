"""Float ONNX to int8: accuracy, what stays float, determinism, memory, and no overflow by construction."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats import onnx as onnx_files
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.quantize_onnx import QuantizeOnnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


class Noise(Dataset):
    """Random images, made one by one."""

    count: int = 64
    shape: tuple[int, ...] = (3, 16, 16)
    broken: bool = False

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(5)
        for _ in range(self.count):
            values = random.standard_normal(self.shape).astype(np.float32)
            yield Sample((values * np.float32("nan") if self.broken else values,))

    def digest(self) -> str:
        return "noise"


def toy(path: Path) -> Model:
    """conv, depthwise conv, global pool, dense, softmax."""
    random = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 5), "b3": (5,)}
    constants = [
        onnx.numpy_helper.from_array((random.standard_normal(shape) / 3).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], name="depthwise", group=8),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "w3", "b3"], ["logits"], name="dense"),
        node("Softmax", ["logits"], ["probabilities"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "toy",
        [info("image", 1, [1, 3, 16, 16])],
        [info("probabilities", 1, [1, 5])],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    spec = TensorSpec(name="image", shape=(1, 3, 16, 16), layout="NCHW")
    return Model(format="onnx", path=path, inputs=(spec,))


def context(folder: Path, data: Dataset | None, preprocessing: Preprocessing | None = None) -> Context:
    folder.mkdir(parents=True)
    feed = Feed(data, preprocessing or Preprocessing()) if data is not None else None
    return Context(folder, feed, lambda line: None)


def outputs(path: Path, samples: list[np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: sample[np.newaxis]})[0] for sample in samples])


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def test_toy_is_int8_and_close(tmp_path: Path) -> None:
    source = toy(tmp_path / "toy.onnx")
    result = QuantizeOnnx().run(source, context(tmp_path / "out", Noise()))
    samples = [sample.inputs[0] for sample in Noise(count=16).samples()]
    assert snr_db(outputs(source.path, samples), outputs(result.path, samples)) > 30
    assert result.inputs == source.inputs
    assert result.outputs[0].shape == (1, 5)
    assert onnx_files.float_weighted(onnx_files.load(result.path)) == []
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.onnx"]


def weight_types(path: Path) -> set[str]:
    proto = onnx_files.load(path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found = [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    return {constants[name].dtype.name for name in found if name in constants}


def test_unsigned_weights_are_the_same_numbers(tmp_path: Path) -> None:
    """uint8 x uint8 cannot overflow on AVX2, and differs from int8 weights in nothing."""
    source = toy(tmp_path / "toy.onnx")
    unsigned = QuantizeOnnx().run(source, context(tmp_path / "u8", Noise()))
    signed = QuantizeOnnx(weight_type="int8", reduce_range=False).run(
        source, context(tmp_path / "s8", Noise())
    )
    assert weight_types(unsigned.path) == {"uint8", "int32"}
    assert weight_types(signed.path) == {"int8", "int32"}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    image = next(Noise().samples()).inputs[0][np.newaxis]
    found = [
        ort.InferenceSession(str(m.path), options, providers=["CPUExecutionProvider"]).run(
            None, {"image": image}
        )
        for m in (unsigned, signed)
    ]
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_signed_activations_need_signed_weights() -> None:
    with pytest.raises(ValueError, match="choose int8 both"):
        QuantizeOnnx(activation_type="int8", weight_type="uint8")


def test_float_file_has_float_weights(tmp_path: Path) -> None:
    proto = onnx_files.load(toy(tmp_path / "toy.onnx").path)
    assert onnx_files.float_weighted(proto) == ["Conv first", "Conv depthwise", "Gemm dense"]


def test_a_layer_left_float_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime import quantization

    original = quantization.quantize_static

    def leave_out(*arguments: object, **options: object) -> None:
        original(*arguments, **options, nodes_to_exclude=["depthwise"])

    monkeypatch.setattr(quantization, "quantize_static", leave_out)
    with pytest.raises(StageError, match="Conv depthwise"):
        QuantizeOnnx().run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out", Noise()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs calibration data"),
        (Noise(count=0), "calibration data is empty"),
        (Noise(broken=True), "sample 0 holds NaN"),
        (Noise(shape=(3, 8, 8)), r"has the shape \[1, 3, 8, 8\]"),
    ],
)
def test_unusable_calibration_is_explained(tmp_path: Path, data: Dataset | None, message: str) -> None:
    with pytest.raises(StageError, match=message):
        QuantizeOnnx().run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out", data))


SCRIPT = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from edgeopt.model import content_digest
from test_quantize_onnx import Noise, QuantizeOnnx, context, toy
folder = Path(sys.argv[1])
source = toy(folder.with_suffix(".onnx"))
result = QuantizeOnnx().run(source, context(folder, Noise(count=int(sys.argv[2]))))
print(content_digest(result.path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fresh(folder: Path, count: int, seed: int) -> tuple[str, int]:
    """Digest and peak kilobytes of one quantization in a process of its own."""
    path = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent)), str(folder), str(count)],
        env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, peak = run.stdout.split()[-2:]
    return digest, int(peak)


def test_deterministic_across_processes_and_memory_does_not_grow(tmp_path: Path) -> None:
    first, few = fresh(tmp_path / "a", 256, 1)
    again, _ = fresh(tmp_path / "b", 256, 2)
    _, many = fresh(tmp_path / "c", 4096, 3)
    assert first == again
    assert many <= 1.2 * few


REAL = """
import sys
from pathlib import Path
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_onnx import KerasToOnnx
model = Model(format="tf_keras", path=Path(sys.argv[1]))
print(KerasToOnnx().run(model, Context(Path(sys.argv[2]), None, print)).model_dump_json())
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
    run = subprocess.run(
        [sys.executable, "-c", REAL, str(data / "mlperf-tiny" / name), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    source = Model.model_validate_json(run.stdout.strip().splitlines()[-1])
    result = QuantizeOnnx().run(source, context(tmp_path / "out", Stored(file=data / calibration)))
    kept = list(Stored(file=data / evaluation).samples())
    samples = [sample.inputs[0].astype(np.float32) for sample in kept]
    labels = np.array([sample.label for sample in kept])
    before, after = outputs(source.path, samples), outputs(result.path, samples)
    drop = np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels)
    assert drop <= 0.01
    assert np.mean(before.argmax(1) == after.argmax(1)) > 0.96
    assert snr_db(before, after) > least_snr
    assert result.path.stat().st_size <= most_bytes
