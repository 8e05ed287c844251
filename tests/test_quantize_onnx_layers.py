"""Layers that onnxruntime quantizes wrongly, or not at all: what they become in each scheme."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.powers import NOTE
from edgeopt.formats.source import inspect
from edgeopt.model import Model, Preprocessing
from edgeopt.plugin import Context, Dataset, Sample, Stage
from edgeopt.plugin.dataset import Feed
from edgeopt.stages.quantize_onnx import QuantizeOnnx
from edgeopt.stages.quantize_weights_onnx import QuantizeWeightsOnnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")

POOLING = """
    net (float[1, 3, 17, 17] x) => (float[1, 5] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (c)
        p = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1,
                         count_include_pad = 1> (r)
        q = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (p)
        f = Flatten (q)
        y = MatMul (f, d)
    }
"""
UPSAMPLING = """
    net (float[1, 3, 9, 9] x) => (float[1, 8, 17, 17] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (c)
        y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], group = GROUPS> (r, u, v)
    }
"""
RECURRENT = """
    net (float[1, 7, 6] x) => (float[7, 1, 4] y, float[2, 1, 16] h) {
        i = Transpose <perm = [1, 0, 2]> (x)
        a, ah = GRU <hidden_size = 16, direction = "bidirectional", linear_before_reset = 1> (i, gw, gr, gb)
        t = Transpose <perm = [0, 2, 1, 3]> (a)
        shape = Constant <value = int64[3] {0, 0, -1}> ()
        s = Reshape (t, shape)
        l, lh, lc = LSTM <hidden_size = 16, direction = "bidirectional"> (s, lw, lr, lb)
        m = ReduceMean <axes = [1], keepdims = 0> (l)
        y = MatMul (m, d)
        h = Identity (lh)
    }
"""
POWERS = """
    net (float[1, 32, 6] x) => (float[1, 32, 5] y) {
        a = MatMul (x, w)
        a1 = Mul (fourth, a)
        a2 = Mul (a, a1)
        a3 = Mul (a2, a)
        a4 = Add (a, a3)
        a5 = Mul (a4, root)
        a6 = Tanh (a5)
        a7 = Add (a6, one)
        a8 = Mul (a7, half)
        g = Mul (a, a8)
        sum = ReduceMean <axes = [2]> (g)
        g2 = Mul (g, g)
        sums = ReduceMean <axes = [2]> (g2)
        sum2 = Mul (sum, sum)
        v = Sub (sums, sum2)
        positive = Max (v, zero)
        v1 = Add (positive, small)
        s = Sqrt (v1)
        r = Reciprocal (s)
        m = Sub (g, sum)
        n = Mul (m, r)
        y = MatMul (n, d)
    }
"""
"""GELU and the normalization of layers as JAX writes them."""


def normal(*shape: int, scale: float = 0.3) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).normal(0, scale, shape).astype(np.float32)


WEIGHTS = {
    "pooling": {"w": normal(8, 3, 3, 3), "b": normal(8), "d": normal(200, 5)},
    "upsampling": {"w": normal(8, 3, 3, 3), "b": normal(8), "v": normal(8)},
    "recurrent": {
        "gw": normal(2, 48, 6),
        "gr": normal(2, 48, 16),
        "gb": normal(2, 96),
        "lw": normal(2, 64, 32),
        "lr": normal(2, 64, 16),
        "lb": normal(2, 128),
        "d": normal(16, 4),
    },
}


class Smooth(Dataset):
    """Random walks, whose neighbours are alike as in data."""

    shape: tuple[int, ...]

    def samples(self) -> Iterator[Sample]:
        generator = np.random.default_rng(0)
        for _ in range(24):
            steps = generator.normal(0, 0.3, self.shape)
            yield Sample((np.cumsum(steps, axis=-1).astype(np.float32),), {})

    def digest(self) -> str:
        return str(self.shape)


def source(text: str, weights: dict[str, NDArray[np.float32]], folder: Path, version: int = 14) -> Model:
    graph = onnx.parser.parse_graph(text)
    for name, value in weights.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    opset = [onnx.helper.make_opsetid("", version)]
    path = folder / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return inspect(path).model


def quantize(stage: Stage, model: Model, folder: Path) -> tuple[Path, float, list[str]]:
    """The quantized file, the lowest SNR of its outputs in dB, and the notes."""
    notes: list[str] = []
    data = Smooth(shape=tuple(size or 1 for size in model.inputs[0].shape[1:]))
    target = folder / "quantized"
    target.mkdir()
    context = Context(target, Feed(data, Preprocessing()), lambda line: None, note=notes.append)
    path = stage.run(model, context).path
    rows = [sample.inputs[0][np.newaxis] for sample in data.samples()]
    before, after = (run(each, rows) for each in (model.path, path))
    noise = [
        10 * np.log10(np.square(a).sum() / max(np.square(a - b).sum(), 1e-30))
        for a, b in zip(before, after, strict=True)
    ]
    return path, float(min(noise)), notes


def run(path: Path, rows: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    columns = zip(*(session.run(None, {"x": row}) for row in rows), strict=True)
    return [np.stack(column).astype(np.float64) for column in columns]


def test_average_pools_that_round_up_stay_in_float(tmp_path: Path) -> None:
    """Their integer kernel divides by the wrong number of values, where the file as written is right."""
    model = source(POOLING, WEIGHTS["pooling"], tmp_path)
    path, snr, notes = quantize(QuantizeOnnx(), model, tmp_path)
    assert snr > 36  # 33.5 dB with the pools in int8, 15 dB on another network
    assert any("average pooling" in note and ": p, q" in note for note in notes)
    assert {layer.weight for layer in onnx_layers.read(onnx_model_file.load(path))} == {"int8"}


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_convolutions_of_groups(groups: int, tmp_path: Path) -> None:
    weights = WEIGHTS["upsampling"] | {"u": normal(8, 8 // groups, 3, 3)}
    model = source(UPSAMPLING.replace("GROUPS", str(groups)), weights, tmp_path)
    path, snr, _ = quantize(QuantizeOnnx(), model, tmp_path)
    assert snr > 30
    assert {layer.weight for layer in onnx_layers.read(onnx_model_file.load(path))} == {"int8"}


def test_variances_and_cubes_stay_in_float(tmp_path: Path) -> None:
    numbers = {"fourth": 0.044715, "root": 0.797885, "one": 1, "half": 0.5, "zero": 0, "small": 1e-6}
    weights = {name: np.array(value, np.float32) for name, value in numbers.items()}
    weights |= {"w": normal(6, 24, scale=1.5), "d": normal(24, 5)}
    model = source(POWERS, weights, tmp_path)
    path, snr, notes = quantize(QuantizeOnnx(), model, tmp_path)
    assert snr > 24  # 18.8 dB with them in int8
    assert NOTE in notes
    assert {layer.weight for layer in onnx_layers.read(onnx_model_file.load(path))} == {"int8"}


def test_transposed_convolutions_stay_in_float_in_dynamic_int8(tmp_path: Path) -> None:
    weights = WEIGHTS["upsampling"] | {"u": normal(8, 4, 3, 3)}
    model = source(UPSAMPLING.replace("GROUPS", "2"), weights, tmp_path)
    path, snr, notes = quantize(QuantizeWeightsOnnx(scheme="dynamic_int8"), model, tmp_path)
    assert snr > 35
    assert any("no dynamic kernel for them: y" in note for note in notes)
    found = {layer.kind: layer.weight for layer in onnx_layers.read(onnx_model_file.load(path))}
    assert found == {"ConvInteger": "uint8", "ConvTranspose": "float32"}


def test_recurrent_layers_in_four_bits(tmp_path: Path) -> None:
    model = source(RECURRENT, WEIGHTS["recurrent"], tmp_path)
    path, snr, _ = quantize(QuantizeWeightsOnnx(scheme="int4"), model, tmp_path)
    assert snr > 13
    layers = onnx_layers.read(onnx_model_file.load(path))
    assert [(layer.kind, layer.weight) for layer in layers] == [
        ("GRU", "int4"),
        ("LSTM", "int4"),
        ("MatMulNBits", "int4"),
    ]
    # 9,344 weights and 224 biases: half a byte for each weight, and the scales.
    assert path.stat().st_size < 9_000 < 35_000 < model.path.stat().st_size


def test_a_bias_that_layers_share(tmp_path: Path) -> None:
    """onnxruntime names its copies ``b0`` and ``b1``, which are the results of layers here."""
    text = """
    net (float[1, 3, 9, 9] x) => (float[1, 8, 7, 7] y) {
        b0 = Conv (x, w, b)
        n = Neg (b0)
        b1 = Conv (x, v, b)
        m = Neg (b1)
        c = Conv (x, w, b)
        a = Add (n, m)
        y = Add (a, c)
    }
    """
    weights = {"w": normal(8, 3, 3, 3), "v": normal(8, 3, 3, 3)[::-1].copy(), "b": normal(8)}
    _, snr, _ = quantize(QuantizeOnnx(), source(text, weights, tmp_path), tmp_path)
    assert snr > 25


SIAMESE = """
    net (float[1, 8, 9, 9] x) => (float[1, 12, 5, 5] y) {
        l = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        n = Neg (l)
        r = Conv <pads = [1, 1, 1, 1]> (n, w2, b)
        d = Sub (l, r)
        m = Conv (d, v, c)
        y = Conv (m, v2, c2)
    }
"""
"""Two layers with equal weights, and two without."""


def test_layers_with_equal_weights_share_them(tmp_path: Path) -> None:
    """As accurate as with weights of their own, in the fast encoding, and half as large."""
    w = normal(8, 8, 3, 3)
    weights = {"w": w, "w2": w, "b": normal(8), "v": normal(12, 8, 3, 3)}
    weights |= {"v2": normal(12, 12, 3, 3), "c": normal(12), "c2": 2 * normal(12)}
    model, results = source(SIAMESE, weights, tmp_path), []
    for shared in (False, True):
        proto = onnx_model_file.load(model.path)
        if shared:
            onnx_model_file.share_constants(proto)
            assert {t.name for t in proto.graph.initializer} == weights.keys() - {"w2"}
        model.path.write_bytes(proto.SerializeToString())
        (folder := tmp_path / str(shared)).mkdir()
        path, snr, _ = quantize(QuantizeOnnx(), model, folder)
        file = onnx_model_file.load(path)
        kept = [t for t in file.graph.initializer if list(t.dims) == list(w.shape)]
        assert len(kept) == 2 - shared and all(t.data_type == onnx.TensorProto.INT8 for t in kept)
        results.append(snr)
    assert results[1] > results[0] - 1 > 25


@pytest.mark.parametrize("shape", [(1, 5), (1,), (1, 1)])
def test_a_bias_of_a_matrix_product_in_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A product and a sum become one ``Gemm``, for which onnxruntime expects a bias of rank 1."""
    text = "net (float[1, 6] x) => (float[1, 5] y) { p = MatMul (x, w)  y = Add (p, b) }"
    weights = {"w": normal(6, 5), "b": normal(*shape)}
    _, snr, _ = quantize(QuantizeOnnx(), source(text, weights, tmp_path), tmp_path)
    assert snr > 25


@pytest.mark.parametrize("opset", [9, 11])
def test_int8_of_an_old_opset_has_a_scale_per_channel(tmp_path: Path, opset: int) -> None:
    text = """
        net (float[1, 3, 9, 9] x) => (float[1, 8, 9, 9] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }
    """
    model = source(text, {"w": normal(8, 3, 3, 3), "b": normal(8)}, tmp_path, opset)
    path, snr, _ = quantize(QuantizeOnnx(), model, tmp_path)
    assert snr > 30
    weights = next(t for t in onnx_model_file.load(path).graph.initializer if list(t.dims) == [8, 3, 3, 3])
    scale = next(t for t in onnx_model_file.load(path).graph.initializer if list(t.dims) == [8])
    assert weights.data_type == onnx.TensorProto.INT8 and scale.dims


def test_layers_inside_of_branches_are_said_to_be_there(tmp_path: Path) -> None:
    text = """
        net (float[1, 3, 9, 9] x, bool c) => (float[1, 8, 9, 9] y) {
            y = If (c) <then_branch = one () => (float[1, 8, 7, 7] p) { p = Conv (x, w, b) },
                        else_branch = two () => (float[1, 8, 7, 7] q) { q = Conv (x, v, b) }>
        }
    """
    graph = onnx.parser.parse_graph(text)
    with pytest.raises(StageError, match=r"inside of node '' \(If\)"):
        onnx_layers.in_float(onnx.helper.make_model(graph), "model.onnx")
