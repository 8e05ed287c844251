"""Dynamic int8, float16 and int4 ONNX: types in the file, accuracy, bytes, refusals."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize import calibration as onnx_calibration
from edgeopt.formats.onnx.quantize import overflow as onnx_overflow
from edgeopt.formats.onnx.quantize import weight_only as onnx_weight_only
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Feed, Trial
from edgeopt.stages.quantize_weights_onnx import QuantizeWeightsOnnx
from needs import needs

onnx = pytest.importorskip("onnx")
needs("onnxruntime")


def toy(path: Path) -> Model:
    """A convolution, a Gemm with bias whose weights are transposed, and a plain product."""
    random = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (20, 128), "b2": (20,), "w3": (20, 5)}
    constants = [
        onnx.numpy_helper.from_array((random.standard_normal(shape) / 6).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], name="block/conv"),
        node("Relu", ["c1"], ["r1"]),
        node("Flatten", ["r1"], ["flat"]),
        node("Gemm", ["flat", "w2", "b2"], ["hidden"], name="block/gemm", transB=1),
        node("Relu", ["hidden"], ["r2"]),
        node("MatMul", ["r2", "w3"], ["logits"], name="last"),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "toy", [info("image", 1, [1, 3, 6, 6])], [info("logits", 1, [1, 5])], constants
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    spec = TensorSpec(name="image", shape=(1, 3, 6, 6), layout="NCHW")
    return Model(format="onnx", path=path, inputs=(spec,))


def context(folder: Path, notes: list[str] | None = None) -> Context:
    folder.mkdir(parents=True)
    keep = notes.append if notes is not None else lambda note: None
    return Context(folder, None, lambda line: None, note=keep, trial=lambda trial: None)


def images(count: int = 32) -> list[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(5)
    return [(random.standard_normal((1, 3, 6, 6)).astype(np.float32),) for _ in range(count)]


def flat_outputs(path: Path, inputs: list, **options: bool) -> np.ndarray:
    """The only output, ``[n, values]``."""
    (array,) = onnx_calibration.outputs(path, inputs, **options).arrays
    return array.reshape(len(array), -1)


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def weights_of(model: Model) -> dict[str, tuple[str, str]]:
    """Operator and type of the weights of every layer, as the file has them."""
    return {
        layer.name: (layer.kind, layer.weight) for layer in onnx_layers.read(onnx_model_file.load(model.path))
    }


@pytest.mark.parametrize(
    ("options", "expected", "least_snr"),
    [
        (
            {"scheme": "dynamic_int8"},
            {
                "block/conv": ("ConvInteger", "uint8"),
                "block/gemm": ("MatMulInteger", "int8"),
                "last": ("MatMulInteger", "int8"),
            },
            32,
        ),
        (
            {"scheme": "dynamic_int8", "per_channel": False, "layers": {"block.*": "float32"}},
            {
                "block/conv": ("Conv", "float32"),
                "block/gemm": ("MatMul", "float32"),
                "last": ("MatMulInteger", "int8"),
            },
            33,
        ),
        (
            {"scheme": "float16"},
            {
                "block/conv": ("Conv", "float16"),
                "block/gemm": ("Gemm", "float16"),
                "last": ("MatMul", "float16"),
            },
            55,
        ),
        (
            {"scheme": "float16", "layers": {"l*t": "float32"}},
            {
                "block/conv": ("Conv", "float16"),
                "block/gemm": ("Gemm", "float16"),
                "last": ("MatMul", "float32"),
            },
            55,
        ),
        (
            {"scheme": "int4", "block_size": 16},
            {
                "block/conv": ("Conv", "int4"),
                "block/gemm": ("MatMulNBits", "int4"),
                "last": ("MatMulNBits", "int4"),
            },
            13,
        ),
        (
            {"scheme": "int4", "layers": {"block/*": "int8", "last": "float32"}},
            {
                "block/conv": ("Conv", "int8"),
                "block/gemm": ("Gemm", "int8"),
                "last": ("MatMul", "float32"),
            },
            38,
        ),
    ],
)
def test_every_layer_has_the_weights_asked_for(
    tmp_path: Path, options: dict[str, object], expected: dict[str, tuple[str, str]], least_snr: float
) -> None:
    source = toy(tmp_path / "toy.onnx")
    result = QuantizeWeightsOnnx(**options).run(source, context(tmp_path / "out"))
    assert weights_of(result) == expected
    assert (result.inputs, result.outputs[0].dtype) == (source.inputs, "float32")
    found = [flat_outputs(model.path, images()) for model in (source, result)]
    assert snr_db(*found) > least_snr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_dynamic_products_cannot_leave_16_bits(tmp_path: Path) -> None:
    """Two neighbouring int8 weights of an output, with any uint8 inputs."""
    result = QuantizeWeightsOnnx().run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out"))
    proto = onnx_model_file.load(result.path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 2
    for node in products:
        weights = constants[node.input[1]].astype(np.int64).T
        assert weights.max() > 60
        assert 255 * int(onnx_overflow.pairs(weights).max()) <= 32_767


def test_int4_scales_leave_the_least_error() -> None:
    rows = np.random.default_rng(0).standard_normal((16, 256))
    scales = onnx_weight_only.least_error_scales(rows, 7)

    def error(chosen: np.ndarray) -> float:
        steps = np.clip(np.rint(rows / chosen[:, np.newaxis]), -7, 7)
        return float(np.square(steps * chosen[:, np.newaxis] - rows).sum())

    assert error(scales) < 0.8 * error(np.abs(rows).max(axis=1) / 7)


def test_a_pattern_that_fits_no_layer_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no layer is called 'lats'") as caught:
        QuantizeWeightsOnnx(scheme="float16", layers={"lats": "float32"}).run(
            toy(tmp_path / "toy.onnx"), context(tmp_path / "out")
        )
    assert "such as last" in caught.value.fix


def test_a_precision_that_the_scheme_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="the scheme float16 has no int8 for 'last'"):
        QuantizeWeightsOnnx(scheme="float16", layers={"last": "int8"})


def recurrent(path: Path, kind: str) -> Model:
    """An unnamed recurrent layer of 4 units over 6 steps."""
    random = np.random.default_rng(2)
    gates = {"LSTM": 4, "GRU": 3}[kind]
    shapes = {"w": (1, 4 * gates, 8), "r": (1, 4 * gates, 4)}
    constants = [
        onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, ["steps", "w", "r"], ["all"], hidden_size=4)],
        "recurrent",
        [info("steps", 1, [6, 1, 8])],
        [info("all", 1, [6, 1, 1, 4])],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return Model(format="onnx", path=path, inputs=(TensorSpec(name="steps", shape=(6, 1, 8)),))


def test_recurrent_layers_are_quantized_or_refused_by_name(tmp_path: Path) -> None:
    source = recurrent(tmp_path / "lstm.onnx", "LSTM")
    result = QuantizeWeightsOnnx().run(source, context(tmp_path / "dynamic"))
    assert weights_of(result) == {"all": ("DynamicQuantizeLSTM", "int8")}
    steps = [(np.random.default_rng(n).standard_normal((6, 1, 8)).astype(np.float32),) for n in range(8)]
    assert snr_db(*[flat_outputs(model.path, steps) for model in (source, result)]) > 25
    small = QuantizeWeightsOnnx(scheme="int4").run(source, context(tmp_path / "int4"))
    assert weights_of(small) == {"all": ("LSTM", "int4")}
    assert snr_db(*[flat_outputs(model.path, steps) for model in (source, small)]) > 13
    gated = recurrent(tmp_path / "gru.onnx", "GRU")
    result = QuantizeWeightsOnnx().run(gated, context(tmp_path / "gru"))
    assert weights_of(result) == {"all": ("GRU", "int8")}
    assert snr_db(*[flat_outputs(model.path, steps) for model in (gated, result)]) > 25


def test_a_quantized_file_is_not_quantized_again(tmp_path: Path) -> None:
    once = QuantizeWeightsOnnx(scheme="int4").run(toy(tmp_path / "toy.onnx"), context(tmp_path / "out"))
    with pytest.raises(StageError, match="block/conv has int4 weights"):
        QuantizeWeightsOnnx(scheme="float16").run(once, context(tmp_path / "again"))


REAL = """
import sys
from pathlib import Path
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages.keras_to_onnx import KerasToOnnx
model = Model(format="tf_keras", path=Path(sys.argv[1]))
print(KerasToOnnx().run(model, Context(Path(sys.argv[2]), None, print)).model_dump_json())
"""


@pytest.fixture(scope="module")
def keywords(tmp_path_factory: pytest.TempPathFactory, needs_real_data: Path) -> Model:
    """The keyword model of MLPerf Tiny, as float ONNX."""
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("needs the extra 'keras'")
    source = needs_real_data / "mlperf-tiny" / "kws_ref_model"
    run = subprocess.run(
        [sys.executable, "-c", REAL, str(source), str(tmp_path_factory.mktemp("kws"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Model.model_validate_json(run.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "types", "least_agreement", "most_bytes", "note"),
    [
        ({"scheme": "dynamic_int8"}, {"int8", "uint8"}, 0.97, 50_000, "9 convolutions quantize"),
        ({"scheme": "float16"}, {"float16"}, 0.995, 52_000, "half-precision"),
        ({"scheme": "int4"}, {"int4"}, 0.85, 27_000, "9 convolutions dequantize"),
        ({"scheme": "int4", "layers": {"*": "int8"}}, {"int8"}, 0.98, 40_000, "9 convolutions dequantize"),
    ],
)
def test_keywords(
    tmp_path: Path,
    keywords: Model,
    needs_real_data: Path,
    options: dict[str, object],
    types: set[str],
    least_agreement: float,
    most_bytes: int,
    note: str,
) -> None:
    notes: list[str] = []
    result = QuantizeWeightsOnnx(**options).run(keywords, context(tmp_path / "out", notes))
    assert {weight for _, weight in weights_of(result).values()} == types
    with np.load(needs_real_data / "kws" / "evaluation400.npz") as stored:
        samples, labels = [(x[np.newaxis],) for x in stored["x"]], stored["y"]
    before, after = (flat_outputs(model.path, samples) for model in (keywords, result))
    agreement = float(np.mean(before.argmax(1) == after.argmax(1)))
    assert agreement >= least_agreement
    drop = float(np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels))
    assert drop <= max(0.01, 1 - least_agreement)
    assert result.path.stat().st_size <= most_bytes
    assert any(note in line for line in notes)


@pytest.mark.slow
def test_the_search_raises_what_int4_hurts(tmp_path: Path, keywords: Model, needs_real_data: Path) -> None:
    from edgeopt.evaluation.datasets.npz import Npz
    from edgeopt.model import Preprocessing

    trials: list[Trial] = []
    data = Feed(Npz(path=needs_real_data / "kws" / "calibration100.npz"), Preprocessing())
    where = context(tmp_path / "out")._replace(validation=data, trial=trials.append)
    result = QuantizeWeightsOnnx(scheme="int4", max_drop=0.0).run(keywords, where)
    (chosen,) = [trial for trial in trials if trial.status == "chosen"]
    assert trials[0].drop > 0 >= chosen.drop
    assert {name for name, (_, weight) in weights_of(result).items() if weight == "float32"} == set(
        chosen.raised
    )
    assert trials[0].size_bytes < result.path.stat().st_size < keywords.path.stat().st_size
