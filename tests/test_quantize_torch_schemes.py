"""Every quantization scheme of TorchScript and ExecuTorch: types in the file, accuracy, bytes, refusals."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.errors import StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.metrics.mean_squared_error import MeanSquaredError
from edgeopt.evaluation.tasks.regression import Regression
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.lab import xnnpack_tensors
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Head, Judging, NamedMetric, Sample, Stage
from edgeopt.results import Trial
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_torchscript import ExportedProgramToTorchscript
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.quantize_dynamic_torchscript import QuantizeDynamicTorchscript
from edgeopt.stages.quantize_float16_executorch import QuantizeFloat16Executorch
from edgeopt.stages.quantize_fx import QuantizeFx
from edgeopt.stages.quantize_weights_executorch import QuantizeWeightsExecutorch
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch", "sklearn")
# torch, torchao and ExecuTorch warn about their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

LOOK = Preprocessing(scale=1 / 16, layout="NHWC")
STATIC = (QuantizeFx, QuantizeXnnpack)


class Net(torch.nn.Module):
    """Convolutions, one of them depthwise, and linear layers, one with an input size not divisible by 32."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 8, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 5, padding=2, groups=8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
            torch.nn.ReLU(),
        )
        self.hidden = torch.nn.Linear(256, 63)
        self.head = torch.nn.Linear(63, 10)

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.hidden(self.body(x).flatten(1))))


class Rows(torch.nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(8, 48, batch_first=True)
        self.head = torch.nn.Linear(48, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x[:, 0])[0][:, -1])


class Faint(Dataset):
    """Digits 1,000 times too dark, and a channel of bright noise: one scale cannot fit both."""

    part: str = "calibration"

    def samples(self) -> Iterator[Sample]:
        generator = np.random.default_rng(5)
        for sample in Digits(part=self.part, limit=200).samples():
            image = sample.inputs[0].transpose(2, 0, 1).astype(np.float32) / 16
            noise = generator.random(image.shape).astype(np.float32)
            yield Sample((np.concatenate([noise, image / 1000]),), sample.label)

    def digest(self) -> str:
        return f"faint-{self.part}"


class Given(Dataset):
    """Samples from memory."""

    images: tuple[Any, ...] = ()

    def samples(self) -> Iterator[Sample]:
        for image in self.images:
            yield Sample((image,))

    def digest(self) -> str:
        return "given"


def spec(channels: int = 1) -> TensorSpec:
    return TensorSpec(name="image", shape=(1, channels, 8, 8), layout="NCHW")


def labelled(part: str) -> tuple[Any, Any]:
    samples = list(Digits(part=part, limit=1000).samples())
    images = np.stack([sample.inputs[0].transpose(2, 0, 1) for sample in samples]).astype(np.float32) / 16
    return torch.from_numpy(images), torch.tensor([sample.label for sample in samples])


def trained(module: Any, epochs: int) -> Any:
    images, labels = labelled("train")
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(module.parameters(), 4e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(50):
            loss = torch.nn.functional.cross_entropy(module(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemes")


@pytest.fixture(scope="module")
def net_module() -> Any:
    torch.manual_seed(0)
    with torch_engine.one_thread():
        return trained(Net(), 8)


@pytest.fixture(scope="module")
def net(net_module: Any, folder: Path) -> Model:
    return exported(net_module, folder / "net")


@pytest.fixture(scope="module")
def rows(folder: Path) -> Model:
    torch.manual_seed(0)
    with torch_engine.one_thread():
        return exported(trained(Rows(), 15), folder / "rows")


def exported(module: Any, folder: Path, channels: int = 1) -> Model:
    folder.mkdir()
    source = Model(format="torch", path=folder)
    return torch_program.save_module(module, folder / "model.pt2", source, (spec(channels),))


class Told:
    """Notes of a stage for the report."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.trials: list[Trial] = []

    def context(self, folder: Path, dataset: Dataset | None = None) -> Context:
        folder.mkdir(parents=True, exist_ok=True)
        feed = Feed(dataset or Digits(part="calibration", limit=100), LOOK)
        if isinstance(dataset, Faint | Given):
            feed = Feed(dataset, Preprocessing())
        return Context(folder, feed, lambda _: None, note=self.notes.append, trial=self.trials.append)


def finished(stage: Stage, model: Model, folder: Path, told: Told, dataset: Dataset | None = None) -> Model:
    """The device file that follows from the output of a stage."""
    made = stage.run(model, told.context(folder / "quantized", dataset))
    last = TorchscriptToMobile() if made.format == "torchscript_module" else ExportedProgramToExecutorch()
    return last.run(made, told.context(folder / "finished"))


def runner(model: Model) -> Callable[..., Any]:
    if model.format == "torchscript":
        return torch_runtimes.load_lite(model.path)
    if model.format == "torchscript_module":
        return torch_script.load_script(model.path)
    if model.format == "executorch":
        return torch_runtimes.load_executorch(model.path.read_bytes())
    module: Callable[..., Any] = torch_program.read(model.path).module(check_guards=False)
    return module


def top1(model: Model, dataset: Dataset | None = None) -> float:
    """Top-1 accuracy on the first 200 evaluation images, in the format's own runtime."""
    if dataset is None:
        images, labels = (part[:200].numpy() for part in labelled("evaluation"))
        inputs = [(image[np.newaxis],) for image in images]
    else:
        samples = list(dataset.samples())
        inputs = [(sample.inputs[0][np.newaxis],) for sample in samples]
        labels = np.array([sample.label for sample in samples])
    with torch_engine.mobile_engine():
        outputs = torch_runtimes.outputs(runner(model), inputs).arrays[0]
    assert outputs.dtype == np.float32
    return float(np.mean(outputs.argmax(1) == labels))


def weight_types(model: Model) -> dict[tuple[int, ...], str]:
    """Type of each weight in an ExecuTorch file, by its shape as XNNPACK has it."""
    return {t.shape: t.type for t in xnnpack_tensors.read(model.path) if t.constant and len(t.shape) > 1}


def script_code(model: Model) -> bytes:
    with zipfile.ZipFile(model.path) as archive:
        return archive.read("model/bytecode.pkl") + archive.read("model/constants.pkl")


CONV1, DEPTHWISE, CONV3, HIDDEN, HEAD = (1, 3, 3, 8), (1, 5, 5, 8), (16, 3, 3, 8), (63, 256), (10, 63)


def test_dynamic_int8_of_an_lstm_for_torchscript(rows: Model, tmp_path: Path) -> None:
    told = Told()
    lite = finished(QuantizeDynamicTorchscript(), rows, tmp_path, told)
    plain = finished(ExportedProgramToTorchscript(), rows, tmp_path / "plain", Told())
    code = script_code(lite)
    assert b"aten::quantized_lstm" in code
    assert b"quantized::linear_dynamic" in code
    assert b"aten::lstm" not in code
    assert top1(plain) > 0.9
    assert top1(plain) - top1(lite) <= 0.01
    weights = 4 * 48 * (8 + 48) + 48 * 10
    assert plain.path.stat().st_size - lite.path.stat().st_size > 2.7 * weights
    assert told.notes == []
    kept = QuantizeDynamicTorchscript(layers={"rnn": "float32"})
    code = script_code(finished(kept, rows, tmp_path / "kept", Told()))
    assert b"aten::lstm" in code
    assert b"quantized::linear_dynamic" in code


def test_dynamic_int8_for_torchscript_says_what_stays_in_float(net: Model, tmp_path: Path) -> None:
    told = Told()
    lite = finished(QuantizeDynamicTorchscript(), net, tmp_path, told)
    assert script_code(lite).count(b"quantized::linear_dynamic") == 1  # operators are listed once
    assert "body_0 (conv2d), body_2 (conv2d), body_4 (conv2d), which stay in float" in told.notes[0]
    assert "2 of 5 layers" in told.notes[0]
    assert top1(net) - top1(lite) <= 0.01
    assert lite.path.stat().st_size < 0.5 * 4 * (63 * 256 + 63 * 10)


def test_dynamic_int8_for_executorch(net: Model, tmp_path: Path) -> None:
    told = Told()
    result = finished(QuantizeWeightsExecutorch(), net, tmp_path, told)
    types = weight_types(result)
    assert {types[shape] for shape in (CONV3, HIDDEN, HEAD)} == {"int8 per channel"}
    assert types[CONV1] == types[DEPTHWISE] == "float32"
    activations = {t.type for t in xnnpack_tensors.read(result.path) if not t.constant}
    assert activations == {"float32", "int8 at run time"}
    assert "no kernel for body_0 (conv2d), body_2 (conv2d), which stay in float" in told.notes[0]
    assert top1(net) - top1(result) <= 0.01
    assert result.path.stat().st_size < 0.5 * 4 * 256 * 63


def test_int4_for_executorch(net: Model, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no kernel for body_0 \(conv2d, int4\)") as caught:
        QuantizeWeightsExecutorch(scheme="int4").run(net, Told().context(tmp_path / "refused"))
    assert "layers: {body_0: float32}" in caught.value.fix
    told = Told()
    layers: dict[str, Any] = {"body.*": "float32", "body.4": "int8"}
    result = finished(QuantizeWeightsExecutorch(scheme="int4", layers=layers), net, tmp_path / "a", told)
    types = weight_types(result)
    assert types[HIDDEN] == "int4 per block"
    assert types[HEAD] == "int4 per channel"
    assert types[CONV3] == "int8 per channel"
    assert types[CONV1] == types[DEPTHWISE] == "float32"
    assert told.notes == []
    assert top1(net) - top1(result) <= 0.03
    int8 = finished(QuantizeWeightsExecutorch(), net, tmp_path / "b", Told())
    assert int8.path.stat().st_size - result.path.stat().st_size > 0.35 * 256 * 63


def test_float16_for_executorch(net: Model, tmp_path: Path) -> None:
    told = Told()
    result = finished(QuantizeFloat16Executorch(layers={"head": "float32"}), net, tmp_path, told)
    types = weight_types(result)
    assert types[HIDDEN] == "float16"
    assert types[HEAD] == types[CONV1] == "float32"
    assert "convolution weights as float32" in told.notes[0]
    assert "float16" in {t.type for t in xnnpack_tensors.read(result.path) if not t.constant}
    assert result.inputs[0].dtype == result.outputs[0].dtype == "float32"
    assert top1(net) - top1(result) <= 0.005
    assert result.path.stat().st_size < 0.8 * 4 * 256 * 63


def test_float16_refuses_numbers_that_are_too_large(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
    module[0].weight.data *= 1e7
    model = exported(module.eval(), tmp_path / "large")
    with pytest.raises(StageError, match="beyond 65504"):
        QuantizeFloat16Executorch().run(model, Told().context(tmp_path / "out"))


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy", "mse"])
def test_every_calibrator(calibrator: Any, net: Model, tmp_path: Path) -> None:
    before = top1(net)
    script = QuantizeFx(calibrator=calibrator, percentile=99.9)
    assert before - top1(finished(script, net, tmp_path / "fx", Told())) <= 0.02
    program = QuantizeXnnpack(calibrator=calibrator, percentile=99.9)
    assert before - top1(program.run(net, Told().context(tmp_path / "xnnpack"))) <= 0.02


def test_calibrators_and_channels_differ(net: Model, tmp_path: Path) -> None:
    """An ignored option would give the same file."""
    files = set()
    for number, options in enumerate(
        ({}, {"calibrator": "minmax"}, {"calibrator": "percentile", "percentile": 90}, {"per_channel": False})
    ):
        made = QuantizeFx.model_validate(options).run(net, Told().context(tmp_path / str(number)))
        files.add(made.path.read_bytes())
    assert len(files) == 4


def test_layers_left_in_float(net: Model, tmp_path: Path) -> None:
    layers: dict[str, Any] = {"body.*": "float32", "body_4": "int8"}
    result = finished(QuantizeXnnpack(layers=layers), net, tmp_path / "a", Told())
    types = weight_types(result)
    assert types[CONV1] == types[DEPTHWISE] == "float32"
    assert types[CONV3] == types[HIDDEN] == "int8 per channel"
    assert top1(net) - top1(result) <= 0.01
    lite = finished(QuantizeFx(layers=layers), net, tmp_path / "b", Told())
    with zipfile.ZipFile(lite.path) as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "constants/" in entry.filename]
    assert 4 * 8 * 9 in sizes
    assert 4 * 8 * 25 in sizes
    assert 16 * 8 * 9 in sizes
    assert top1(net) - top1(lite) <= 0.01


@pytest.mark.parametrize(
    "stage",
    [
        QuantizeFx(layers={"boddy.0": "float32"}),
        QuantizeXnnpack(layers={"boddy.0": "float32"}),
        QuantizeDynamicTorchscript(layers={"boddy.0": "float32"}),
        QuantizeWeightsExecutorch(layers={"boddy.0": "float32"}),
        QuantizeFloat16Executorch(layers={"boddy.0": "float32"}),
    ],
)
def test_a_pattern_that_fits_nothing_is_an_error(stage: Stage, net: Model, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no layer is called 'boddy\.0'") as caught:
        stage.run(net, Told().context(tmp_path / "out", Digits(part="calibration", limit=3)))
    assert "body_0" in caught.value.fix


@pytest.mark.parametrize("kind", STATIC)
def test_one_sample_is_little_and_said(kind: Any, net: Model, tmp_path: Path) -> None:
    told = Told()
    made = kind().run(net, told.context(tmp_path / "out", Digits(part="calibration", limit=1)))
    assert made.path.stat().st_size > 0
    assert "calibrated with 1 sample:" in told.notes[0]


@pytest.mark.parametrize("kind", STATIC)
def test_a_sample_that_is_not_finite_is_named(kind: Any, net: Model, tmp_path: Path) -> None:
    good = np.zeros((1, 8, 8), np.float32)
    images = Given(images=(good, np.full_like(good, np.nan)))
    with pytest.raises(StageError, match="calibration sample 2 is unusable: in image"):
        kind().run(net, Told().context(tmp_path / "out", images))


@pytest.mark.parametrize("kind", STATIC)
def test_int8_of_an_lstm_is_int8_weights(kind: Any, rows: Model, tmp_path: Path) -> None:
    few = Digits(part="calibration", limit=20)
    told = Told()
    made = kind().run(rows, told.context(tmp_path / "out", few))
    assert any("recurrent layers" in note for note in told.notes)
    assert top1(rows) - top1(made) <= 0.02
    kept = kind(layers={"rnn": "float32"}).run(rows, Told().context(tmp_path / "kept", few))
    assert top1(rows) - top1(kept) <= 0.02
    weights = 4 * 48 * (8 + 48)
    assert kept.path.stat().st_size - made.path.stat().st_size > 1.8 * weights


@pytest.mark.parametrize("kind", STATIC)
def test_search_finds_the_layer_that_needs_float(kind: Any, net_module: Any, tmp_path: Path) -> None:
    hostile = Net(channels=2)
    state = dict(net_module.state_dict())
    first = state["body.0.weight"]
    state["body.0.weight"] = torch.cat([torch.zeros_like(first), 1000 * first], 1)
    hostile.load_state_dict(state)
    model = exported(hostile.eval(), tmp_path / "hostile", 2)
    data = Faint(part="evaluation")
    told = Told()
    plain = finished(kind(), model, tmp_path / "plain", Told(), Faint())
    assert top1(model, data) - top1(plain, data) > 0.2
    made = finished(kind(scheme="mixed", max_drop=0.005), model, tmp_path / "mixed", told, Faint())
    assert top1(model, data) - top1(made, data) <= 0.01
    assert made.path.stat().st_size < 1.1 * plain.path.stat().st_size
    chosen = [trial for trial in told.trials if trial.status == "chosen"]
    assert [trial.raised for trial in chosen] == [("body_0",)]
    assert chosen[0].samples == 200
    assert "max_drop 0.005 holds" in told.notes[-1]
    assert sorted(path.name for path in (tmp_path / "mixed" / "quantized").iterdir()) == [
        "model.pt" if kind is QuantizeFx else "model.pt2"
    ]


@pytest.mark.parametrize(
    "kind",
    [*STATIC, QuantizeDynamicTorchscript, QuantizeWeightsExecutorch, QuantizeFloat16Executorch],
)
def test_int8_inputs_are_refused_before_anything_runs(kind: Any) -> None:
    with pytest.raises(ValidationError, match="not int8"):
        kind(io="int8")


def test_no_dynamic_kernel_is_an_error(tmp_path: Path) -> None:
    model = exported(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)).eval(), tmp_path / "conv")
    with pytest.raises(StageError, match="LSTM and GRU layers only, and this model has conv2d"):
        QuantizeDynamicTorchscript().run(model, Told().context(tmp_path / "a"))
    with pytest.raises(StageError, match=r"no dynamic int8 kernel for 0 \(conv2d\)"):
        QuantizeDynamicTorchscript(layers={"0": "int8"}).run(model, Told().context(tmp_path / "b"))
    depthwise = exported(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, groups=1)).eval(), tmp_path / "depth")
    with pytest.raises(StageError, match="supports int8 weights for no layer of this model"):
        QuantizeWeightsExecutorch(layers={"0": "float32"}).run(depthwise, Told().context(tmp_path / "c"))


def test_which_schemes_there_are() -> None:
    """The planner refuses all other schemes."""
    found: dict[str, set[str]] = {}
    for stage in registry.plugins(Stage).values():
        for scheme in stage.fulfils.get("quantize", ()):
            found.setdefault(stage.produces, set()).add(scheme)
    assert found["torchscript_module"] == {"int8", "mixed", "dynamic_int8"}
    assert found["exported_program_xnnpack"] == {"int8", "mixed", "dynamic_int8", "float16", "int4"}


@pytest.mark.slow
def test_schemes_on_resnet20(real_data: Path, tmp_path: Path) -> None:
    """Types, bytes and signal-to-noise of the float model's own answers, on real images."""
    recipes = Path(__file__).resolve().parent.parent / "recipes"
    stage = LoadTorch(
        factory={"target": "models.resnet:resnet20", "folder": recipes},
        weights=real_data / "resnet-cifar10" / "resnet20.th",
        inputs=(TensorSpec(name="image", shape=(1, 3, 32, 32), layout="NCHW"),),
    )
    source = stage.run(Model(format="torch_source", path=tmp_path), Told().context(tmp_path / "load"))
    model = TorchToExportedProgram().run(source, Told().context(tmp_path / "export"))
    look = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC")
    with np.load(real_data / "cifar10" / "test446.npz") as data:
        inputs: list[tuple[Array, ...]] = [(look.apply(x, model.inputs[0]),) for x in data["x"][:100]]
    wanted = torch_runtimes.outputs(torch_program.plain_graph(model)[0], inputs).arrays[0]
    weights = 269_722 - 10 - 2 * (7 * 16 + 6 * 32 + 6 * 64)

    def snr_db(result: Model) -> float:
        outputs = torch_runtimes.outputs(runner(result), inputs).arrays[0]
        return float(10 * np.log10((wanted**2).sum() / ((outputs - wanted) ** 2).sum()))

    dynamic = finished(QuantizeWeightsExecutorch(), model, tmp_path / "dynamic", Told())
    assert set(weight_types(dynamic).values()) == {"int8 per channel"}
    assert snr_db(dynamic) > 28
    assert dynamic.path.stat().st_size < 1.2 * weights
    half = finished(QuantizeFloat16Executorch(), model, tmp_path / "half", Told())
    assert {t.type for t in xnnpack_tensors.read(half.path) if not t.constant} == {"float16"}
    assert snr_db(half) > 50
    mixed = QuantizeWeightsExecutorch(scheme="int4", layers={"*conv*": "int8"})
    int4 = finished(mixed, model, tmp_path / "int4", Told())
    assert weight_types(int4)[10, 64] == "int4 per block"
    assert snr_db(int4) > 20
    lite = finished(QuantizeDynamicTorchscript(), model, tmp_path / "lite", Told())
    assert b"quantized::linear_dynamic" in script_code(lite)
    assert snr_db(lite) > 35


class Joined(torch.nn.Module):
    """Two layers, one with an activation, whose outputs of very different size are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(1, 4, 3)

    def forward(self, x: Any) -> Any:
        joined = torch.cat([30 * torch.relu(self.large(x)), torch.relu(self.small(x))], 1)
        return joined.flatten(2)


@pytest.mark.parametrize("kind", STATIC)
def test_a_search_keeps_the_scales_of_joined_outputs_apart(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Joined().eval()
    model = exported(module, tmp_path / "joined")
    told = Told()
    judging = Judging(NamedMetric.of(MeanSquaredError()), (Head("", Regression()),))
    context = told.context(tmp_path / "out")._replace(judging=judging)
    made = kind(max_drop=1e-6).run(model, context)
    chosen = next(trial for trial in told.trials if trial.status == "chosen")
    assert "joined outputs" in chosen.raised
    images = [(image[np.newaxis],) for image in labelled("evaluation")[0][:20].numpy()]
    with torch_engine.mobile_engine():
        found = torch_runtimes.outputs(runner(made), images).arrays[0][:, 4:]
    wanted = torch_runtimes.outputs(module, images).arrays[0][:, 4:]
    # With one scale for both, a step would be larger than most of the small values.
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


class Scaled(torch.nn.Module):
    """A product with a number, which the kernel computes on the scale alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)

    def forward(self, x: Any) -> Any:
        return (300 * torch.relu(self.conv(x))).flatten(2)


@pytest.mark.parametrize("kind", STATIC)
def test_a_product_with_a_number_keeps_the_scale_of_its_input(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Scaled().eval()
    made = kind().run(exported(module, tmp_path / "scaled"), Told().context(tmp_path / "out"))
    images = [(image[np.newaxis],) for image in labelled("evaluation")[0][:20].numpy()]
    wanted = torch_runtimes.outputs(module, images).arrays[0]
    with torch_engine.mobile_engine():
        found = torch_runtimes.outputs(runner(made), images).arrays[0]
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
