"""Float ONNX to int8 and 16x8: types in the file, accuracy, memory, and no overflow by construction."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.errors import StageError
from edgeopt.evaluation.tasks.regression import Regression
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize import calibration as onnx_calibration
from edgeopt.formats.onnx.quantize import moments as onnx_moments
from edgeopt.formats.onnx.quantize import overflow as onnx_overflow
from edgeopt.formats.onnx.quantize import qdq as onnx_qdq
from edgeopt.formats.onnx.quantize import weight_encoding as onnx_weight_encoding
from edgeopt.formats.onnx.quantize.qdq import Making
from edgeopt.formats.onnx.quantize.weights import Weights
from edgeopt.formats.weight_rounding import Compensation
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Head, Judging, Sample, Trial
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store
from edgeopt.stages._search import Budget
from edgeopt.stages.quantize_onnx import QuantizeOnnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


class Noise(Dataset):
    """Random images, generated one by one."""

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
    return Context(folder, feed, lambda line: None, note=lambda line: None, trial=lambda trial: None)


def outputs(path: Path, samples: list[np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: sample[np.newaxis]})[0] for sample in samples])


def flat_outputs(path: Path, inputs: list, **options: bool) -> np.ndarray:
    """The only output, ``[n, values]``."""
    (array,) = onnx_calibration.outputs(path, inputs, **options).arrays
    return array.reshape(len(array), -1)


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def test_toy_is_int8_and_close(tmp_path: Path) -> None:
    source = toy(tmp_path / "toy.onnx")
    result = QuantizeOnnx().run(source, context(tmp_path / "out", Noise()))
    samples = [sample.inputs[0] for sample in Noise(count=16).samples()]
    assert snr_db(outputs(source.path, samples), outputs(result.path, samples)) > 30
    assert result.inputs == source.inputs
    assert result.outputs[0].shape == (1, 5)
    assert onnx_model_file.float_weighted(onnx_model_file.load(result.path)) == []
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.onnx"]


def weight_types(path: Path) -> set[str]:
    proto = onnx_model_file.load(path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found = [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    return {constants[name].dtype.name for name in found if name in constants}


def test_unsigned_weights_are_the_same_numbers(tmp_path: Path) -> None:
    """uint8 x uint8 cannot overflow on AVX2, and is otherwise identical to int8 weights."""
    source = toy(tmp_path / "toy.onnx")
    unsigned = QuantizeOnnx(weight_type="uint8").run(source, context(tmp_path / "u8", Noise()))
    signed = QuantizeOnnx(weight_type="int8").run(source, context(tmp_path / "s8", Noise()))
    assert weight_types(unsigned.path) == {"uint8", "int32"}
    assert weight_types(signed.path) == {"int8", "int32"}
    found = [flat_outputs(m.path, images(1), as_written=True) for m in (unsigned, signed)]
    np.testing.assert_array_equal(found[0], found[1])


def images(count: int) -> list[tuple[np.ndarray, ...]]:
    return [(sample.inputs[0][np.newaxis],) for sample in Noise(count=count).samples()]


def loud(path: Path) -> Model:
    """A convolution with only large weights: sums of full-range int8 products far exceed 16 bits."""
    random = np.random.default_rng(7)
    weights = (random.uniform(0.7, 1.0, (8, 16, 3, 3)) * random.choice([-1, 1], (8, 16, 1, 1))).astype(
        np.float32
    )
    rows = random.uniform(-1, 1, (8, 6)).astype(np.float32)
    node = onnx.helper.make_node
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["image", "w"], ["c"], name="loud"),
            node("GlobalMaxPool", ["c"], ["pooled"]),
            node("Flatten", ["pooled"], ["flat"]),
            node("MatMul", ["flat", "m"], ["y"], name="dense"),
        ],
        "loud",
        [info("image", 1, [1, 16, 16, 16])],
        [info("y", 1, [1, 6])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(rows, "m")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    spec = TensorSpec(name="image", shape=(1, 16, 16, 16), layout="NCHW")
    return Model(format="onnx", path=path, inputs=(spec,))


def largest_pair_of_products(path: Path) -> int:
    """By brute force over all pairs of int8 weights of an output channel, with the worst uint8 inputs."""
    proto = onnx_model_file.load(path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    worst = 0
    for values in constants.values():
        if values.dtype != np.int8 or values.ndim < 2:
            continue
        rows = values.reshape(len(values), -1) if values.ndim == 4 else values.T
        for row in rows.astype(np.int64):
            first, second = np.triu_indices(len(row), 1)
            above = 255 * np.maximum(row[first], 0) + 255 * np.maximum(row[second], 0)
            below = 255 * np.minimum(row[first], 0) + 255 * np.minimum(row[second], 0)
            worst = max(worst, int(above.max()), int(-below.min()) - 1)
    return worst


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": False}, {"rounding": "nearest"}, {"reduce_range": True}]
)
def test_no_pair_of_products_can_leave_16_bits(tmp_path: Path, options: dict[str, object]) -> None:
    source = loud(tmp_path / "loud.onnx")
    data = Noise(shape=(16, 16, 16), count=16)
    full = QuantizeOnnx(weight_type="int8").run(source, context(tmp_path / "full", data))
    assert largest_pair_of_products(full.path) > 60_000
    assert max(onnx_overflow.worst_pairs(onnx_model_file.load(full.path)).values()) > 60_000
    safe = QuantizeOnnx(**options).run(source, context(tmp_path / "safe", data))
    assert weight_types(safe.path) == {"int8"}
    assert largest_pair_of_products(safe.path) <= 32_767
    assert max(onnx_overflow.worst_pairs(onnx_model_file.load(safe.path)).values()) <= 32_767
    kept = [(sample.inputs[0][np.newaxis],) for sample in data.samples()]
    found = [flat_outputs(path, kept) for path in (source.path, safe.path)]
    assert snr_db(*found) > 35


def test_only_the_layers_that_lose_get_the_slow_form() -> None:
    """Three layers; the fast form of one is much worse, that of another slightly."""
    random = np.random.default_rng(4)
    reference = random.standard_normal((200, 10)).astype(np.float32)
    noise = {name: random.standard_normal(reference.shape) for name in ("a", "b", "c", "rest")}
    loss = {"a": 0.001, "b": 0.2, "c": 0.02, "rest": 0.03}

    def fidelity(forms: onnx_weight_encoding.Encodings) -> onnx_weight_encoding.Fidelity:
        made = reference + sum(loss[n] * noise[n] for n in loss if forms.get(n) != "unsigned")
        agreement = float((made.argmax(axis=1) == reference.argmax(axis=1)).mean())
        return onnx_weight_encoding.Fidelity(snr_db(reference, made), agreement, len(made))

    forms, remark = onnx_weight_encoding.choose(["a", "b", "c"], {"a": 9, "b": 9, "c": 9}, fidelity)
    assert forms == {"a": "safe", "b": "unsigned", "c": "safe"}
    assert "1 of 3 layers have uint8 weights" in remark
    loss["b"] = 0.01
    forms, remark = onnx_weight_encoding.choose(["a", "b", "c"], {}, fidelity)
    assert set(forms.values()) == {"safe"}
    assert "cannot overflow on any x86" in remark


def test_compensated_rounding_leaves_less_error_in_the_output() -> None:
    random = np.random.default_rng(8)
    inputs = random.standard_normal((4000, 32)) @ random.standard_normal((32, 32))
    rows = random.standard_normal((6, 32))
    scales = np.abs(rows).max(axis=1) / 7
    nearest = np.rint(rows / scales[:, np.newaxis])
    most = np.full_like(rows, 7)
    found = Compensation((inputs.T @ inputs)[np.newaxis]).round(rows, scales, -most, most)
    errors = [np.square(inputs @ (q * scales[:, np.newaxis] - rows).T).mean() for q in (nearest, found)]
    assert errors[1] < 0.6 * errors[0]
    assert np.array_equal(found, np.rint(found))
    assert np.abs(found).max() <= 7


@pytest.mark.parametrize(
    ("shape", "weights", "options"),
    [
        ((1, 4, 9, 8), (6, 4, 3, 2), {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
        ((1, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 4, 9, 8), (4, 1, 4, 4), {"group": 4, "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
        ((1, 3, 20), (5, 3, 4), {"strides": [3]}),
    ],
)
def test_moments_are_those_of_what_a_convolution_weighs(
    tmp_path: Path, shape: tuple[int, ...], weights: tuple[int, ...], options: dict[str, object]
) -> None:
    """The output is patches times weights, so the moments determine its power."""
    random = np.random.default_rng(1)
    values = random.standard_normal(weights).astype(np.float32)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **options)],
        "one",
        [info("x", 1, shape)],
        [info("y", 1, None)],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "one.onnx"
    onnx.save(model, str(path))
    sample = random.standard_normal(shape).astype(np.float32)
    found = onnx_moments.collect(path, iter([{"x": sample}]), 1)["conv"].second
    output = onnx_calibration.session(path).run(None, {"x": sample})[0]
    power = np.square(output).sum(axis=(0, *range(2, output.ndim)))
    rows = values.reshape(len(found), -1, found.shape[-1]).astype(np.float64)
    expected = np.einsum("gok,gkl,gol->go", rows, found, rows).reshape(-1)
    np.testing.assert_allclose(power, expected, rtol=1e-4)


def test_the_bias_takes_up_the_mean_of_what_rounding_leaves(tmp_path: Path) -> None:
    """Inputs far from zero that hardly vary: their moments around the mean are tiny, but no noise."""
    random = np.random.default_rng(2)
    weights = random.standard_normal((24, 4)).astype(np.float32)
    biases = np.zeros(4, np.float32)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")],
        "one",
        [info("x", 1, [1, 24])],
        [info("y", 1, [1, 4])],
        [onnx.numpy_helper.from_array(values, name) for name, values in {"w": weights, "b": biases}.items()],
    )
    path = tmp_path / "one.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    means = random.uniform(50, 100, (1, 24))
    samples = [(means + 1e-3 * random.standard_normal((1, 24))).astype(np.float32) for _ in range(40)]
    moments = onnx_moments.collect(path, ({"x": each} for each in samples), len(samples))
    assert np.linalg.eigvalsh(moments["dense"].central[0]).min() > 0
    np.testing.assert_allclose(moments["dense"].mean, means, rtol=1e-4)
    ranges = {"x": (0.0, 100.0), "y": (-2000.0, 2000.0)}
    onnx_calibration.save(ranges, tmp_path / "ranges.json")
    made = onnx_qdq.make(
        path, tmp_path / "ranges.json", tmp_path / "full.onnx", {"dense": "int8"}, Making("uint8")
    )
    Weights({"w_quantized": weights}, moments).rewrite(made, {"dense": "full"})
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    layer = onnx_overflow.stored(made)[0]
    stored, scale = (constants[name].astype(np.float64) for name in layer.weight.input[:2])
    bias, step = (constants[name].astype(np.float64) for name in layer.bias.input[:2])
    shift = means @ (stored * scale - weights)
    assert np.abs(shift).max() > 1.0
    np.testing.assert_allclose(bias * step, -shift[0], atol=0.6 * step.max() + 1e-3)


def test_signed_activations_need_signed_weights() -> None:
    with pytest.raises(ValueError, match="choose int8 for both"):
        QuantizeOnnx(activation_type="int8", weight_type="uint8")


def test_float_file_has_float_weights(tmp_path: Path) -> None:
    proto = onnx_model_file.load(toy(tmp_path / "toy.onnx").path)
    assert onnx_model_file.float_weighted(proto) == ["Conv first", "Conv depthwise", "Gemm dense"]


def test_a_layer_left_float_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime import quantization

    original = quantization.quantize_static

    def leave_out(*arguments: object, **options: object) -> None:
        original(*arguments, **{**options, "nodes_to_exclude": ["depthwise"]})

    monkeypatch.setattr(quantization, "quantize_static", leave_out)
    with pytest.raises(StageError, match="Conv depthwise"):
        QuantizeOnnx().run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out", Noise()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs calibration data"),
        (Noise(count=0), "calibration data is empty"),
        (Noise(broken=True), "sample 0 contains NaN"),
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
from edgeopt.config.files import content_digest
from test_quantize_onnx import Noise, QuantizeOnnx, context, toy
folder = Path(sys.argv[1])
source = toy(folder.with_suffix(".onnx"))
result = QuantizeOnnx().run(source, context(folder, Noise(count=int(sys.argv[2]))))
print(content_digest(result.path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fresh(folder: Path, count: int, seed: int) -> tuple[str, int]:
    """Digest and peak kilobytes of one quantization in a separate process."""
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


def residual(path: Path) -> Model:
    """A convolution behind the Relu of a sum, which the quantizer merges into the sum."""
    random = np.random.default_rng(5)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3)}
    constants = [
        onnx.numpy_helper.from_array((random.standard_normal(shape) / 4).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], ["sum"], name="add"),
        node("Relu", ["sum"], ["r2"], name="relu2"),
        node("Conv", ["r2", "w3"], ["c3"], name="third", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c3"], ["pooled"], name="pool"),
    ]
    info = onnx.helper.make_tensor_value_info
    ends = [info("image", 1, [1, 3, 16, 16])], [info("pooled", 1, [1, 8, 1, 1])]
    graph = onnx.helper.make_graph(nodes, "residual", *ends, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    spec = TensorSpec(name="image", shape=(1, 3, 16, 16), layout="NCHW")
    return Model(format="onnx", path=path, inputs=(spec,))


@pytest.mark.parametrize("pattern", ["third", "*"])
def test_a_layer_in_float_behind_the_relu_of_a_sum_still_has_that_relu(tmp_path: Path, pattern: str) -> None:
    source = residual(tmp_path / "residual.onnx")
    stage = QuantizeOnnx(layers={pattern: "float32"})
    result = stage.run(source, context(tmp_path / "out", Noise()))
    samples = [inputs[0][0] for inputs in images(16)]
    expected, found = outputs(source.path, samples), outputs(result.path, samples)
    assert snr_db(expected, found) > 30


def layers_of(model: Model) -> dict[str, tuple[str, str]]:
    """Types of the inputs and weights of every layer, as the file has them."""
    return {
        layer.name: (layer.activation, layer.weight)
        for layer in onnx_layers.read(onnx_model_file.load(model.path))
    }


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_inputs_and_outputs_of_8_bits(tmp_path: Path, activation: str) -> None:
    source = toy(tmp_path / "toy.onnx")
    stage = QuantizeOnnx(io="int8", activation_type=activation)
    result = stage.run(source, context(tmp_path / "out", Noise()))
    assert max(onnx_overflow.worst_pairs(onnx_model_file.load(result.path)).values()) <= 32_767
    (given,), (made,) = result.inputs, result.outputs
    assert (given.name, given.dtype, made.name, made.dtype) == (
        "image",
        activation,
        "probabilities",
        activation,
    )
    assert given.scale and made.scale and given.zero_point is not None and made.zero_point is not None
    run = onnx_calibration.session(result.path)
    assert [value.type for value in (*run.get_inputs(), *run.get_outputs())] == [f"tensor({activation})"] * 2
    ends = np.iinfo(activation)
    found = []
    for (image,) in images(16):
        stored = np.clip(np.rint(image / given.scale) + given.zero_point, ends.min, ends.max)
        answer = run.run(None, {"image": stored.astype(activation)})[0]
        found.append((answer.astype(np.float32) - made.zero_point) * made.scale)
    assert snr_db(flat_outputs(source.path, images(16)), np.concatenate(found)) > 28


def test_a_run_sees_integers_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    source = toy(tmp_path / "toy.onnx")
    result = QuantizeOnnx(io="int8").run(source, context(tmp_path / "out", Noise()))
    bench = Bench(load_device("host"), build_agent(tmp_path / "agent.pyz"), Store(tmp_path / "store")).open()
    (tmp_path / "data").mkdir()
    outcome = bench.run(result, Evaluation(Noise(), Preprocessing(), tmp_path / "data"))
    expected = flat_outputs(source.path, images(16))
    assert outcome.outputs[0].dtype == np.float32
    assert snr_db(expected, outcome.outputs[0][:16]) > 28


def test_integer_ends_beside_float_layers(tmp_path: Path) -> None:
    """The first and the last layer in float: inputs and outputs of the file still have 8 bits."""
    stage = QuantizeOnnx(io="int8", layers={"first": "float32", "dense": "float32"})
    result = stage.run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out", Noise()))
    assert (result.inputs[0].dtype, result.outputs[0].dtype) == ("uint8", "uint8")
    assert {name: weight for name, (_, weight) in layers_of(result).items()} == {
        "first": "float32",
        "depthwise": "int8",
        "dense": "float32",
    }


def test_16_bit_activations(tmp_path: Path) -> None:
    source = toy(tmp_path / "toy.onnx")
    wide = QuantizeOnnx(scheme="int8x16").run(source, context(tmp_path / "wide", Noise()))
    assert set(layers_of(wide).values()) == {("int16", "int8")}
    mixed = QuantizeOnnx(layers={"f*t": "int16", "dense": "float32"}).run(
        source, context(tmp_path / "mixed", Noise())
    )
    found = layers_of(mixed)
    assert (found["first"], found["depthwise"]) == (("int16", "int8"), ("uint8", "int8"))
    assert found["dense"][1] == "float32"
    plain = QuantizeOnnx().run(source, context(tmp_path / "plain", Noise()))
    expected = flat_outputs(source.path, images(16))
    snr = {
        name: snr_db(expected, flat_outputs(made.path, images(16)))
        for name, made in (("plain", plain), ("wide", wide))
    }
    assert snr["wide"] > snr["plain"] + 5


def test_a_pattern_that_fits_no_layer_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no layer is called 'depthwize'") as caught:
        QuantizeOnnx(layers={"depthwize": "float32"}).run(
            toy(tmp_path / "toy.onnx"), context(tmp_path / "out", Noise())
        )
    assert "such as depthwise" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int8x16", "io": "int8"}, "no 8-bit inputs"),
        ({"scheme": "int8x16", "layers": {"a": "int8"}}, "16 bits between all layers"),
        ({"weight_type": "uint8", "reduce_range": True}, "uint8 weights cannot overflow"),
    ],
)
def test_options_that_contradict(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizeOnnx(**options)


def test_one_calibration_sample_works_and_is_remarked_on(tmp_path: Path) -> None:
    notes: list[str] = []
    where = context(tmp_path / "out", Noise(count=1))._replace(note=notes.append)
    result = QuantizeOnnx().run(toy(tmp_path / "toy.onnx"), where)
    assert any("only 1 calibration sample:" in note for note in notes)
    # One sample may favour either encoding of the weights.
    assert set(layers_of(result).values()) <= {("uint8", "int8"), ("uint8", "uint8")}


def test_a_quantized_file_is_not_quantized_again(tmp_path: Path) -> None:
    once = QuantizeOnnx().run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out", Noise()))
    with pytest.raises(StageError, match="first has int8 weights"):
        QuantizeOnnx().run(once, context(tmp_path / "again", Noise()))


class Spiky(Noise):
    """Noise with one value in ten thousand a hundred times as large, which dominates the range."""

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(9)
        for sample in super().samples():
            values = sample.inputs[0]
            yield Sample((np.where(random.random(values.shape) < 1e-4, 100, values).astype(np.float32),))


def test_calibrators_differ_where_outliers_are(tmp_path: Path) -> None:
    source = toy(tmp_path / "toy.onnx")
    scales = {}
    for calibrator in ("minmax", "percentile", "entropy", "mse"):
        stage = QuantizeOnnx(calibrator=calibrator, percentile=99.9, io="int8", weight_type="int8")
        result = stage.run(source, context(tmp_path / calibrator, Spiky(count=64)))
        scales[calibrator] = result.inputs[0].scale
    assert scales["minmax"] == pytest.approx((100 + 4.1) / 255, rel=0.02)
    assert scales["percentile"] < scales["minmax"] / 8
    assert scales["entropy"] < scales["minmax"] / 2
    assert scales["mse"] < scales["minmax"]
    assert len(set(scales.values())) == 4


REAL = """
import sys
from pathlib import Path
from edgeopt.model import Model
from edgeopt.plugin import Context, Head
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


@pytest.fixture(scope="module")
def keywords(tmp_path_factory: pytest.TempPathFactory, needs_real_data: Path) -> Model:
    """The keyword model of MLPerf Tiny, as float ONNX."""
    return converted(needs_real_data / "mlperf-tiny" / "kws_ref_model", tmp_path_factory.mktemp("kws"))


def converted(path: Path, folder: Path) -> Model:
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("needs the extra 'keras'")
    run = subprocess.run(
        [sys.executable, "-c", REAL, str(path), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Model.model_validate_json(run.stdout.strip().splitlines()[-1])


def judged(source: Model, result: Model, file: Path) -> tuple[float, float, float]:
    """Accuracy lost, agreement and SNR on a file of samples, as this processor runs it."""
    kept = list(Stored(file=file).samples())
    samples = [(sample.inputs[0][np.newaxis].astype(np.float32),) for sample in kept]
    labels = np.array([sample.label for sample in kept])
    before, after = (flat_outputs(model.path, samples) for model in (source, result))
    drop = float(np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels))
    return drop, float(np.mean(before.argmax(1) == after.argmax(1))), snr_db(before, after)


@pytest.mark.slow
def test_keywords_keep_their_answers_on_any_x86(
    tmp_path: Path, keywords: Model, needs_real_data: Path
) -> None:
    """Less than a point lost, and no overflow where full-range int8 has 8 % accuracy."""
    notes: list[str] = []
    where = context(tmp_path / "out", Stored(file=needs_real_data / "kws" / "calibration100.npz"))
    result = QuantizeOnnx().run(keywords, where._replace(note=notes.append))
    drop, agreement, snr = judged(keywords, result, needs_real_data / "kws" / "evaluation400.npz")
    assert drop <= 0.01
    assert agreement >= 0.97
    assert snr > 25
    assert set(layers_of(result).values()) == {("uint8", "int8")}
    assert max(onnx_overflow.worst_pairs(onnx_model_file.load(result.path)).values()) <= 32_767
    assert result.path.stat().st_size <= 53_936
    assert any("cannot overflow on any x86" in note for note in notes)


@pytest.mark.slow
def test_keywords_with_16_bit_activations(tmp_path: Path, keywords: Model, needs_real_data: Path) -> None:
    where = context(tmp_path / "out", Stored(file=needs_real_data / "kws" / "calibration100.npz"))
    result = QuantizeOnnx(scheme="int8x16").run(keywords, where)
    drop, agreement, snr = judged(keywords, result, needs_real_data / "kws" / "evaluation400.npz")
    assert set(layers_of(result).values()) == {("int16", "int8")}
    assert drop <= 0.005
    assert agreement >= 0.98
    assert snr > 30
    assert result.path.stat().st_size <= 60_000


@pytest.mark.slow
def test_resnet8_loses_less_than_a_point(tmp_path: Path, needs_real_data: Path) -> None:
    source = converted(needs_real_data / "mlperf-tiny" / "resnet8.h5", tmp_path)
    where = context(tmp_path / "out", Stored(file=needs_real_data / "cifar10" / "calibration512.npz"))
    result = QuantizeOnnx().run(source, where)
    drop, agreement, snr = judged(source, result, needs_real_data / "cifar10" / "test446.npz")
    assert drop <= 0.007
    assert agreement >= 0.97
    assert snr > 22
    assert result.path.stat().st_size <= 110_000


def hostile(source: Model, folder: Path) -> Model:
    """The same function, with some channels between the first two layers up to a hundred times as large."""
    folder.mkdir()
    onnx_calibration.prepare(source.path, folder / "model.onnx")
    proto = onnx_model_file.load(folder / "model.onnx")
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    first, second = [node for node in proto.graph.node if node.op_type == "Conv"][:2]
    channels = constants[second.input[1]].dims[0]
    factors = np.ones(channels, np.float32)
    factors[::8] = 100
    for name, by in ((first.input[1], factors), (first.input[2], factors), (second.input[1], 1 / factors)):
        values = onnx.numpy_helper.to_array(constants[name])
        scaled = values * by.reshape(-1, *[1] * (values.ndim - 1))
        constants[name].CopyFrom(onnx.numpy_helper.from_array(scaled, name))
    onnx.save(proto, str(folder / "model.onnx"))
    return source.model_copy(update={"path": folder / "model.onnx"})


@pytest.mark.slow
def test_a_hostile_model_is_searched_for_the_layers_that_matter(
    tmp_path: Path, keywords: Model, needs_real_data: Path
) -> None:
    source = hostile(keywords, tmp_path / "hostile")
    data = Stored(file=needs_real_data / "kws" / "calibration100.npz")
    trials: list[Trial] = []
    stage = QuantizeOnnx(scheme="mixed", max_drop=0.005, budget=Budget(trials=20, minutes=2))
    result = stage.run(source, context(tmp_path / "out", data)._replace(trial=trials.append))
    assert trials[0].drop > 0.02
    (chosen,) = [trial for trial in trials if trial.status == "chosen"]
    assert chosen.drop <= 0.005
    assert len(trials) <= 20
    found = {name for name, (_, weight) in layers_of(result).items() if weight == "float32"}
    assert found == set(chosen.raised)
    assert 1 <= len(found) <= 3
    drop, agreement, _ = judged(source, result, needs_real_data / "kws" / "evaluation400.npz")
    assert drop <= 0.02
    assert agreement >= 0.94


def test_values_that_no_node_produces_are_not_observed(tmp_path: Path) -> None:
    """Of an output that nobody reads, as the last state of a GRU, the optimizer leaves the description."""
    floats = onnx.TensorProto.FLOAT
    x, y, gone = (onnx.helper.make_tensor_value_info(name, floats, [1, 2]) for name in ("x", "y", "gone"))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], value_info=[gone]
    )
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path
    )
    seen: list[float] = []

    class Largest:
        def add(self, values: np.ndarray) -> None:
            seen.append(float(values.max()))

    observers, count = onnx_calibration.observe(path, iter([{"x": np.array([[1, 2]], np.float32)}]), Largest)
    assert (sorted(observers), count, seen) == (["x", "y"], 1, [2.0, 2.0])


def joined(folder: Path) -> Path:
    """Two layers whose outputs, of very different size, are joined in the model's output."""
    random, helper, floats = np.random.default_rng(0), onnx.helper, onnx.TensorProto.FLOAT
    weights = {name: random.standard_normal((4, 3)).astype(np.float32) for name in ("w", "v")}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="large"),
        helper.make_node("MatMul", ["x", "v"], ["b"], name="small"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Concat", ["a", "c"], ["d"], name="join", axis=1),
        helper.make_node("Flatten", ["d"], ["y"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", floats, [1, 4])],
        [helper.make_tensor_value_info("y", floats, [1, 6])],
        [
            onnx.numpy_helper.from_array(value * (100 if name == "w" else 1), name)
            for name, value in weights.items()
        ],
    )
    path = folder / "joined.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_search_keeps_the_scales_of_joined_outputs_apart(tmp_path: Path) -> None:
    path = joined(tmp_path)
    assert set(onnx_layers.joined_outputs(onnx.load(path))) == {"join", "flat"}

    class Rows(Dataset):
        def samples(self) -> Iterator[Sample]:
            random = np.random.default_rng(1)
            for _ in range(64):
                yield Sample((random.standard_normal(4).astype(np.float32),))

        def digest(self) -> str:
            return "rows"

    trials: list[Trial] = []
    model = Model(format="onnx", path=path, inputs=(TensorSpec(name="x", shape=(1, 4)),))
    context = Context(
        tmp_path, Feed(Rows(), Preprocessing()), lambda _: None, note=lambda _: None, trial=trials.append
    )
    # As numbers, each counts by its error relative to all: only a search by parts would see the small ones.
    context = context._replace(judging=Judging(heads=(Head("", Regression()),)))
    made = QuantizeOnnx(max_drop=1e-5).run(model, context)
    (chosen,) = [trial for trial in trials if trial.status == "chosen"]
    assert "joined outputs" in chosen.raised
    kinds = [node.op_type for node in onnx.load(made.path).graph.node]
    assert kinds[-2:] == ["Concat", "Flatten"]
