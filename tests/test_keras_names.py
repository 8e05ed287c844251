"""A Keras layer keeps its name in every format, and a pattern with that name matches only this layer.

Each layer of the toys has a different number of weights, so the content of a file shows which one stayed
float.
"""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import StageError
from edgeopt.formats.layer_names import calls, keras_layer, layer_of_scope, matching, scope_name
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.tflite.graph import layers as tflite_layers
from edgeopt.formats.tflite.quantize import precision as tflite_precision
from edgeopt.model import Model
from float_tflite import Noise, context


def missing(*modules: str) -> bool:
    return any(importlib.util.find_spec(name) is None for name in modules)


needs_keras = pytest.mark.skipif(
    missing("tensorflow", "tf_keras", "ai_edge_quantizer"), reason="extra 'keras'"
)
needs_onnx = pytest.mark.skipif(missing("tf2onnx", "onnxruntime"), reason="needs the extra 'onnx'")
needs_torch = pytest.mark.skipif(missing("keras", "torch", "executorch"), reason="extra 'executorch'")
pytestmark = pytest.mark.slow
# torch, torchao and ExecuTorch warn about their own deprecations.
quiet = pytest.mark.filterwarnings("ignore")

MODELS = """
import os, sys
from pathlib import Path
import numpy as np
from edgeopt.model import Model
from edgeopt.plugin import Context

root = Path(sys.argv[1])

def toys(library):
    layers = library.layers
    def conv(count, name, **options):
        return layers.Conv2D(count, 3, padding="same", name=name, **options)
    def plain():
        image = layers.Input((8, 8, 3), name="image")
        x = conv(4, "conv2d", activation="relu")(image)
        x = layers.DepthwiseConv2D(3, padding="same", name="depthwise_conv2d")(x)
        x = conv(5, "conv2d_1", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
        x = layers.GlobalAveragePooling2D()(conv(6, "conv2d_2", activation="relu")(x))
        return library.Model(image, layers.Dense(7, name="dense")(x), name="model_1")
    def nested():
        inside = layers.Input((8, 8, 4))
        inner = library.Model(inside, conv(6, "conv2d_1")(conv(5, "conv2d")(inside)), name="inner")
        image = layers.Input((8, 8, 3), name="image")
        x = conv(7, "conv2d_1")(inner(conv(4, "conv2d")(image)))
        return library.Model(image, layers.Dense(7, name="dense")(layers.GlobalAveragePooling2D()(x)))
    def twice():
        image = layers.Input((8, 8, 3), name="image")
        shared = conv(3, "conv2d", activation="relu")
        x = conv(6, "conv2d_1", activation="relu")(shared(shared(image)))
        return library.Model(image, layers.Dense(7, name="dense")(layers.GlobalAveragePooling2D()(x)))
    def composed():
        image = layers.Input((8, 4), name="image")
        x = layers.LSTM(6, return_sequences=True, name="lstm")(image)
        x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
        x = layers.SeparableConv1D(5, 3, name="separable")(x)
        return library.Model(image, layers.Dense(7, name="dense")(x))
    for make in (plain, nested, twice, composed):
        network = make()
        random = np.random.default_rng(1)
        before = network.get_weights()
        network.set_weights([random.uniform(0.1, 0.4, w.shape).astype(w.dtype) for w in before])
        yield make.__name__, network

def made(stage, model, name):
    folder = root / name
    folder.mkdir()
    result = stage.run(model, Context(folder, None, lambda line: None))
    (folder / "model.json").write_text(result.model_dump_json())
    return result
"""
FROM_KERAS = """
import keras, tf_keras
from edgeopt.stages.keras_to_tflite import KerasToTflite
for library, kind, ending in ((keras, "keras", ".keras"), (tf_keras, "tf_keras", ".h5")):
    for name, network in toys(library):
        source = Model(format=kind, path=root / (name + ending))
        network.save(source.path)
        made(KerasToTflite(), source, f"{kind}-{name}-tflite")
        if sys.argv[2] == "onnx":
            from edgeopt.stages.keras_to_onnx import KerasToOnnx
            made(KerasToOnnx(), source, f"{kind}-{name}-onnx")
"""
FROM_TORCH = """
os.environ["KERAS_BACKEND"] = "torch"
import keras
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.keras_to_exported_program import KerasToExportedProgram
for name, network in toys(keras):
    source = Model(format="keras", path=root / (name + ".keras"))
    network.save(source.path)
    program = made(KerasToExportedProgram(), source, f"torch-{name}-program")
    if name == "composed":
        continue
    if "onnx" in sys.argv[2:]:
        made(ExportedProgramToOnnx(), program, f"torch-{name}-onnx")
    if "tflite" in sys.argv[2:]:
        made(ExportedProgramToTflite(), program, f"torch-{name}-tflite")
"""

WEIGHTS = {
    "plain": {"conv2d": 108, "depthwise_conv2d": 36, "conv2d_1": 180, "conv2d_2": 270, "dense": 42},
    "nested": {"conv2d": 108, "inner/conv2d": 180, "inner/conv2d_1": 270, "conv2d_1": 378, "dense": 49},
    "twice": {"conv2d": 81, "conv2d:2": 81, "conv2d_1": 162, "dense": 42},
}
"""How many weights each layer has, in the order in which they run."""
ASKED = [
    ("plain", "conv2d", ["conv2d"]),
    ("plain", "conv2d_1", ["conv2d_1"]),
    ("plain", "conv2d_2", ["conv2d_2"]),
    ("nested", "conv2d_1", ["conv2d_1"]),
    ("nested", "inner/conv2d", ["inner/conv2d"]),
    ("nested", "inner", ["inner/conv2d", "inner/conv2d_1"]),
    ("twice", "conv2d", ["conv2d", "conv2d:2"]),
    ("twice", "conv2d_1", ["conv2d_1"]),
]


def python(script: str, *arguments: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    run = subprocess.run(
        [sys.executable, "-c", MODELS + script, *map(str, arguments)],
        env=environment
        | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Files written by TensorFlow."""
    folder = tmp_path_factory.mktemp("keras")
    python(FROM_KERAS, folder, "" if missing("tf2onnx") else "onnx")
    return lambda name: Model.model_validate_json((folder / name / "model.json").read_text())


@pytest.fixture(scope="module")
def torch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Files written by torch."""
    folder = tmp_path_factory.mktemp("torch")
    python(
        FROM_TORCH,
        folder,
        *([] if missing("onnxscript") else ["onnx"]),
        *([] if missing("litert_torch") else ["tflite"]),
    )
    return lambda name: Model.model_validate_json((folder / name / "model.json").read_text())


def in_tflite(path: Path) -> list[tuple[str, int, str]]:
    return [(layer.name, layer.elements, layer.weight) for layer in tflite_layers.read(path)]


def in_onnx(path: Path) -> list[tuple[str, int, str]]:
    return [
        (found.name, found.weights, found.weight) for found in onnx_layers.read(onnx_model_file.load(path))
    ]


def data() -> Noise:
    return Noise(count=4, shape=(8, 8, 3))


def float_ones(found: list[tuple[str, int, str]]) -> list[int]:
    return [weights for _, weights, dtype in found if dtype == "float32"]


@needs_keras
@pytest.mark.parametrize("source", ["keras", "tf_keras"])
@pytest.mark.parametrize(("toy", "pattern", "meant"), ASKED)
def test_tflite(
    keras: Callable[[str], Model], tmp_path: Path, source: str, toy: str, pattern: str, meant: list[str]
) -> None:
    from edgeopt.stages.quantize_tflite import QuantizeTflite

    model = keras(f"{source}-{toy}-tflite")
    assert [found[:2] for found in in_tflite(model.path)] == list(WEIGHTS[toy].items())
    result = QuantizeTflite(layers={pattern: "float32"}).run(model, context(tmp_path / "out", data()))
    assert float_ones(in_tflite(result.path)) == [WEIGHTS[toy][name] for name in meant]


@needs_keras
@needs_onnx
@pytest.mark.parametrize("source", ["keras", "tf_keras"])
@pytest.mark.parametrize(("toy", "pattern", "meant"), ASKED)
def test_onnx(
    keras: Callable[[str], Model], tmp_path: Path, source: str, toy: str, pattern: str, meant: list[str]
) -> None:
    from edgeopt.stages.quantize_onnx import QuantizeOnnx

    model = keras(f"{source}-{toy}-onnx")
    assert [found[:2] for found in in_onnx(model.path)] == list(WEIGHTS[toy].items())
    result = QuantizeOnnx(layers={pattern: "float32"}).run(model, context(tmp_path / "out", data()))
    assert float_ones(in_onnx(result.path)) == [WEIGHTS[toy][name] for name in meant]


@needs_keras
@needs_onnx
def test_layers_inside_layers(keras: Callable[[str], Model]) -> None:
    attention = {f"attention/{name}" for name in ("query", "key", "value", "attention_output")}
    expected = attention | {"separable", "separable:2", "dense"}
    in_loops = {"lstm/lstm_cell", "lstm/lstm_cell:2"}
    assert {name for name, *_ in in_tflite(keras("keras-composed-tflite").path)} == expected | in_loops
    found = [name for name, weights, _ in in_onnx(keras("keras-composed-onnx").path) if weights]
    assert set(found) == expected


@needs_torch
@quiet
def test_layers_inside_layers_in_torch(torch: Callable[[str], Model]) -> None:
    from edgeopt.formats.torch.files import program as torch_program
    from edgeopt.formats.torch.graph import recurrent
    from edgeopt.formats.torch.graph.operators import WEIGHTED
    from edgeopt.formats.torch.quantize import overrides

    graph = torch_program.plain_graph(torch("torch-composed-program"))[0]
    whole = overrides.quantizable(graph, recurrent.GATES)
    assert [layer.name for layer in whole] == ["lstm"]
    # As a loop: the product with the inputs of all steps, and that with the state before.
    layers = overrides.quantizable(recurrent.with_loops(graph), WEIGHTED | recurrent.RECURRENT)
    names = {layer.name.partition(":")[0] for layer in layers}
    assert names == {"lstm/input_l0", "lstm/hidden_l0", "separable", "dense"}
    meant = overrides.precisions(layers, {"lstm": "float32"})
    assert set(meant) == {"lstm/input_l0", "lstm/hidden_l0"}


@needs_torch
@quiet
@pytest.mark.parametrize(("toy", "pattern", "meant"), ASKED)
def test_executorch(
    torch: Callable[[str], Model], tmp_path: Path, toy: str, pattern: str, meant: list[str]
) -> None:
    from edgeopt.formats.torch.lab import xnnpack_tensors
    from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
    from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack

    stage = QuantizeXnnpack(layers={pattern: "float32"})
    result = stage.run(torch(f"torch-{toy}-program"), context(tmp_path / "out", data()))
    path = ExportedProgramToExecutorch().run(result, context(tmp_path / "file", None)).path
    weights = [t for t in xnnpack_tensors.read(path) if t.constant and len(t.shape) > 1]
    found = {int(np.prod(tensor.shape)) for tensor in weights if tensor.type == "float32"}
    assert found == {WEIGHTS[toy][name] for name in meant}


@needs_torch
@quiet
@pytest.mark.parametrize(("toy", "pattern", "meant"), ASKED)
def test_torchscript(
    torch: Callable[[str], Model], tmp_path: Path, toy: str, pattern: str, meant: list[str]
) -> None:
    from edgeopt.stages.quantize_fx import QuantizeFx

    stage = QuantizeFx(layers={pattern: "float32"})
    result = stage.run(torch(f"torch-{toy}-program"), context(tmp_path / "out", data()))
    with zipfile.ZipFile(result.path) as archive:
        sizes = {entry.file_size for entry in archive.infolist()}
    assert {weights for weights in WEIGHTS[toy].values() if 4 * weights in sizes} == {
        WEIGHTS[toy][name] for name in meant
    }


@needs_torch
@pytest.mark.parametrize("toy", list(WEIGHTS))
def test_layers_keep_their_names_from_torch_to_onnx_and_tflite(
    torch: Callable[[str], Model], toy: str
) -> None:
    """The path of a Keras model that is equalized first."""
    expected = list(WEIGHTS[toy].items())
    if not missing("onnxscript"):
        assert [found[:2] for found in in_onnx(torch(f"torch-{toy}-onnx").path)] == expected
    if not missing("litert_torch"):
        assert [found[:2] for found in in_tflite(torch(f"torch-{toy}-tflite").path)] == expected


@needs_torch
@quiet
@pytest.mark.skipif(missing("ai_edge_quantizer", "litert_torch"), reason="needs the extra 'torch'")
def test_one_call_of_a_layer_in_tflite_from_torch(torch: Callable[[str], Model], tmp_path: Path) -> None:
    from edgeopt.stages.quantize_tflite import QuantizeTflite

    stage = QuantizeTflite(layers={"conv2d_1": "float32"})
    result = stage.run(torch("torch-nested-tflite"), context(tmp_path / "out", data()))
    assert float_ones(in_tflite(result.path)) == [378]


@needs_torch
@quiet
def test_an_operator_is_meant_only_where_no_layer_has_the_name(torch: Callable[[str], Model]) -> None:
    """torch calls the depthwise convolution ``conv2d_1``, and Keras the one after it."""
    from edgeopt.formats.torch.files import program as torch_program
    from edgeopt.formats.torch.quantize import overrides

    layers = overrides.quantizable(torch_program.plain_graph(torch("torch-plain-program"))[0])
    assert [(layer.node, layer.name) for layer in layers][1:3] == [
        ("conv2d_1", "depthwise_conv2d"),
        ("conv2d_2", "conv2d_1"),
    ]
    asked = {"conv2d_1": "a", "conv2d_3": "b", "linear": "c"}
    assert overrides.precisions(layers, asked) == {"conv2d_1": "a", "conv2d_2": "b", "dense": "c"}


def test_layers_are_found_in_the_names_of_operations() -> None:
    found = {
        "model/conv2d_1/convolution": "conv2d_1",
        "model/conv2d_1/Conv2D;": "",
        "model_1/inner/conv2d/Conv2D1": "inner/conv2d",
        "model/norm/batchnorm/mul_1": "",
        "model/conv2d_1/convolution/merged_input:0": "conv2d_1",
        "model/dense/MatMul_Gemm__12": "dense",
        "model/attention/query/einsum/Einsum": "attention/query",
        "model/lstm/while/lstm_cell/MatMul_1": "lstm/lstm_cell",
        "model/MatMul/MatMul_3": "MatMul",
        "conv2d/Conv2D": "conv2d",
        "StatefulPartitionedCall/model/conv2d/Conv2D": "conv2d",
    }
    assert {name: keras_layer(name) for name in found} == found
    assert layer_of_scope("outer.Wrapper/" + scope_name("inner/conv2d_1")) == "inner/conv2d_1"
    assert layer_of_scope("outer.Wrapper") == ""


def test_calls_are_counted_for_each_layer() -> None:
    assert calls(["conv", "conv_1", "conv", "conv:7"]) == ["conv", "conv_1", "conv:2", "conv:3"]


def test_a_layer_whose_operator_took_over_another_is_not_meant_with_it() -> None:
    """The converter merges the bias of one layer into the next, and both names into that of the tensor."""
    step = tflite_layers.Step("FULLY_CONNECTED", ("m/head/out/BiasAdd;m/dense/Tensordot;m/norm/add",))
    other = tflite_layers.Step("FULLY_CONNECTED", ("m/head/out/MatMul",))
    layers = [
        tflite_layers.WeightedLayer(name, step, "float32", 9, 3, "float32", "float32")
        for name, step in (("dense", step), ("head/out", other))
    ]
    assert tflite_precision.chosen(layers, "int8", {"head/*": "float32"})["head/out"] == "float32"
    assert tflite_precision.chosen(layers, "int8", {"*norm*": "float32"})["dense"] == "float32"


NAMES = ["conv1", "conv1:2", "block1_conv1", "layer1.0.conv1", "layer1.0.bn", "head/conv1", "b", "box"]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("conv1", ["conv1", "conv1:2"]),  # never block1_conv1
        ("conv1:2", ["conv1:2"]),
        ("b", ["b"]),  # never box
        ("b*", ["block1_conv1", "b", "box"]),
        ("layer1_0_conv1", ["layer1.0.conv1"]),
        ("layer1.0.*", ["layer1.0.conv1", "layer1.0.bn"]),
        ("head.conv1", ["head/conv1"]),
        ("head", ["head/conv1"]),  # a nested model
        ("*conv1", ["conv1", "conv1:2", "block1_conv1", "layer1.0.conv1", "head/conv1"]),
        ("layer[12].0.bn", ["layer1.0.bn"]),
    ],
)
def test_an_exact_name_wins_and_otherwise_it_is_a_glob_over_whole_names(
    pattern: str, meant: list[str]
) -> None:
    assert list(matching([pattern], NAMES)) == meant


def test_the_last_pattern_that_fits_counts() -> None:
    said = matching(["*", "conv1"], NAMES)
    assert said["conv1"] == said["conv1:2"] == "conv1" and said["box"] == "*"


@pytest.mark.parametrize("pattern", ["conv", "onv1", "layer1", "hea", "lock1_conv1"])
def test_a_pattern_that_means_nothing_is_refused_with_the_nearest_names(pattern: str) -> None:
    with pytest.raises(StageError, match=f"keep: no layer is called '{pattern}'") as caught:
        matching([pattern], NAMES, "keep")
    assert f"the pattern '*{pattern}*', which matches" in caught.value.fix


def test_a_layer_goes_by_the_other_names_that_its_file_has_for_it() -> None:
    layers = {"dense": ("conv2d_1",), "conv2d_1": ("conv2d_2",)}
    assert list(matching(["conv2d_1"], layers)) == ["conv2d_1"]
    assert list(matching(["conv2d_2"], layers)) == ["conv2d_1"]


def test_names_of_layers_are_matched_in_one_place() -> None:
    package = Path(edgeopt.__file__).parent
    users = [file.name for file in package.rglob("*.py") if "fnmatch" in file.read_text("utf-8")]
    assert users == ["layer_names.py"]
