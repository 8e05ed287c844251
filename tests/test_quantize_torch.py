"""int8 for ExecuTorch (pt2e) and TorchScript (FX): accuracy, contents, refusals."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats import torch_engine, torch_graph, torch_operators, torch_program, torch_specs
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.keras_to_exported_program import KerasToExportedProgram
from edgeopt.stages.quantize_fx import QuantizeFx, with_modules
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")
# torch, torchao and ExecuTorch warn about their own deprecated parts while they work.
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

    with torch_engine.mobile_engine(), torch.no_grad():
        module = _load_for_lite_interpreter(str(path))
        return np.concatenate([module(torch.from_numpy(v)).numpy() for v in values])


def values() -> list[Array]:
    return [sample.inputs[0][np.newaxis] for sample in Noise(count=16).samples()]


def reference(module: Any) -> Array:
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(v)).numpy() for v in values()])


def test_fx_is_int8_and_close(program: tuple[Model, Any], tmp_path: Path) -> None:
    model, module = program
    script = QuantizeFx().run(model, context(tmp_path / "a"))
    lite = TorchscriptToMobile().run(script, context(tmp_path / "b"))
    assert snr_db(run_lite(lite.path, values()), reference(module)) > 25
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


def test_xnnpack_is_int8_and_close(program: tuple[Model, Any], tmp_path: Path) -> None:
    model, module = program
    quantized = QuantizeXnnpack().run(model, context(tmp_path / "a"))
    assert quantized.format == "exported_program_xnnpack"
    state = torch_program.read(quantized.path).state_dict
    assert sum(value.dtype == torch.int8 for value in state.values()) == 3
    result = ExportedProgramToExecutorch().run(quantized, context(tmp_path / "b"))
    assert snr_db(run_program(result.path, values()), reference(module)) > 25


def test_same_files_again(program: tuple[Model, Any], tmp_path: Path) -> None:
    model, _ = program
    files = []
    for name in ("a", "b"):
        script = QuantizeFx().run(model, context(tmp_path / name / "fx"))
        lite = TorchscriptToMobile().run(script, context(tmp_path / name / "lite"))
        quantized = QuantizeXnnpack().run(model, context(tmp_path / name / "x"))
        files.append([m.path.read_bytes() for m in (script, lite, quantized)])
    assert files[0] == files[1]


@pytest.mark.parametrize("stage", [QuantizeFx(), QuantizeXnnpack()])
def test_no_calibration_data_is_an_error(stage: Any, program: tuple[Model, Any], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="calibration data are empty"):
        stage.run(program[0], context(tmp_path / "a", count=0))
    with pytest.raises(StageError, match="needs calibration data"):
        stage.run(program[0], Context(tmp_path, None, lambda _: None))


def test_channels_last_graph_loses_its_permutes() -> None:
    """What Keras does around each convolution: permute, run-time turned weights, arithmetic batch norm."""

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
    plain = torch_graph.simplify(decomposed.module(check_guards=False), torch_specs.zeros((spec,)), ["x"])
    names = [torch_operators.operator_name(n) for n in plain.graph.nodes if n.op == "call_function"]
    assert names == ["permute", "conv2d", "relu", "reshape", "linear"]
    x = torch.randn(1, 8, 8, 3)
    with torch.no_grad():
        assert (plain(x) - module(x)).abs().max() < 1e-5 * module(x).abs().max()


def test_real_keras_model_in_both_int8_formats(tmp_path: Path) -> None:
    """A small Keras model on its torch backend; in a process of its own backend this is skipped."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend in this process")
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
    network.save(tmp_path / "model.keras")
    model = KerasToExportedProgram().run(
        Model(format="keras", path=tmp_path / "model.keras"), context(tmp_path / "ep")
    )
    assert model.inputs[0].layout == "NHWC"
    images = [value.transpose(0, 2, 3, 1).copy() for value in values()]
    network.eval()
    with torch.no_grad():
        wanted = np.concatenate([network(torch.from_numpy(v)).numpy() for v in images])
        outputs = np.concatenate(
            [torch_program.plain_graph(model)[0](torch.from_numpy(v)).numpy() for v in images]
        )
    assert np.abs(outputs - wanted).max() < 1e-5
    lite = TorchscriptToMobile().run(
        QuantizeFx().run(model, context(tmp_path / "fx")), context(tmp_path / "l")
    )
    assert snr_db(run_lite(lite.path, images), wanted) > 22
    quantized = QuantizeXnnpack().run(model, context(tmp_path / "x"))
    result = ExportedProgramToExecutorch().run(quantized, context(tmp_path / "e"))
    assert snr_db(run_program(result.path, images), wanted) > 22
