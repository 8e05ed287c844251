"""Stages around PyTorch and exported programs, on toy models and on the real ones where there are data."""

import hashlib
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.model import Array, Model, TensorSpec, content_digest
from edgeopt.plugin import Context
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.exported_program_to_torchscript import ExportedProgramToTorchscript
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from edgeopt.stages.torchscript_to_exported_program import TorchscriptToExportedProgram
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")
pytest.importorskip("litert_torch")
pytestmark = [
    # torch, torchao, litert-torch and ExecuTorch warn about their own deprecated parts while they work.
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
    """The toy model as an exported program, and the module it was made from."""
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
    import pickle

    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(trap),))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(StageError, match=r"holds code.*(?s:.*)trust: true"):
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
    with pytest.raises(StageError, match=r"does not take image \[1, 8, 8, 3\].*channels"):
        loader(code, inputs=(wrong,)).run(SOURCE, context(tmp_path / "a"))
    with pytest.raises(StageError, match="returned a int"):
        loader(code, "number").run(SOURCE, context(tmp_path / "b"))
    with pytest.raises(StageError, match="cannot be called with"):
        loader(code, arguments={"clases": 3}).run(SOURCE, context(tmp_path / "c"))
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


def test_tflite_takes_nhwc_without_a_transpose(program: tuple[Model, Any], tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, module = program
    result = ExportedProgramToTflite().run(model, context(tmp_path))
    assert result.inputs[0].shape == (1, 8, 8, 3)
    assert result.inputs[0].layout == "NHWC"
    interpreter = Interpreter(str(result.path))
    interpreter.allocate_tensors()
    assert "TRANSPOSE" not in {op["op_name"] for op in interpreter._get_ops_details()}
    outputs = []
    for value in samples():
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value.transpose(0, 2, 3, 1))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
    assert worst(outputs, module) < 1e-5


def test_onnx_is_one_file_without_paths(program: tuple[Model, Any], tmp_path: Path) -> None:
    import onnxruntime

    model, module = program
    result = ExportedProgramToOnnx().run(model, context(tmp_path))
    content = result.path.read_bytes()
    assert b".py" not in content
    assert b"pkg.torch" not in content
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"image": value})[0] for value in samples()]
    assert worst(outputs, module) < 1e-5
    assert result.inputs == (IMAGE,)


def test_torchscript_and_its_mobile_file(program: tuple[Model, Any], tmp_path: Path) -> None:
    from torch.jit.mobile import _load_for_lite_interpreter

    model, module = program
    full = ExportedProgramToTorchscript().run(model, context(tmp_path / "full"))
    lite = TorchscriptToMobile().run(full, context(tmp_path / "lite"))
    loaded = _load_for_lite_interpreter(str(lite.path))
    outputs = [loaded(torch.from_numpy(value)).numpy() for value in samples()]
    assert worst(outputs, module) < 1e-5
    with zipfile.ZipFile(lite.path) as archive:
        assert not [name for name in archive.namelist() if "debug" in name]


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
    with pytest.raises(StageError, match="no input shapes"):
        TorchscriptToExportedProgram().run(source.model_copy(update={"inputs": ()}), context(tmp_path / "b"))


def test_sequential_reaches_executorch(code: Path, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    module = module_of(code, "sequential")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = loader(code, "sequential", weights=tmp_path / "w.pt").run(SOURCE, context(tmp_path / "a"))
    exported = TorchToExportedProgram().run(loaded, context(tmp_path / "b"))
    # A user's own program with names like 0.weight takes the same way.
    own = tmp_path / "own.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 8, 8),)), own)
    for index, program in enumerate((exported, Model(format="exported_program", path=own))):
        result = ExportedProgramToExecutorch().run(program, context(tmp_path / f"c{index}"))
        method = Runtime.get().load_program(str(result.path)).load_method("forward")
        outputs = [np.array(method.execute([torch.from_numpy(value)])[0]) for value in samples()]
        assert worst(outputs, module) < 1e-4


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.pt2").write_bytes(b"nothing")
    model = Model(format="exported_program", path=tmp_path / "no.pt2", inputs=(IMAGE,))
    with pytest.raises(StageError, match=r"no\.pt2 cannot be read as an exported program"):
        ExportedProgramToTorchscript().run(model, context(tmp_path / "a"))
    with pytest.raises(StageError, match=r"no\.pt2 cannot be read as TorchScript"):
        TorchscriptToMobile().run(model, context(tmp_path / "b"))


def test_same_files_from_another_process(code: Path, tmp_path: Path, program: tuple[Model, Any]) -> None:
    """A fresh process and this one, warm from other tests, write the same bytes."""
    model, _ = program
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from edgeopt.model import Model, TensorSpec
        sys.path.insert(0, sys.argv[3])
        import test_stages_torch as tests
        tests.convert_all(Path(sys.argv[1]), Model.model_validate_json(sys.argv[2]))
        assert "tensorflow" not in sys.modules, "TensorFlow got into the torch worker"
    """)
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            script,
            tmp_path / "x",
            model.model_dump_json(),
            Path(__file__).parent,
        ],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    convert_all(tmp_path / "y", model)
    for name in ("model.tflite", "model.onnx", "model.pte", "model.ptl", "model.pt2"):
        first, second = (hashlib.sha256((tmp_path / side / name).read_bytes()).hexdigest() for side in "xy")
        assert first == second, name


def convert_all(folder: Path, model: Model) -> None:
    """Every float format of one program, in one folder."""
    where = context(folder)
    ExportedProgramToTflite().run(model, where)
    ExportedProgramToOnnx().run(model, where)
    ExportedProgramToExecutorch().run(model, where)
    script = ExportedProgramToTorchscript().run(model, where)
    TorchscriptToMobile().run(script, where)
    TorchscriptToExportedProgram().run(script, where)
