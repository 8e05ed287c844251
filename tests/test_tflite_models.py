"""PyTorch operators that litert-torch or ai-edge-quantizer convert wrongly or not at all, in TFLite."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats.tflite.graph import interpreter as tflite_interpreter
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.quantize_tflite import QuantizeTflite
from needs import needs

torch = pytest.importorskip("torch")
needs("litert_torch", "ai_edge_quantizer")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

nn, F = torch.nn, torch.nn.functional

IMAGE = TensorSpec(name="image", shape=(1, 3, 12, 12), layout="NCHW")


class Images(Dataset):
    count: int = 40
    seed: int = 1
    shape: tuple[int, ...] = (3, 12, 12)

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(self.seed)
        for _ in range(self.count):
            yield Sample((random.normal(size=self.shape).astype(np.float32),))

    def digest(self) -> str:
        return "images"


class Case:
    """A module, converted, with its outputs by name."""

    def __init__(self, module: Any, folder: Path, spec: TensorSpec = IMAGE) -> None:
        self.folder, self.module = folder, module.eval()
        source = Model(format="torch", path=folder, inputs=(spec,))
        self.program = torch_program.save_module(self.module, folder / "model.pt2", source, (spec,))
        self.data = Images(shape=spec.shape[1:])
        own = Images(count=8, seed=2, shape=spec.shape[1:])
        self.samples = [sample.inputs[0][None] for sample in own.samples()]
        self.notes: list[str] = []
        with torch.no_grad():
            found = [module(torch.from_numpy(sample)) for sample in self.samples]
        names = found[0] if isinstance(found[0], dict) else {"output": None}
        rows = found if isinstance(found[0], dict) else [{"output": value} for value in found]
        self.reference = {name: np.concatenate([row[name].numpy() for row in rows]) for name in names}

    def context(self, name: str) -> Context:
        (self.folder / name).mkdir()
        feed = Feed(self.data, Preprocessing(layout="NCHW"))
        return Context(self.folder / name, feed, lambda _: None, note=self.notes.append)

    def float_model(self) -> Model:
        return ExportedProgramToTflite().run(self.program, self.context("float"))

    def snr_db(self, model: Model) -> dict[str, float]:
        inputs = [(s.transpose(0, 2, 3, 1) if s.ndim == 4 else s,) for s in self.samples]
        outputs = tflite_interpreter.outputs(model.path, inputs)
        assert len(set(outputs.names)) == len(self.reference)
        found = dict(zip(self.reference, outputs.arrays, strict=True))
        return {name: snr_db(self.reference[name], found[name]) for name in found}


def snr_db(expected: Array, found: Array) -> float:
    noise = np.square(expected.astype(np.float64) - found.reshape(expected.shape)).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))


class Many(nn.Module):
    """One output per operator."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.transposed = nn.ModuleDict(
            {
                "extended": nn.ConvTranspose2d(8, 6, 3, 2, 1, 1),
                "cut": nn.ConvTranspose2d(8, 6, 3, 2, 1),
                "grouped": nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=4),
                "dilated": nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, dilation=2),
                "beyond": nn.ConvTranspose2d(8, 6, 6, 4, 1, 2),
                "rectangular": nn.ConvTranspose2d(8, 6, (3, 4), (2, 1), (1, 0), (1, 0), bias=False),
                "usual": nn.ConvTranspose2d(8, 6, 4, 2, 1),
            }
        )
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, image: Any) -> dict[str, Any]:
        x = self.stem(image)
        positive = F.relu(x)
        made = {name: layer(x) for name, layer in self.transposed.items()}
        for name, options in RESIZES.items():
            made[name] = F.interpolate(x, **options)
        made["complement"] = self.last(1 - positive)
        made["difference"] = self.last(torch.linspace(0, 1, 8).view(1, 8, 1, 1) - positive)
        made["quotient"] = self.last(2 / (positive + 1))
        made["reciprocal"] = self.last((positive + 0.5).reciprocal())
        boxes = x.view(1, 2, 4, 12, 12).permute(0, 1, 3, 4, 2).sigmoid()
        made["square"], made["cube"] = (boxes * 2) ** 2 * 3, (boxes - 0.5) ** 3
        made["normalized"] = self.last(F.normalize(x, dim=1))
        rows = x.mean(3)
        made["largest"], made["smallest"] = rows.topk(3, 1)[0], rows.topk(2, largest=False)[0]
        made["sorted"], made["places"] = rows.sort(1)[0], rows.sort(descending=True)[1].float()
        made["order"] = rows.argsort(1).float()
        made["reflected"], made["replicated"] = (
            F.pad(rows, (3, 7), "reflect"),
            F.pad(x, (2, 1, 0, 3), "replicate"),
        )
        made["finite"] = self.last(x.nan_to_num())
        made["pooled"] = self.last(F.max_pool2d(x - 3, 3, 2, 1))  # padded with minus infinity
        made["filled"] = self.last(x.index_fill(1, torch.tensor([1, 3]), 0.2))
        return made


RESIZES: dict[str, dict[str, Any]] = {
    "nearest integer": {"scale_factor": 3, "mode": "nearest"},
    "nearest odd": {"size": (13, 29), "mode": "nearest"},
    "nearest mixed": {"size": (24, 18), "mode": "nearest"},
    "nearest smaller": {"scale_factor": 0.5, "mode": "nearest"},
    "nearest rounded": {"scale_factor": 0.3, "mode": "nearest"},
    "bilinear": {"size": (7, 21), "mode": "bilinear"},
    "bilinear rounded": {"scale_factor": 1.7, "mode": "bilinear"},
    "antialiased": {"scale_factor": 0.4, "mode": "bicubic", "antialias": True},
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Model]:
    torch.manual_seed(0)
    case = Case(Many(), tmp_path_factory.mktemp("many"))
    return case, case.float_model()


def test_every_operator_is_exact_in_float(many: tuple[Case, Model]) -> None:
    case, model = many
    found = case.snr_db(model)
    assert len(found) == 7 + len(RESIZES) + 17
    assert {name: value for name, value in found.items() if value < 100} == {}


def test_every_operator_is_close_in_int8(many: tuple[Case, Model]) -> None:
    case, model = many
    found = case.snr_db(QuantizeTflite().run(model, case.context("int8")))
    assert min(found.pop("places"), found.pop("order")) > 10  # values that are equal in int8
    assert {name: value for name, value in found.items() if value < 25} == {}


class Constants(nn.Module):
    """Constants of other ranks than the output, and channels that batch norm has nearly switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dense = nn.Linear(8, 5)
        with torch.no_grad():
            for at, (weight, bias) in enumerate([(0.0, 1.5), (1e-9, -1.2), (2e-6, 0.6)]):
                for layer in (self.first, self.second, self.depthwise, self.dense):
                    layer.weight[at] *= weight
                    layer.bias[at] = bias
        self.register_buffer("least", torch.linspace(-1, 1, 8).view(8, 1, 1))

    def forward(self, image: Any) -> dict[str, Any]:
        x = self.depthwise(self.second(self.first(image)))
        pooled = F.adaptive_avg_pool2d(torch.maximum(x, self.least), (5, 7))
        return {
            "dense": self.dense(pooled.mean((2, 3))),
            "pooled": pooled,
            "kept": torch.minimum(x, self.least),
        }


@pytest.mark.parametrize("per_channel", [True, False])
def test_constants_and_channels_that_are_switched_off_in_int8(tmp_path: Path, per_channel: bool) -> None:
    torch.manual_seed(0)
    case = Case(Constants(), tmp_path)
    model = case.float_model()
    found = case.snr_db(QuantizeTflite(per_channel=per_channel).run(model, case.context("int8")))
    assert min(found.values()) > (30 if per_channel else 20), found


class Slopes(nn.Module):
    """PReLU after layers with many weights: one slope for all, slopes up to 1, and any slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2)
        self.dense = nn.ModuleList([nn.Linear(800, 128), nn.Linear(128, 128), nn.Linear(128, 128)])
        self.slopes = nn.ModuleList([nn.PReLU(), nn.PReLU(32), nn.PReLU(128), nn.PReLU(128)])
        with torch.no_grad():
            for largest, layer in zip((0.0, 0.9, 0.9, 1.8), self.slopes, strict=True):
                layer.weight += torch.rand_like(layer.weight) * largest - 0.3

    def forward(self, image: Any) -> Any:
        x = self.slopes[1](self.slopes[0](self.stem(image))).flatten(1)
        x = self.slopes[2](self.dense[0](x))
        return self.dense[2](self.slopes[3](self.dense[1](x)))


def test_weights_before_a_prelu_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(Slopes(), tmp_path)
    model = case.float_model()
    weights = sum(value.numel() * value.element_size() for value in case.module.state_dict().values())
    assert model.path.stat().st_size < 1.03 * weights + 16_384
    assert case.snr_db(model)["output"] > 100
    assert case.snr_db(QuantizeTflite().run(model, case.context("int8")))["output"] > 25


class Quotient(nn.Module):
    """Divides by values that are zero where the image is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)

    def forward(self, image: Any) -> Any:
        x = self.stem(image)
        return x / (x.abs().amax((2, 3), keepdim=True) + 1e-3)


def test_a_division_by_values_near_zero_stays_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(Quotient(), tmp_path)
    model = QuantizeTflite().run(case.float_model(), case.context("int8"))
    assert case.snr_db(model)["output"] > 30
    assert any("stay in float" in note and "DIV" in note for note in case.notes)
    zeros = tflite_interpreter.outputs(model.path, [(np.zeros((1, 12, 12, 3), np.float32),)])
    assert np.isfinite(zeros.arrays[0]).all()


IDS = TensorSpec(name="ids", shape=(1, 12), dtype="int64")


class Words(nn.Module):
    """The table of the embedding is also the matrix of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense = nn.Embedding(300, 32), nn.Linear(32, 32)

    def forward(self, ids: Any) -> Any:
        return F.linear(F.relu(self.dense(self.table(ids))), self.table.weight)


class Sentences(Dataset):
    def samples(self) -> Iterator[Sample]:
        for seed in range(40):
            yield Sample((np.random.default_rng(seed).integers(0, 300, 12),))

    def digest(self) -> str:
        return "sentences"


def test_embeddings_have_int8_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Words().eval()
    source = Model(format="torch", path=tmp_path, inputs=(IDS,))
    program = torch_program.save_module(module, tmp_path / "model.pt2", source, (IDS,))
    (tmp_path / "float").mkdir()
    (tmp_path / "int8").mkdir()
    feed = Feed(Sentences(), Preprocessing())
    float_model = ExportedProgramToTflite().run(program, Context(tmp_path / "float", None, lambda _: None))
    int8 = QuantizeTflite().run(float_model, Context(tmp_path / "int8", feed, lambda _: None))
    assert float_model.path.stat().st_size < 1.03 * 4 * (300 * 32 + 33 * 32) + 16_384
    assert int8.path.stat().st_size < 0.45 * float_model.path.stat().st_size
    samples = [sample.inputs[0][None] for sample in Sentences().samples()]
    with torch.no_grad():
        reference = np.concatenate([module(torch.from_numpy(ids)).numpy() for ids in samples])
    found = tflite_interpreter.outputs(int8.path, [(ids.astype(np.int32),) for ids in samples])
    assert snr_db(reference, found.arrays[0]) > 30


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image: Any) -> Any:
        return F.fold(F.unfold(F.relu(self.stem(image)), 2, stride=2), (12, 12), 2, stride=2)


class Solid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grown = nn.ConvTranspose3d(1, 2, 3, 2)

    def forward(self, image: Any) -> Any:
        return self.grown(image[:, None])


@pytest.mark.parametrize(
    ("module", "named", "line"),
    [
        (Folded, "aten.col2im after layer stem", "return F.fold(F.unfold(F.relu(self.stem(image)), 2"),
        (Solid, "aten.conv_transpose3d of layer grown", "return self.grown(image[:, None])"),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path: Path, module: Any, named: str, line: str) -> None:
    """One of them litert-torch refuses, the other it writes as an operator without a kernel."""
    case = Case(module(), tmp_path)
    with pytest.raises(StageError, match=f"{named} cannot be converted to TFLite") as refused:
        case.float_model()
    assert f"\n  test_tflite_models.py, in forward: {line}" in refused.value.message
    assert "replace this operator in the model" in (refused.value.fix or "")


VECTOR = TensorSpec(name="vector", shape=(1, 8))


class Ends(nn.Module):
    """Outputs that are inputs, constants, copies, or read inside; ``last`` is the last operator."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), last
        self.register_buffer("constant", torch.arange(4.0))

    def forward(self, vector: Any) -> dict[str, Any]:
        state = self.first(vector)
        made = {"same": vector, "state": state, "again": state}
        match self.last:
            case "layer":
                made["constant"] = self.constant
                made["result"] = self.second(state)
            case "reshape":
                made["reshaped"] = vector.reshape(4, 2)
                made["result"] = state.reshape(2, 4)
            case "requantized":
                made["result"] = torch.cat([state, vector * 3, state], 1)
            case "comparison":
                made["other"] = self.second(vector)
                made["result"] = (state > made["other"]).float()
        return made


@pytest.mark.parametrize("last", ["layer", "reshape", "requantized", "comparison"])
def test_outputs_that_are_inputs_or_read_inside(tmp_path: Path, last: str) -> None:
    torch.manual_seed(0)
    case = Case(Ends(last), tmp_path, VECTOR)
    model = case.float_model()
    assert min(case.snr_db(model).values()) > 100
    integer = QuantizeTflite().run(model, case.context("int8"))
    assert {spec.dtype for spec in integer.outputs} == {"float32"}
    found = case.snr_db(integer)
    assert found.pop("same") > 200  # not rounded
    assert min(found.values()) > 22, found
    first = QuantizeTflite(layers={"first": "float32"}).run(model, case.context("mixed"))
    assert case.snr_db(first)["state"] > 100
    assert min(case.snr_db(first).values()) > 22


class Tokens(nn.Module):
    """Tokens of very different variance, each normalized; and their logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.spectrum, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.register_buffer("sizes", torch.logspace(0, -2, 12)[:, None])

    def forward(self, tokens: Any) -> Any:
        return {
            "normalized": self.last(self.norm(self.first(tokens) * self.sizes)),
            "logarithm": self.head((self.spectrum(tokens) ** 2 + 1e-6).log()),
        }


def test_small_variances_have_steps_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(Tokens(), tmp_path, TensorSpec(name="tokens", shape=(1, 12, 16)))
    model = case.float_model()
    found = case.snr_db(QuantizeTflite(scheme="int8x16").run(model, case.context("int8x16")))
    assert found["normalized"] > 30
    assert any("variances" in note for note in case.notes)
    assert any("logarithm" in note and "layers: {'spectrum': float32}" in note for note in case.notes)
