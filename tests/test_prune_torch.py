"""Pruning and clustering PyTorch modules, and rebuilding pruned ones."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.prune import channels as torch_channels
from edgeopt.formats.torch.prune import counting as torch_counting
from edgeopt.formats.torch.prune.importance import by_outputs, kept_channels
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Feed
from edgeopt.stages.cluster_torch import ClusterTorch
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.prune_torch import PruneTorch
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from needs import needs

torch = pytest.importorskip("torch")
needs("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and torch-pruning warn about their own code

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
ROOMS = Path(__file__).resolve().parent.parent / "pipeline" / "edgeopt"

NETS = '''
import torch
from torch import nn
from torch.nn import functional as F


class Padded(nn.Module):
    """A shortcut that counts on its channels, and a block inside which they are free."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 32, 3, padding=1)
        self.outer = nn.Conv2d(32, 16, 3, padding=1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.outer(torch.sigmoid(self.inner(x)))
        return self.linear((y + F.pad(x, (0, 0, 0, 0, 4, 4))).mean((2, 3)))


class Rigid(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 64, 5)

    def forward(self, x):
        return self.linear(self.conv(x).view(-1, 8 * 64))


class Mixed(nn.Module):
    """Concatenation, depthwise, transposed and grouped convolution, flattening, softmax."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.b = nn.Conv2d(3, 16, 1)
        self.joined = nn.Conv2d(32, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.prelu = nn.PReLU(16)
        self.linear = nn.Linear(16 * 64, 24)
        self.last = nn.Linear(24, 5)

    def forward(self, x):
        left = self.depthwise(F.relu(self.norm(self.a(x))))
        x = F.relu(self.joined(torch.cat([left, self.b(x)], 1)))
        x = self.prelu(self.up(x))
        return F.softmax(self.last(F.relu(self.linear(x.flatten(1)))), 1)
'''

IMAGE = TensorSpec(name="image", shape=(1, 3, 8, 8), layout="NCHW")
DIGIT = TensorSpec(name="image", shape=(1, 1, 8, 8), layout="NCHW")
SCALED = Preprocessing(scale=1 / 16, layout="NHWC")


class Noise(Digits):
    """Digits as three-channel images."""

    def samples(self) -> Any:
        for sample in super().samples():
            yield sample._replace(inputs=(np.repeat(sample.inputs[0], 3, axis=2),))


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "toy_pruned_nets.py").write_text(NETS)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network of the recipe digits-torch."""
    return LoadTorch(
        factory={"target": "models.digits_cnn:digits_cnn", "folder": RECIPES},
        weights=RECIPES / "digits" / "digits.safetensors",
        inputs=(DIGIT,),
    ).run(Model(format="torch_source", path=Path()), context(tmp_path_factory.mktemp("digits")))


def toy(code: Path, name: str, folder: Path) -> Model:
    return LoadTorch(factory={"target": f"toy_pruned_nets:{name}", "folder": code}, inputs=(IMAGE,)).run(
        Model(format="torch_source", path=Path()), context(folder / f"load-{name}")
    )


def context(folder: Path, notes: list[str] | None = None, rgb: bool = False) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    dataset = (Noise if rgb else Digits)(part="calibration")
    note = [].append if notes is None else notes.append
    return Context(folder, Feed(dataset, SCALED), lambda _: None, note=note)


def pruned(model: Model, folder: Path, rgb: bool = False, **options: Any) -> tuple[Model, list[str]]:
    notes: list[str] = []
    return PruneTorch(**options).run(model, context(folder, notes, rgb)), notes


def answers(model: Model, count: int = 8) -> Array:
    values = np.random.default_rng(0).normal(size=(count, *model.inputs[0].shape[1:])).astype(np.float32)
    with torch.no_grad():
        return np.asarray(torch_module.build(model)(torch.from_numpy(values)).numpy())


def accuracy(model: Model) -> float:
    samples = list(Feed(Digits(part="evaluation"), SCALED).samples(model))
    with torch.no_grad():
        found = torch_module.build(model)(torch.from_numpy(np.concatenate([s.inputs[0] for s in samples])))
    return float((found.argmax(1).numpy() == np.array([s.label for s in samples])).mean())


def weight(model: Model, name: str) -> Array:
    return np.asarray(torch_module.build(model).get_submodule(name).weight.detach().numpy())


# Channels


def test_channels_are_gone_from_the_file_and_from_the_arithmetic(digits: Model, tmp_path: Path) -> None:
    before = torch_counting.count(torch_module.build(digits), digits.inputs)
    assert before.macs["conv1"] == 64 * 32 * 9 and before.macs["linear"] == 320
    assert before.macs["block1.depthwise"] == 64 * 32 * 9
    result, notes = pruned(digits, tmp_path / "p", channels=0.5)
    after = torch_counting.count(torch_module.build(result), result.inputs)
    assert weight(result, "conv2").shape == (16, 16, 3, 3)
    assert weight(result, "block1.depthwise").shape == (16, 1, 3, 3)
    assert weight(result, "linear").shape == (10, 16)
    assert after.total < 0.35 * before.total and after.parameters < 0.35 * before.parameters
    size = (result.path / "weights.safetensors").stat().st_size
    assert size < 0.45 * (digits.path / "weights.safetensors").stat().st_size
    assert f"{after.total:,} of {before.total:,} MACs remain" in notes[-1]
    assert "conv1 32 to 16" in notes[0]


def test_what_stays_is_what_matters_to_the_outputs(digits: Model, tmp_path: Path) -> None:
    scores = {
        how: accuracy(pruned(digits, tmp_path / how, channels=0.25, importance=how)[0])
        for how in ("outputs", "weights")
    }
    assert scores["outputs"] > 0.6 and scores["outputs"] >= scores["weights"]


def test_a_pruned_model_becomes_onnx_and_runs_on_the_device_side(digits: Model, tmp_path: Path) -> None:
    import onnxruntime

    result, _ = pruned(digits, tmp_path / "p", channels=0.5)
    wanted = answers(result)
    program = TorchToExportedProgram().run(result, context(tmp_path / "e"))
    exported = ExportedProgramToOnnx().run(program, context(tmp_path / "o"))
    session = onnxruntime.InferenceSession(exported.path)
    values = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32)
    name = session.get_inputs()[0].name
    shape = session.get_inputs()[0].shape
    given = [v[None].transpose(0, 2, 3, 1) if shape[-1] == 1 else v[None] for v in values]
    got = np.concatenate([session.run(None, {name: np.ascontiguousarray(v)})[0] for v in given])
    assert np.abs(got - wanted).max() < 1e-4
    # The agent is a separate package, and rebuilds the module itself.
    (tmp_path / "edgeopt_agent").symlink_to(ROOMS / "devices" / "agent")
    (tmp_path / "edgeopt_untrusted").symlink_to(ROOMS / "formats" / "untrusted")
    script = (
        "import sys, json, numpy, torch; from pathlib import Path; "
        "from edgeopt_agent.torchside import eager_module; "
        "module, _ = eager_module(Path(sys.argv[1])); "
        "values = numpy.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype('float32'); "
        "print(json.dumps(module(torch.from_numpy(values)).tolist()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(result.path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": os.pathsep.join((str(tmp_path), str(RECIPES))), "PATH": ""},
    )
    assert np.abs(np.array(json.loads(ran.stdout)) - wanted).max() < 1e-5


def test_a_shortcut_that_counts_channels_is_left_alone_and_named(code: Path, tmp_path: Path) -> None:
    model = toy(code, "Padded", tmp_path)
    result, notes = pruned(model, tmp_path / "p", rgb=True, channels=0.5)
    assert "channels of stem, outer kept" in notes[0]
    assert weight(result, "inner").shape == (16, 8, 3, 3) and weight(result, "outer").shape == (16, 16, 3, 3)
    assert weight(result, "stem").shape == (8, 3, 3, 3)


def test_a_model_that_cannot_lose_a_channel_is_refused(code: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no channel of this model can be removed: conv \("):
        pruned(toy(code, "Rigid", tmp_path), tmp_path / "p", rgb=True, channels=0.5)


def test_layers_of_every_kind_follow(code: Path, tmp_path: Path) -> None:
    model = toy(code, "Mixed", tmp_path)
    module = torch_module.build(model)
    groups, fixed = torch_channels.groups(module, model.inputs, 4)
    assert [(layer.name, layer.reason) for layer in fixed] == [("last", torch_channels.OUTPUT)]
    assert {group.name for group in groups} == {"a", "b", "joined", "up", "linear"}
    # Removing unused channels changes nothing.
    with torch.no_grad():
        module.joined.weight[:, 4:8] = 0
        module.last.weight[:, :8] = 0
    wanted = module(values := torch.rand(4, 3, 8, 8))
    resized = torch_channels.remove(module, model.inputs, {"a": [4, 5, 6, 7], "linear": list(range(8))})
    assert float((module(values) - wanted).abs().max()) < 1e-6
    assert {"a", "norm", "depthwise", "joined", "linear", "last"} == set(resized)
    assert resized["depthwise"]["groups"] == 12
    result, _ = pruned(model, tmp_path / "p", rgb=True, channels=0.5, round_to=4)
    assert answers(result).shape == (8, 5)
    assert weight(result, "up").shape[:2] == (8, 8) and weight(result, "prelu").shape == (8,)


def test_share_of_multiplications_and_shares_of_layers(digits: Model, code: Path, tmp_path: Path) -> None:
    whole = torch_counting.count(torch_module.build(digits), digits.inputs).total
    result, _ = pruned(digits, tmp_path / "m", macs=0.4, round_to=4)
    left = torch_counting.count(torch_module.build(result), result.inputs).total
    assert 0.45 * whole < left <= 0.6 * whole
    result, _ = pruned(digits, tmp_path / "l", channels=0.5, layers={"conv2": 0.75}, round_to=4)
    assert weight(result, "conv1").shape[0] == 16 and weight(result, "conv2").shape[0] == 8
    result, _ = pruned(digits, tmp_path / "k", channels=0.5, keep=("conv2",))
    assert weight(result, "conv1").shape[0] == 16 and weight(result, "conv2").shape[0] == 32
    with pytest.raises(StageError, match=r"keep: no layer is called 'cnv2'.*\n.*such as conv2"):
        pruned(digits, tmp_path / "n", channels=0.5, keep=("cnv2",))
    with pytest.raises(StageError, match="rounded to multiples of 8, every layer keeps its channels"):
        pruned(digits, tmp_path / "r", channels=0.05)


def test_counts_are_rounded_and_never_zero() -> None:
    assert [kept_channels(64, share, 8) for share in (0.1, 0.4, 0.5, 0.99)] == [56, 40, 32, 8]
    assert kept_channels(16, 0.4, 8) == 8 and kept_channels(4, 0.9, 8) == 4 and kept_channels(10, 0.5, 1) == 5


# Single weights


def test_weights_are_zero_and_the_download_shrinks(digits: Model, tmp_path: Path) -> None:
    result, notes = pruned(digits, tmp_path / "p", weights=0.7)
    for name in ("conv1", "conv2", "block1.pointwise", "linear"):
        assert (weight(result, name) == 0).mean() == pytest.approx(0.7, abs=0.01)
    raw, dense = (m.path / "weights.safetensors" for m in (result, digits))
    assert raw.stat().st_size == dense.stat().st_size
    assert len(gzip.compress(raw.read_bytes())) < 0.5 * len(gzip.compress(dense.read_bytes()))
    assert "compressed download" in notes[-1] and "% of" not in notes[-1] and "zero (" in notes[-1]
    # The largest weights are unchanged.
    kept = weight(result, "conv2")
    assert np.array_equal(kept[kept != 0], weight(digits, "conv2")[kept != 0])
    assert np.abs(weight(digits, "conv2")[kept == 0]).max() <= np.abs(kept[kept != 0]).min()


def test_global_scope_and_layers_of_their_own(digits: Model, tmp_path: Path) -> None:
    result, _ = pruned(digits, tmp_path / "g", weights=0.5, scope="global", keep=("linear",))
    shares = {n: (weight(result, n) == 0).mean() for n in ("conv1", "conv2", "block1.pointwise", "linear")}
    assert shares["linear"] == 0 and max(shares.values()) > 0.52 > 0.48 > min(shares["conv1"], 0.4)
    result, _ = pruned(digits, tmp_path / "l", weights=0.5, layers={"conv1": 0, "linear": 0.9})
    assert (weight(result, "conv1") == 0).mean() == 0
    assert (weight(result, "linear") == 0).mean() == pytest.approx(0.9, abs=0.01)


def test_two_of_every_four(digits: Model, tmp_path: Path) -> None:
    result, notes = pruned(digits, tmp_path / "p", n_m=(2, 4))
    blocks = weight(result, "conv2").transpose(0, 2, 3, 1).reshape(-1, 4)
    assert ((blocks != 0).sum(axis=1) == 2).all()
    source = np.abs(weight(digits, "conv2").transpose(0, 2, 3, 1).reshape(-1, 4))
    assert np.array_equal((source * (blocks != 0)).sum(axis=1), np.sort(source, axis=1)[:, 2:].sum(axis=1))
    assert "conv1, block1.depthwise, block2.depthwise left dense" in notes[0]
    assert accuracy(result) > 0.5


def test_shares_that_leave_nothing_are_refused(digits: Model, tmp_path: Path) -> None:
    for options in ({"weights": 1.0}, {"channels": 1.0}, {"macs": 0.0}, {"layers": {"conv1": 1.0}}):
        with pytest.raises(ValueError, match=r"less than 1|greater than 0"):
            PruneTorch(**options)
    with pytest.raises(
        StageError, match=r"layer linear would lose all of its 320 weights.*(?s:.*)keep: \[linear\]"
    ):
        pruned(digits, tmp_path / "p", layers={"linear": 0.999})
    for options, told in (
        ({}, "set one of"),
        ({"channels": 0.5, "macs": 0.5}, "give only one"),
        ({"weights": 0.5, "n_m": (2, 4)}, "give only one"),
        ({"n_m": (4, 2)}, "0 < n < m"),
    ):
        with pytest.raises(ValueError, match=told):
            PruneTorch(**options)


# Shared weights


def test_weights_are_clustered(digits: Model, tmp_path: Path) -> None:
    notes: list[str] = []
    result = ClusterTorch(clusters=16).run(digits, context(tmp_path / "c", notes))
    for name in ("conv1", "conv2", "block1.pointwise", "linear"):
        assert len(np.unique(weight(result, name))) <= 16
    assert accuracy(result) > accuracy(digits) - 0.02
    raw, dense = (m.path / "weights.safetensors" for m in (result, digits))
    assert len(gzip.compress(raw.read_bytes())) < 0.35 * len(gzip.compress(dense.read_bytes()))
    assert "16 values per layer" in notes[0]


def test_clusters_leave_zeros_alone(digits: Model, tmp_path: Path) -> None:
    sparse, _ = pruned(digits, tmp_path / "p", weights=0.6)
    result = ClusterTorch(clusters=8, keep=("linear",)).run(sparse, context(tmp_path / "c"))
    before, after = weight(sparse, "conv2"), weight(result, "conv2")
    assert np.array_equal(before == 0, after == 0) and len(np.unique(after)) <= 9
    assert len(np.unique(weight(result, "linear"))) > 100
    with pytest.raises(StageError, match="keep: no layer is called 'dense'"):
        ClusterTorch(keep=("dense",)).run(digits, context(tmp_path / "n"))


def test_weights_that_do_not_fit_the_code_any_more(digits: Model, tmp_path: Path) -> None:
    result, _ = pruned(digits, tmp_path / "p", channels=0.5)
    described = torch_module.about(result.path)
    torch_module.write_about(result.path, described | {"resized": {}})
    with pytest.raises(StageError, match=r"stored weights do not fit models.digits_cnn:digits_cnn"):
        torch_module.build(result)


def trunk_and(head: str) -> Any:
    """Two convolutions and a head: two outputs, or a head that reads the trunk twice."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(3, 32, 3, padding=1)
            self.b = torch.nn.Conv2d(64 if head == "scaled" else 32, 32, 3, padding=1)
            self.fc = torch.nn.Linear(64 if head == "pools" else 32, 10)
            self.box = torch.nn.Conv2d(32, 16, 1)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.a(x))
            x = torch.relu(self.b(torch.cat([x, 2 * x], 1) if head == "scaled" else x))
            mean = x.mean((2, 3))
            if head == "pools":
                return self.fc(torch.cat([mean, x.amax((2, 3))], 1))
            return (self.fc(mean), self.box(x)) if head == "boxes" else self.fc(mean)

    torch.manual_seed(0)
    return Net().eval()


SQUARE = (TensorSpec(name="x", shape=(1, 3, 8, 8), layout="NCHW"),)


def test_no_output_loses_channels() -> None:
    found, fixed = torch_channels.groups(trunk_and("boxes"), SQUARE, 8)
    assert [group.name for group in found] == ["a", "b"]
    assert {one.name for one in fixed} == {"fc", "box"}
    assert set(found[1].readers) == {"fc", "box"}


@pytest.mark.parametrize(("head", "group", "reader"), [("scaled", "a", "b"), ("pools", "b", "fc")])
def test_a_tensor_that_is_read_twice_keeps_its_channels_together(head: str, group: str, reader: str) -> None:
    found, _ = torch_channels.groups(trunk_and(head), SQUARE, 8)
    (one,) = [each for each in found if each.name == group]
    assert sorted(one.readers[reader]) == [(c, c + 32 * half) for c in range(32) for half in (0, 1)]


def test_channels_that_nobody_reads_are_the_least_important() -> None:
    module = trunk_and("pools")
    with torch.no_grad():
        module.fc.weight[:, 0:16] = 0
        module.fc.weight[:, 32:48] = 0
    found, _ = torch_channels.groups(module, SQUARE, 8)
    scores = by_outputs(module, found, [(torch.randn(4, 3, 8, 8),)])["b"]
    assert (scores[:16] == 0).all() and (scores[16:] > 0).all()


def test_every_output_makes_a_channel_important() -> None:
    module = trunk_and("boxes")
    with torch.no_grad():
        module.fc.weight[:, :16] = 0  # the first output reads the second half of the channels only
        module.box.weight[:, 16:] = 0
    found, _ = torch_channels.groups(module, SQUARE, 8)
    scores = by_outputs(module, found, [(torch.randn(4, 3, 8, 8),)])["b"]
    assert (scores > 0).all()
