"""Stages for PyTorch and exported programs, on toy models, and on real ones if the data is available."""

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.config.files import content_digest
from edgeopt.errors import StageError
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import simplify as torch_simplify
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.exported_program_to_torchscript import ExportedProgramToTorchscript
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from edgeopt.stages.torchscript_to_exported_program import TorchscriptToExportedProgram
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch", "litert_torch")
pytestmark = [
    # torch, torchao, litert-torch and ExecuTorch warn about their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

NETS = '''
import torch
from torch import nn
from torch.nn import functional as F


class Small(nn.Module):
    """Convolution, batch norm, depthwise, residual sum, concatenation, linear layer."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(16, classes)
        for norm in (self.norm, self.norm2):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 2.0)

    def forward(self, x):
        first = F.relu(self.norm(self.conv(x)))
        second = F.relu(self.norm2(self.depthwise(first)) + first)
        both = torch.cat([first, second], 1)
        return self.linear(F.avg_pool2d(both, 8).flatten(1))


def small(classes=5):
    return Small(classes)


def sequential():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def number():
    return 3


def needy(classes, depth, width=8, **others):
    return Small(classes)


def half():
    return Small().half()


def bfloat16():
    return Small().bfloat16()


def double():
    return Small().double()
'''

IMAGE = TensorSpec(name="image", shape=(1, 3, 8, 8), layout="NCHW")
SOURCE = Model(format="torch_source", path=Path())


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "toy_torch_nets.py").write_text(NETS)
    return folder


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, None, lambda _: None)


def loader(code: Path, factory: str = "small", **options: Any) -> LoadTorch:
    options.setdefault("inputs", (IMAGE,))
    return LoadTorch(factory={"target": f"toy_torch_nets:{factory}", "folder": code}, **options)


def module_of(code: Path, name: str = "small", seed: int = 3) -> Any:
    sys.path.insert(0, str(code))
    try:
        import toy_torch_nets
    finally:
        sys.path.remove(str(code))
    torch.manual_seed(seed)
    return getattr(toy_torch_nets, name)().eval()


@pytest.fixture(scope="module")
def program(code: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    """The toy model as an exported program, and its source module."""
    folder = tmp_path_factory.mktemp("program")
    module = module_of(code)
    torch.save(module.state_dict(), folder / "small.pt")
    loaded = loader(code, weights=folder / "small.pt").run(SOURCE, context(folder / "load"))
    return TorchToExportedProgram().run(loaded, context(folder / "export")), module


def samples(n: int = 4) -> Array:
    return np.random.default_rng(5).normal(size=(n, 1, 3, 8, 8)).astype(np.float32)


def expected(module: Any, values: Array) -> Array:
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(value)).numpy() for value in values])


def worst(outputs: list[Array], module: Any) -> float:
    return float(np.abs(np.concatenate(outputs) - expected(module, samples(len(outputs)))).max())


# Loading


def test_weights_load_from_nested_keys_and_behind_prefixes(code: Path, tmp_path: Path) -> None:
    state = module_of(code).state_dict()
    prefixed = {f"module.{key}": value for key, value in state.items()}
    compiled = {f"_orig_mod.module.{key}": value for key, value in state.items()}
    files = {
        "bare.pth": dict(state),
        "nested.th": {"epoch": 3, "state_dict": prefixed},
        "deep.pt": {"net": {"model_state_dict": compiled}, "optimizer": {"lr": 0.1}},
    }
    digests = set()
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        result = loader(code, weights=tmp_path / name).run(SOURCE, context(tmp_path / f"{name}-out"))
        digests.add(content_digest(result.path / "weights.safetensors"))
        assert result.outputs[0].shape == (1, 5)
    assert len(digests) == 1


def test_a_checkpoint_with_several_sets_says_which_was_taken(code: Path, tmp_path: Path) -> None:
    first, second = module_of(code).state_dict(), module_of(code, seed=4).state_dict()
    torch.save({"model": first, "ema": second, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "both.pt")
    torch.save({"state_dict": first, "hyper_parameters": {"lr": 0.1}}, tmp_path / "one.pt")

    def loaded(name: str, key: str | None = None) -> tuple[Any, list[str]]:
        notes: list[str] = []
        where = context(tmp_path / f"{name}-{key}")._replace(note=notes.append)
        result = loader(code, weights=tmp_path / name, weights_key=key).run(SOURCE, where)
        return torch_module.build(result).state_dict(), notes

    weights, notes = loaded("both.pt")
    assert torch.equal(weights["conv.weight"], first["conv.weight"])
    (note,) = notes
    assert note.startswith("both.pt holds weights under 'model', which are used, and under 'ema'")
    weights, notes = loaded("both.pt", "ema")
    assert torch.equal(weights["conv.weight"], second["conv.weight"]) and notes == []
    assert loaded("one.pt")[1] == []
    with pytest.raises(StageError, match="no weights under the key 'emma'; did you mean 'ema'"):
        loaded("both.pt", "emma")


VERSIONED = """
import torch


class Versioned(torch.nn.Module):
    _version = 2

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)

    def forward(self, image):
        return self.conv(image)

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version") not in (1, 2):
            raise ValueError(f"version is {metadata.get('version')}")
        if metadata["version"] == 1:
            for kind in ("weight", "bias"):
                state[f"{prefix}conv.{kind}"] = state.pop(f"{prefix}convolution.{kind}")
        super()._load_from_state_dict(state, prefix, metadata, *others)
"""


@pytest.mark.parametrize("kind", ["present", "wrapped", "safetensors", "earlier"])
def test_layers_that_check_their_version(tmp_path: Path, kind: str) -> None:
    """As torchvision's MNASNet, which refuses a state without it, and its ViT, whose names have changed."""
    (tmp_path / "versioned.py").write_text(VERSIONED)
    trained = torch.nn.Conv2d(1, 4, 3)
    state = OrderedDict((f"conv.{name}", value) for name, value in trained.state_dict().items())
    path, notes = tmp_path / "w.pt", []
    if kind == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "w.safetensors"
        save_file(state, path)
    elif kind == "earlier":
        state = OrderedDict((name.replace("conv", "convolution"), value) for name, value in state.items())
        state._metadata = OrderedDict({"": {"version": 1}})
        torch.save(state, path)
        notes = ["w.pt has the names of an earlier version of the model, which translates them"]
    else:
        torch.save(state if kind == "present" else {"model": state}, path)
    said: list[str] = []
    spec = TensorSpec(name="image", shape=(1, 1, 8, 8))
    factory = {"target": "versioned:Versioned", "folder": tmp_path}
    stage = LoadTorch(factory=factory, weights=path, inputs=(spec,))
    result = stage.run(SOURCE, context(tmp_path / "out")._replace(note=said.append))
    assert torch.equal(torch_module.build(result).conv.weight, trained.weight)
    assert said == notes


@pytest.mark.parametrize("precision", ["half", "bfloat16", "double"])
def test_modules_of_another_precision_become_float32(code: Path, tmp_path: Path, precision: str) -> None:
    torch.save(module_of(code).state_dict(), tmp_path / "w.pt")
    notes: list[str] = []
    where = context(tmp_path / "out")._replace(note=notes.append)
    result = loader(code, precision, weights=tmp_path / "w.pt").run(SOURCE, where)
    assert len(notes) == 1 and "it is converted to float32" in notes[0]
    module = torch_module.build(result)
    assert {value.dtype for value in module.state_dict().values() if value.is_floating_point()} == {
        torch.float32
    }
    image = torch.from_numpy(samples(1)[0])
    with torch.no_grad():
        assert (module(image) - module_of(code)(image)).abs().max() < 1e-6
    exported = TorchToExportedProgram().run(result, context(tmp_path / "export"))
    assert exported.outputs[0].dtype == "float32"


def test_safetensors_and_no_weights_at_all(code: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = module_of(code).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    result = loader(code, weights=tmp_path / "w.safetensors").run(SOURCE, context(tmp_path / "a"))
    loaded = load_file(result.path / "weights.safetensors")
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    first = loader(code).run(SOURCE, context(tmp_path / "b"))
    second = loader(code).run(SOURCE, context(tmp_path / "c"))
    assert content_digest(first.path) == content_digest(second.path)


def test_malicious_pickle_is_refused_and_does_not_run(code: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Evil(trap)}, protocol=2))
    torch.save({"state_dict": Evil(trap)}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(StageError, match=r"contains code.*(?s:.*)trust: true"):
            loader(code, weights=tmp_path / name).run(SOURCE, context(tmp_path / f"{name}-out"))
    assert not trap.exists()


def test_weights_of_another_model_are_named(code: Path, tmp_path: Path) -> None:
    state = dict(module_of(code).state_dict())
    state["linear.weigth"] = state.pop("linear.weight")
    state["conv.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(StageError) as caught:
        loader(code, weights=tmp_path / "w.pt").run(SOURCE, context(tmp_path / "out"))
    text = str(caught.value)
    assert "missing: linear.weight (nearest: linear.weigth)" in text
    assert "unexpected: linear.weigth (nearest: linear.weight)" in text
    assert "conv.weight is [4, 3, 3, 3] in the file and [8, 3, 3, 3] in the model" in text


def test_wrong_shape_factory_and_arguments(code: Path, tmp_path: Path) -> None:
    wrong = TensorSpec(name="image", shape=(1, 8, 8, 3))
    with pytest.raises(StageError, match=r"does not accept image \[1, 8, 8, 3\].*channels"):
        loader(code, inputs=(wrong,)).run(SOURCE, context(tmp_path / "a"))
    with pytest.raises(StageError, match="returned a int"):
        loader(code, "number").run(SOURCE, context(tmp_path / "b"))
    with pytest.raises(StageError, match="cannot be called with"):
        loader(code, arguments={"clases": 3}).run(SOURCE, context(tmp_path / "c"))
    with pytest.raises(StageError, match=r"missing 1 required") as caught:
        loader(code, "needy", arguments={"depth": 1}).run(SOURCE, context(tmp_path / "f"))
    assert caught.value.fix == "add --set model.arguments.classes=..."
    free = TensorSpec(name="image", shape=(None, 3, None, 8))
    with pytest.raises(StageError, match="only the batch axis may be free"):
        loader(code, inputs=(free,)).run(SOURCE, context(tmp_path / "d"))
    (tmp_path / "noise.pt").write_bytes(b"not weights")
    with pytest.raises(StageError, match=r"noise\.pt"):
        loader(code, weights=tmp_path / "noise.pt").run(SOURCE, context(tmp_path / "e"))


def test_key_parts_follow_the_content(code: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "one.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "two.pt")
    one = loader(code, weights=tmp_path / "one.pt").key_parts()
    two = loader(code, weights=tmp_path / "two.pt").key_parts()
    assert one["factory"] == two["factory"]
    assert one["weights"] != two["weights"]


# Converting


def test_program_is_plain_and_equal(program: tuple[Model, Any]) -> None:
    model, module = program
    loaded = torch.export.load(model.path)
    names = {str(node.target) for node in loaded.graph.nodes if node.op == "call_function"}
    assert not any("batch_norm" in name for name in names)
    outputs = [loaded.module()(torch.from_numpy(value)).detach().numpy() for value in samples()]
    assert worst(outputs, module) < 1e-5
    assert model.inputs == (IMAGE,)


@pytest.fixture(scope="module")
def converted(program: tuple[Model, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """The toy model in every format, by format."""
    return convert_all(tmp_path_factory.mktemp("converted"), program[0])


def convert_all(folder: Path, model: Model) -> dict[str, Model]:
    """All float formats of one program except those with XNNPACK, in one folder."""
    where = context(folder)
    script = ExportedProgramToTorchscript().run(model, where)
    made = [
        ExportedProgramToTflite().run(model, where),
        ExportedProgramToOnnx().run(model, where),
        TorchscriptToMobile().run(script, where),
        TorchscriptToExportedProgram().run(script, where),
    ]
    return {model.format: model for model in made}


def test_tflite_takes_nhwc_without_a_transpose(
    program: tuple[Model, Any], converted: dict[str, Model]
) -> None:
    result = converted["tflite"]
    assert result.inputs[0].shape == (1, 8, 8, 3)
    assert result.inputs[0].layout == "NHWC"
    assert result.transposes == 0
    outputs = run_tflite(result.path, [value.transpose(0, 2, 3, 1) for value in samples()])
    assert worst(outputs, program[1]) < 1e-5


def run_tflite(path: Path, values: list[Array]) -> list[Array]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    outputs = []
    for value in values:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
    return outputs


def test_onnx_is_one_file_without_paths(program: tuple[Model, Any], converted: dict[str, Model]) -> None:
    result = converted["onnx"]
    content = result.path.read_bytes()
    assert b".py" not in content
    assert b"pkg.torch" not in content
    assert not list(result.path.parent.glob("*.data"))
    assert worst(run_onnx(result.path, list(samples())), program[1]) < 1e-5
    assert result.inputs == (IMAGE,)
    assert result.transposes == 0


def run_onnx(path: Path, values: list[Array]) -> list[Array]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {session.get_inputs()[0].name: value})[0] for value in values]


def test_weights_of_two_calls_are_stored_once(tmp_path: Path) -> None:
    """Of a trunk whose batch norm is folded into the weights of each call."""
    import torch
    from torch import nn

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3))

        def forward(self, x: Any) -> Any:
            return self.trunk(x) - self.trunk(x.flip(3))

    torch.manual_seed(0)
    net, spec = Twice().eval(), TensorSpec(name="image", shape=(1, 3, 8, 8), layout="NCHW")
    model = torch_program.save_module(net, tmp_path / "m.pt2", Model(format="torch", path=tmp_path), (spec,))
    (tmp_path / "onnx").mkdir()
    made = ExportedProgramToOnnx().run(model, context(tmp_path / "onnx"))
    assert made.path.stat().st_size < 4 * (24 * 3 * 9 + 24 * 24 * 9 + 2 * 48) + 4096
    assert worst(run_onnx(made.path, list(samples())), net) < 1e-5


def test_torchscript_and_its_mobile_file(program: tuple[Model, Any], converted: dict[str, Model]) -> None:
    lite = converted["torchscript"]
    assert worst(run_lite(lite.path, list(samples())), program[1]) < 1e-5
    assert lite.transposes == 0
    with zipfile.ZipFile(lite.path) as archive:
        assert not [name for name in archive.namelist() if "debug" in name]


def run_lite(path: Path, values: list[Array]) -> list[Array]:
    from torch.jit.mobile import _load_for_lite_interpreter

    module = _load_for_lite_interpreter(str(path))
    return [module(torch.from_numpy(value)).numpy() for value in values]


def run_executorch(path: Path, values: list[Array]) -> list[Array]:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return [np.array(method.execute([torch.from_numpy(value)])[0]) for value in values]


@pytest.mark.parametrize("kind", ["traced", "scripted", "frozen"])
def test_users_torchscript_becomes_a_program(code: Path, tmp_path: Path, kind: str) -> None:
    module = module_of(code)
    script = (
        torch.jit.script(module) if kind != "traced" else torch.jit.trace(module, torch.zeros(1, 3, 8, 8))
    )
    if kind == "frozen":
        script = torch.jit.freeze(script)
    script.save(str(tmp_path / "user.pt"))
    source = Model(format="torchscript_module", path=tmp_path / "user.pt", inputs=(IMAGE,))
    result = TorchscriptToExportedProgram().run(source, context(tmp_path / "out"))
    loaded = torch.export.load(result.path)
    names = {str(node.target) for node in loaded.graph.nodes if node.op == "call_function"}
    assert not any("batch_norm" in name for name in names)
    assert worst([loaded.module()(torch.from_numpy(v)).detach().numpy() for v in samples()], module) < 1e-5
    with pytest.raises(StageError, match="does not declare its input shapes"):
        TorchscriptToExportedProgram().run(source.model_copy(update={"inputs": ()}), context(tmp_path / "b"))


class Rates(torch.nn.Module):
    """Chooses its weights by a number, and counts its calls if ``counting``."""

    def __init__(self, counting: bool) -> None:
        super().__init__()
        self.slow, self.fast = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        self.counting, self.calls = counting, 0

    def forward(self, x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1 if self.counting else 0
        return self.calls + (self.fast(x) if int(rate) == 16000 else self.slow(x))


def scripted(folder: Path, *, counting: bool = False, value: float | None = 16000) -> Model:
    script = torch.jit.script(Rates(counting).eval())
    script.save(str(folder / "rates.pt"))
    inputs = TensorSpec(name="x", shape=(1, 4)), TensorSpec(name="rate", shape=(), dtype="int64", value=value)
    return Model(format="torchscript_module", path=folder / "rates.pt", inputs=inputs)


def test_an_input_of_a_fixed_value_selects_a_branch(tmp_path: Path) -> None:
    source, notes = scripted(tmp_path), list[str]()
    stage = TorchscriptToExportedProgram()
    result = stage.run(source, context(tmp_path / "out")._replace(note=notes.append))
    assert notes == ["inputs of a fixed value, which the converted model ignores: rate (16000)"]
    assert [spec.name for spec in result.inputs] == ["x", "rate"]
    x, module = torch.randn(1, 4), torch.jit.load(source.path)
    found = torch.export.load(result.path).module()(x, torch.tensor(7))
    assert torch.equal(found, module(x, torch.tensor(16000)))
    assert not torch.equal(found, module(x, torch.tensor(8000)))
    with pytest.raises(StageError, match="depends on values"):
        stage.run(scripted(tmp_path, value=None), context(tmp_path / "b"))


@pytest.mark.parametrize("stage", [TorchscriptToExportedProgram(), TorchscriptToMobile()])
def test_modules_with_state_are_refused(tmp_path: Path, stage: Any) -> None:
    """The lite interpreter dies of some of them, and a file has no place for the state."""
    with pytest.raises(StageError, match="keeps state from call to call"):
        stage.run(scripted(tmp_path, counting=True), context(tmp_path / "out"))


def test_a_fixed_value_fits_its_input() -> None:
    assert TensorSpec(name="rate", shape=(), dtype="int64", value=0.5).problem.startswith(
        "the value 0.5 is no"
    )
    assert "value" not in TensorSpec(name="x", shape=(1,)).model_dump()  # stores keep their keys


def test_sequential_reaches_executorch(code: Path, tmp_path: Path) -> None:
    """A user's own program with names like 0.weight, and a free batch axis with its guards."""
    module = module_of(code, "sequential")
    own = tmp_path / "own.pt2"
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=free), own)
    result = ExportedProgramToExecutorch().run(
        Model(format="exported_program", path=own), context(tmp_path / "out")
    )
    assert result.inputs[0].shape == (1, 3, 8, 8)
    assert result.transposes == 0
    assert worst(run_executorch(result.path, list(samples())), module) < 1e-4


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_by_name_becomes_numbers(padding: str, kernel: int) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, kernel, padding=padding, dilation=2))
    exported = torch_program.export(torch_program.named(module), (IMAGE,)).run_decompositions({})
    plain = torch_simplify.simplify(exported.module(check_guards=False), torch_specs.zeros((IMAGE,)))
    targets = [str(node.target) for node in plain.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default"]  # dilation 2 pads by an even number
    x = torch.from_numpy(samples(1)[0])
    with torch.no_grad():
        assert torch.equal(plain(x), module(x))


class Evil:
    """Creates a folder when unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trap),))


def repacked(source: Path, target: Path, changes: dict[str, bytes]) -> Model:
    """A copy of an archive with changed or added records; names are relative to its only folder."""
    with zipfile.ZipFile(source) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        records = {name: archive.read(name) for name in archive.namelist()}
    records |= {f"{folder}/{name}" if "|" not in name else name[1:]: data for name, data in changes.items()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return Model(format="exported_program", path=target, inputs=(IMAGE,))


def with_json(source: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """The program's own record, modified."""
    with zipfile.ZipFile(source) as archive:
        name = next(name for name in archive.namelist() if "/models/" in name)
        content = json.loads(archive.read(name))
    change(content)
    return {name.partition("/")[2]: json.dumps(content).encode()}


@pytest.mark.parametrize(
    "place", ["inputs", "weight", "opaque", "library", "operator", "size", "name", "old"]
)
def test_program_that_would_run_code_is_refused(
    place: str, program: tuple[Model, Any], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    buffer = io.BytesIO()
    torch.save(Evil(trap), buffer)
    pickled, source = buffer.getvalue(), program[0].path
    python = f"__import__('os').mkdir({str(trap)!r})"

    def operator(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.mkdir"

    def size(content: dict[str, Any]) -> None:
        tensors = content["graph_module"]["graph"]["tensor_values"]
        next(iter(tensors.values()))["sizes"][0] = {"as_expr": {"expr_str": python, "hint": None}}

    def name(content: dict[str, Any]) -> None:
        text = json.dumps(content).replace('"image"', json.dumps(f"image={python}"))
        content |= json.loads(text)

    if place == "weight":
        with zipfile.ZipFile(source) as archive:
            record = next(n for n in archive.namelist() if n.endswith("weights_config.json"))
            config = json.loads(archive.read(record))
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        changes = {
            record.partition("/")[2]: json.dumps(config).encode(),
            f"data/weights/{entry['path_name']}": pickled,
        }
    else:
        changes = {
            "inputs": lambda: {"data/sample_inputs/model.pt": pickled},
            "opaque": lambda: {"data/constants/OPAQUE_OBJ_0": pickle.dumps(Evil(trap))},
            "library": lambda: {"data/aotinductor/model/model.so": b"ELF"},
            "operator": lambda: with_json(source, operator),
            "size": lambda: with_json(source, size),
            "name": lambda: with_json(source, name),
            "old": lambda: {"|version": b"8.20"},
        }[place]()
    model = repacked(source, tmp_path / "evil.pt2", changes)
    expected = "cannot be read" if place == "old" else "more than a network"
    with pytest.raises(StageError, match=expected):
        ExportedProgramToTorchscript().run(model, context(tmp_path / "out"))
    assert not trap.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.pt2").write_bytes(b"nothing")
    model = Model(format="exported_program", path=tmp_path / "no.pt2", inputs=(IMAGE,))
    with pytest.raises(StageError, match=r"no\.pt2 cannot be read as an exported program"):
        ExportedProgramToTorchscript().run(model, context(tmp_path / "a"))
    with pytest.raises(StageError, match=r"no\.pt2 cannot be read as TorchScript"):
        TorchscriptToMobile().run(model, context(tmp_path / "b"))


def test_same_files_from_another_process(
    tmp_path: Path, program: tuple[Model, Any], converted: dict[str, Model]
) -> None:
    """A fresh process and this one, warmed up by other tests, write the same bytes."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from edgeopt.model import Model
        sys.path.insert(0, sys.argv[3])
        import test_stages_torch as tests
        tests.convert_all(Path(sys.argv[1]), Model.model_validate_json(sys.argv[2]))
        assert "tensorflow" not in sys.modules, "TensorFlow got into the torch worker"
    """)
    arguments = [tmp_path, program[0].model_dump_json(), Path(__file__).parent]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    for model in converted.values():
        assert (tmp_path / model.path.name).read_bytes() == model.path.read_bytes(), model.format


# On the real network


@pytest.mark.slow
def test_resnet20_is_the_same_in_every_format(real_data: Path, tmp_path: Path) -> None:
    """Float: within 1e-4 of the outputs of the source module, on real images."""
    program, module = resnet20(real_data, tmp_path)
    images, _ = cifar(real_data, program, 64)
    with torch.no_grad():
        wanted = module(torch.from_numpy(np.concatenate(images))).numpy()
    made = convert_all(tmp_path / "all", program)
    made["executorch"] = ExportedProgramToExecutorch().run(program, context(tmp_path / "pte"))
    runs = {
        "tflite": run_tflite(made["tflite"].path, [image.transpose(0, 2, 3, 1) for image in images]),
        "onnx": run_onnx(made["onnx"].path, images),
        "torchscript": run_lite(made["torchscript"].path, images),
        "executorch": run_executorch(made["executorch"].path, images),
    }
    errors = {name: float(np.abs(np.concatenate(outputs) - wanted).max()) for name, outputs in runs.items()}
    assert max(errors.values()) < 1e-4, errors
    assert {made[name].transposes for name in runs} == {0}


def resnet20(real_data: Path, folder: Path) -> tuple[Model, Any]:
    """The trained network as an exported program, and as a module."""
    recipes = Path(__file__).resolve().parent.parent / "recipes"
    stage = LoadTorch(
        factory={"target": "models.resnet:resnet20", "folder": recipes},
        arguments={"classes": 10},
        weights=real_data / "resnet-cifar10" / "resnet20.th",
        inputs=(TensorSpec(name="image", shape=(1, 3, 32, 32), layout="NCHW"),),
    )
    loaded = stage.run(SOURCE, context(folder / "load"))
    program = TorchToExportedProgram().run(loaded, context(folder / "export"))
    from safetensors.torch import load_file

    module = stage.factory.load()(classes=10)
    module.load_state_dict(load_file(loaded.path / "weights.safetensors"), strict=False)
    return program, module.eval()


def cifar(real_data: Path, model: Model, count: int) -> tuple[list[Array], Array]:
    """Preprocessed real test images, and their labels."""
    with np.load(real_data / "cifar10" / "test446.npz") as data:
        images, labels = data["x"][:count], data["y"][:count]
    return [CIFAR.apply(image, model.inputs[0]) for image in images], labels


CIFAR = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC")
