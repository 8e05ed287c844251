"""int8 for ExecuTorch (pt2e) and TorchScript (FX): accuracy, contents, refusals."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import operators as torch_operators
from edgeopt.formats.torch.graph import simplify as torch_simplify
from edgeopt.formats.torch.graph.to_modules import with_modules
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.keras_to_exported_program import KerasToExportedProgram
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.quantize_fx import QuantizeFx
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack, refuse_float
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch")
# torch, torchao and ExecuTorch warn about their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGE = TensorSpec(name="image", shape=(1, 3, 8, 8), layout="NCHW")


class Noise(Dataset):
    """Random images of a fixed seed."""

    count: int = 32

    def samples(self) -> Iterator[Sample]:
        generator = np.random.default_rng(11)
        for _ in range(self.count):
            yield Sample((generator.normal(size=(3, 8, 8)).astype(np.float32),))

    def digest(self) -> str:
        return f"noise-{self.count}"


class Small(torch.nn.Module):
    """Convolution, batch norm, depthwise, residual sum, concatenation, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.linear = torch.nn.Linear(16, 5)
        torch.nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Any) -> Any:
        first = torch.relu(self.norm(self.conv(x)))
        second = torch.relu(self.depthwise(first) + first)
        both = torch.cat([first, second], 1)
        return self.linear(torch.nn.functional.avg_pool2d(both, 8).flatten(1))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    torch.manual_seed(2)
    module = Small().eval()
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    source = Model(format="torch", path=path)
    return torch_program.save_module(module, path, source, (IMAGE,)), module


def context(folder: Path, count: int = 32) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, Feed(Noise(count=count), Preprocessing(layout="NCHW")), lambda _: None)


def snr_db(outputs: Array, reference: Array) -> float:
    return float(10 * np.log10((reference**2).sum() / ((outputs - reference) ** 2).sum()))


def run_program(path: Path, values: list[Array]) -> Array:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return np.concatenate([np.array(method.execute([torch.from_numpy(v)])[0]) for v in values])


def run_lite(path: Path, values: list[Array]) -> Array:
    from torch.jit.mobile import _load_for_lite_interpreter

    with torch_engine.mobile_engine(), torch_engine.one_thread(), torch.no_grad():
        module = _load_for_lite_interpreter(str(path))
        return np.concatenate([module(torch.from_numpy(v)).numpy() for v in values])


def values() -> list[Array]:
    return [sample.inputs[0][np.newaxis] for sample in Noise(count=16).samples()]


def reference(module: Any) -> Array:
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(v)).numpy() for v in values()])


@pytest.fixture(scope="module")
def quantized(program: tuple[Model, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """The toy model in int8, by format."""
    return quantize_all(tmp_path_factory.mktemp("quantized"), program[0])


def quantize_all(folder: Path, model: Model) -> dict[str, Model]:
    """Both int8 paths of one program, step by step."""
    script = QuantizeFx().run(model, context(folder / "script"))
    program = QuantizeXnnpack().run(model, context(folder / "program"))
    made = [
        script,
        TorchscriptToMobile().run(script, context(folder / "lite")),
        program,
        ExportedProgramToExecutorch().run(program, context(folder / "executorch")),
    ]
    return {model.format: model for model in made}


def test_fx_is_int8_and_close(program: tuple[Model, Any], quantized: dict[str, Model]) -> None:
    lite = quantized["torchscript"]
    assert snr_db(run_lite(lite.path, values()), reference(program[1])) > 25
    with zipfile.ZipFile(lite.path) as archive:
        pickled = archive.read("model/constants.pkl") + archive.read("model/bytecode.pkl")
        weights = [len(archive.read(name)) for name in archive.namelist() if "constants/" in name]
    assert b"QInt8Storage" in pickled
    assert b"quantized::conv2d_relu" in pickled
    # 3*8*9 int8 weights of the first convolution, once; none of them as float.
    assert weights.count(3 * 8 * 9) == 1
    assert 4 * 3 * 8 * 9 not in weights


def test_fx_lifting_changes_no_number(program: tuple[Model, Any]) -> None:
    model, module = program
    graph, _ = torch_program.plain_graph(model)
    lifted = with_modules(graph)
    kinds = [type(child).__name__ for child in lifted.children()]
    assert kinds.count("Conv2d") == 2
    assert kinds.count("Linear") == 1
    with torch.no_grad():
        outputs = np.concatenate([lifted(torch.from_numpy(v)).numpy() for v in values()])
    assert np.abs(outputs - reference(module)).max() < 1e-5


def test_xnnpack_is_int8_and_close(program: tuple[Model, Any], quantized: dict[str, Model]) -> None:
    state = torch_program.read(quantized["exported_program_xnnpack"].path).state_dict
    in_int8 = {name: value for name, value in state.items() if value.dtype == torch.int8}
    assert not any(name.startswith("_frozen") for name in in_int8)  # messages name their layers
    weights = list(in_int8.values())
    assert sorted(value.numel() for value in weights) == [8 * 9, 5 * 16, 3 * 8 * 9]
    result = quantized["executorch"]
    assert snr_db(run_program(result.path, values()), reference(program[1])) > 25
    # The file contains the int8 weights, at least those whose order XNNPACK preserves.
    linear = next(value for value in weights if value.numel() == 5 * 16)
    assert linear.numpy().tobytes() in result.path.read_bytes()


def test_another_process_writes_the_same_and_takes_keras(
    program: tuple[Model, Any], quantized: dict[str, Model], tmp_path: Path
) -> None:
    """In a separate process: the first import of Keras fixes its backend."""
    script = """
import sys
from pathlib import Path
from edgeopt.model import Model
sys.path.insert(0, sys.argv[3])
import test_quantize_torch as tests
folder = Path(sys.argv[1])
tests.quantize_all(folder, Model.model_validate_json(sys.argv[2]))
tests.check_keras(folder / "keras")
"""
    arguments = [tmp_path, program[0].model_dump_json(), Path(__file__).parent]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "KERAS_BACKEND": "torch"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for model in quantized.values():
        again = tmp_path / model.path.parent.name / model.path.name
        assert again.read_bytes() == model.path.read_bytes(), model.format


def check_keras(folder: Path) -> None:
    """A small Keras model, exported through its torch backend, in both int8 formats."""
    import keras

    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, strides=2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.DepthwiseConv2D(3, padding="same"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5),
        ]
    )
    folder.mkdir()
    network.save(folder / "model.keras")
    model = KerasToExportedProgram().run(
        Model(format="keras", path=folder / "model.keras"), context(folder / "export")
    )
    assert model.inputs[0].layout == "NHWC"
    images = [value.transpose(0, 2, 3, 1).copy() for value in values()]
    network.eval()
    graph, _ = torch_program.plain_graph(model)
    with torch.no_grad():
        wanted = np.concatenate([network(torch.from_numpy(v)).numpy() for v in images])
        outputs = np.concatenate([graph(torch.from_numpy(v)).numpy() for v in images])
    assert np.abs(outputs - wanted).max() < 1e-5
    made = quantize_all(folder, model)
    assert snr_db(run_lite(made["torchscript"].path, images), wanted) > 22
    assert snr_db(run_program(made["executorch"].path, images), wanted) > 22


class Computed(torch.nn.Module):
    """A convolution with computed weights, which no quantized layer can store."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.conv(x))
        return torch.conv2d(y, y[:, :, :3, :3])


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (
            torch.nn.Sequential(torch.nn.Unflatten(1, (1, 3)), torch.nn.Conv3d(1, 2, 3)),
            "would stay in float: 1",
        ),
    ],
)
def test_fx_refuses_what_it_leaves_in_float(module: Any, why: str, tmp_path: Path) -> None:
    source = Model(format="torch", path=tmp_path)
    model = torch_program.save_module(module, tmp_path / "model.pt2", source, (IMAGE,))
    with pytest.raises(StageError, match=why):
        QuantizeFx().run(model, context(tmp_path / "out", count=2))


def test_a_layer_with_computed_weights_stays_in_float_and_is_named(tmp_path: Path) -> None:
    source = Model(format="torch", path=tmp_path)
    model = torch_program.save_module(Computed().eval(), tmp_path / "model.pt2", source, (IMAGE,))
    notes: list[str] = []
    for stage in (QuantizeFx(), QuantizeXnnpack()):
        stage.run(model, context(tmp_path / type(stage).__name__, count=8)._replace(note=notes.append))
    assert [note.rpartition(": ")[2] for note in notes if "weights are computed" in note] == ["conv2d_1"] * 2


def test_xnnpack_refuses_layers_left_in_float(program: tuple[Model, Any]) -> None:
    graph, _ = torch_program.plain_graph(program[0])
    with pytest.raises(StageError, match="would stay in float: conv2d"):
        refuse_float(graph, set(), {})


@pytest.mark.parametrize("stage", [QuantizeFx(), QuantizeXnnpack()])
def test_no_calibration_data_is_an_error(stage: Any, program: tuple[Model, Any], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="calibration data is empty"):
        stage.run(program[0], context(tmp_path / "a", count=0))
    with pytest.raises(StageError, match="needs calibration data"):
        stage.run(program[0], Context(tmp_path, None, lambda _: None))


def test_channels_last_graph_loses_its_permutes() -> None:
    """Keras's operations around each convolution: permute, transposed weights, arithmetic batch norm."""

    class ChannelsLast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = torch.nn.Parameter(torch.randn(3, 3, 3, 8))
            self.bias = torch.nn.Parameter(torch.randn(8))
            self.dense = torch.nn.Parameter(torch.randn(8 * 8 * 8, 5))

        def forward(self, x: Any) -> Any:
            y = torch.conv2d(x.permute(0, 3, 1, 2), self.kernel.permute(3, 2, 0, 1), padding=1)
            y = y.permute(0, 2, 3, 1) + self.bias
            y = torch.relu((y - 0.3) * self.bias.exp().reshape(1, 1, 1, 8) + 0.1)
            return y.reshape(1, -1) @ self.dense

    torch.manual_seed(4)
    module = ChannelsLast().eval()
    spec = TensorSpec(name="x", shape=(1, 8, 8, 3), layout="NHWC")
    decomposed = torch_program.export(module, (spec,)).run_decompositions({})
    plain = torch_simplify.simplify(decomposed.module(check_guards=False), torch_specs.zeros((spec,)), ["x"])
    names = [torch_operators.operator_name(n) for n in plain.graph.nodes if n.op == "call_function"]
    assert names == ["permute", "conv2d", "relu", "reshape", "linear"]
    x = torch.randn(1, 8, 8, 3)
    with torch.no_grad():
        assert (plain(x) - module(x)).abs().max() < 1e-5 * module(x).abs().max()


@pytest.mark.slow
def test_resnet20_keeps_its_answers(real_data: Path, tmp_path: Path) -> None:
    """int8: at most 1.0 point of top-1 lost on real images, and more than 25 dB left."""
    from edgeopt.evaluation.datasets.npz import Npz

    recipes = Path(__file__).resolve().parent.parent / "recipes"
    stage = LoadTorch(
        factory={"target": "models.resnet:resnet20", "folder": recipes},
        weights=real_data / "resnet-cifar10" / "resnet20.th",
        inputs=(TensorSpec(name="image", shape=(1, 3, 32, 32), layout="NCHW"),),
    )
    source = stage.run(Model(format="torch_source", path=tmp_path), context(tmp_path / "load"))
    model = TorchToExportedProgram().run(source, context(tmp_path / "export"))
    look = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC")
    images = Feed(Npz(path=real_data / "cifar10" / "calibration512.npz"), look)
    with np.load(real_data / "cifar10" / "test446.npz") as data:
        inputs, labels = [look.apply(x, model.inputs[0]) for x in data["x"]], data["y"]
    graph, _ = torch_program.plain_graph(model)
    with torch.no_grad(), torch_engine.one_thread():
        wanted = np.concatenate([graph(torch.from_numpy(x)).numpy() for x in inputs])

    def where(name: str) -> Context:
        return context(tmp_path / name)._replace(calibration=images)

    lite = TorchscriptToMobile().run(QuantizeFx().run(model, where("fx")), where("lite"))
    program = QuantizeXnnpack().run(model, where("xnnpack"))
    executorch = ExportedProgramToExecutorch().run(program, where("executorch"))
    int8 = sum(
        v.numel() for v in torch_program.read(program.path).state_dict.values() if v.dtype == torch.int8
    )
    assert int8 == sum(v.numel() for v in graph.state_dict().values() if v.dim() > 1)
    for outputs, path in (
        (run_lite(lite.path, inputs), lite.path),
        (run_program(executorch.path, inputs), executorch.path),
    ):
        assert snr_db(outputs, wanted) > 25
        lost = np.mean(wanted.argmax(1) == labels) - np.mean(outputs.argmax(1) == labels)
        assert lost <= 0.01
        assert path.stat().st_size < 1.25 * int8  # a byte for each weight, and the graph


class Shortcuts(torch.nn.Module):
    """Two residual blocks; the sum of the first feeds a convolution, and a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.inner = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.outer = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.narrow = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.last = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Any) -> Any:
        first = torch.relu(self.first(x))
        second = torch.relu(self.outer(torch.relu(self.inner(first))) + first)
        third = torch.relu(self.last(torch.relu(self.narrow(second))) + second[:, :, ::2, ::2])
        return third.mean((2, 3))


def test_a_relu_that_fx_fused_is_not_counted_when_another_layer_stays_in_float(tmp_path: Path) -> None:
    # FX numbers the remaining calls of ReLU; numbered earlier, float applied to the sum of another block.
    torch.manual_seed(3)
    module = Shortcuts().eval()
    source = Model(format="torch", path=tmp_path / "model.pt2")
    model = torch_program.save_module(module, source.path, source, (IMAGE,))
    for number, layer in enumerate(("first", "inner", "outer", "narrow", "last")):
        done = QuantizeFx(layers={layer: "float32"}).run(model, context(tmp_path / str(number)))
        with zipfile.ZipFile(done.path) as archive:
            code = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))
        assert code.count("quantized.add_relu") == 2, layer


class Ceiling(torch.nn.Module):
    """An activation behind a convolution, a depthwise one, a sum, a concatenation and a pooling."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = torch.nn.Conv2d(16, 8, 1)
        self.linear = torch.nn.Linear(8, 5)
        with torch.no_grad():
            for layer in (self.conv, self.depthwise, self.pointwise):
                layer.weight *= 4  # so that values reach the ceiling

    def forward(self, x: Any) -> Any:
        first = self.activation(self.conv(x))
        second = self.activation(self.depthwise(first) + first)
        both = self.activation(torch.cat([first, second], 1))
        pooled = self.activation(torch.nn.functional.max_pool2d(self.pointwise(both), 2))
        return self.linear(pooled.mean((2, 3)))


@pytest.mark.parametrize(
    ("activation", "least"),
    [
        (torch.nn.functional.relu6, 34),
        (lambda x: torch.clamp(x, 0, 4), 34),
        (lambda x: torch.nn.functional.hardtanh(x, -2, 2), 25),
        (lambda x: torch.clamp(x, max=3.0), 22),
        (lambda x: torch.clamp(x, min=0.0), 30),
    ],
    ids=["relu6", "clamp", "hardtanh", "upper bound", "lower bound"],
)
def test_activations_with_bounds_keep_their_values(activation: Any, least: float, tmp_path: Path) -> None:
    """qnnpack's own kernel of them returns values in a wrong order behind a convolution: 7 to 15 dB."""
    torch.manual_seed(1)
    module = Ceiling(activation).eval()
    source = Model(format="torch", path=tmp_path)
    model = torch_program.save_module(module, tmp_path / "model.pt2", source, (IMAGE,))
    script = QuantizeFx().run(model, context(tmp_path / "script"))
    lite = TorchscriptToMobile().run(script, context(tmp_path / "lite"))
    assert snr_db(run_lite(lite.path, values()), reference(module)) > least
    with zipfile.ZipFile(lite.path) as archive:
        assert b"quantized::conv2d" in archive.read("model/bytecode.pkl")


def test_torchscript_files_keep_the_version_of_their_operators(tmp_path: Path) -> None:
    """With an older one, loading rewrites operators: integers are divided without a fraction."""

    class Versioned(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.to(torch.int32) / 2, torch.nn.functional.gelu(x, approximate="tanh")

    module, x = Versioned().eval(), torch.tensor([[1.0, 3.0]])
    traced = torch_script.trace(module, (TensorSpec(name="x", shape=(1, 2)),))
    for lite in (False, True):
        path = tmp_path / f"{lite}.pt"
        torch_script.save_script(traced, path, lite=lite)
        if lite:
            from torch.jit.mobile import _load_for_lite_interpreter as load
        else:
            from torch.jit import load  # type: ignore[assignment]
        half, gelu = load(str(path))(x)
        assert half.tolist() == [[0.5, 1.5]]
        assert torch.equal(gelu, module(x)[1])
