"""GPU hosts without a GPU: skipped results, the output of nvidia-smi, and everything that needs no CUDA.

``nvidia-smi`` is a stand-in, a script on the PATH with output taken from the documentation of the real one.
Only the last test runs on CUDA, if there is a GPU.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgeopt.cli import main
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device, read_device
from edgeopt.errors import DeviceError, RecipeError
from edgeopt.run.measuring.probe import check_requirements, fetch_probe, stable_fields
from edgeopt.run.measuring.readings import conditions
from toy_results import PROBE, spell

STAND_IN = """#!/bin/sh
# A stand-in for nvidia-smi: two GPUs, one of which does not report its power.
case "$1 $2" in
  "--query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits")
    echo "NVIDIA H100 80GB HBM3, 570.86.15, 81559"
    echo "NVIDIA T4, 570.86.15, 15360" ;;
  "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv,noheader,nounits")
    echo "1980, 2619, 34, 117.42"
    echo "585, 5001, 41, [N/A]" ;;
  "--query-compute-apps=pid,used_memory --format=csv,noheader,nounits")
    echo "4242, 512"
    echo "4243, 100"
    echo "4242, 8" ;;
  *) echo "Field is not a valid field to query."; exit 2 ;;
esac
"""
REFUSES = """#!/bin/sh
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
exit 9
"""


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    return build_agent(tmp_path / "agent.pyz")


@pytest.fixture
def inside(agent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module of the packed agent by its short name."""
    monkeypatch.syspath_prepend(str(agent))

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"edgeopt_agent.{name}")

    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "edgeopt_agent"]:
        del sys.modules[name]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a stand-in for nvidia-smi first on the PATH."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.fixture
def edgeopt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_the_stand_in_is_parsed(inside: Any, smi: Any) -> None:
    smi(STAND_IN)
    cuda = inside("cuda")
    assert cuda.gpus() == [
        {"name": "NVIDIA H100 80GB HBM3", "driver": "570.86.15", "memory_mib": 81559},
        {"name": "NVIDIA T4", "driver": "570.86.15", "memory_mib": 15360},
    ]
    first, second = cuda.gpu_states()
    assert first == {"clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 34, "power_w": 117.42}
    assert second["power_w"] is None and second["clock_mhz"] == 585
    assert cuda.gpu_memory_bytes(4242) == 520 * 2**20
    assert cuda.gpu_memory_bytes() is None  # this process is not listed


@pytest.mark.parametrize("script", [REFUSES, "#!/bin/sh\necho 'No devices were found'\n"])
def test_no_driver_or_no_gpu_is_no_gpu(inside: Any, smi: Any, script: str) -> None:
    smi(script)
    cuda = inside("cuda")
    assert cuda.gpus() == [] and cuda.gpu_states() == [] and cuda.gpu_memory_bytes() is None


def test_no_program_is_no_gpu(inside: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inside("cuda").gpus() == []


def test_the_probe_lists_gpus_and_they_identify_the_device(agent: Path, smi: Any) -> None:
    smi(STAND_IN)
    device = load_device("gpu-host")
    found = fetch_probe(device, agent)
    assert [gpu["name"] for gpu in found["gpus"]] == ["NVIDIA H100 80GB HBM3", "NVIDIA T4"]
    assert stable_fields(found)["gpus"] == found["gpus"]
    check_requirements(device, found)
    with pytest.raises(DeviceError, match="gpu-host has no NVIDIA GPU: nvidia-smi is not on its PATH"):
        check_requirements(device, found | {"gpus": []})
    check_requirements(load_device("host"), PROBE)


def test_clocks_are_looked_at_only_where_a_gpu_runs(inside: Any, smi: Any) -> None:
    smi(STAND_IN)
    watches = inside("conditions").Watch(), inside("conditions").Watch(gpus=True)
    for watch in watches:
        watch.begin()
        watch.end()
    assert watches[0].intervals[0]["before"]["gpus"] == []
    assert watches[1].intervals[0]["after"]["gpus"][0]["clock_mhz"] == 1980
    assert inside("session").find_runtime("torch_cuda").on_gpu
    assert inside("session").find_runtime("onnxruntime_cuda").on_gpu
    assert not inside("session").find_runtime("litert").on_gpu


def test_clocks_before_and_after_stand_beside_the_latency() -> None:
    def told(before: int | None, after: int) -> tuple[str, ...]:
        return conditions([spell({"gpus": [{"clock_mhz": before}]}, {"gpus": [{"clock_mhz": after}]})])

    assert told(1980, 1965) == ("GPU 0: clock 1980 MHz before and 1965 MHz after the runs",)
    assert told(1980, 1200)[0].endswith("after the runs: it was throttled or idle")
    assert told(None, 1200) == ()


def test_an_unknown_need_is_named(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text("runtimes: {onnx: onnxruntime_cuda}\nneeds: [gpus]\n")
    with pytest.raises(RecipeError, match=r"board\.yaml:2.*gpu"):
        read_device(path)


def test_check_says_what_is_missing(edgeopt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = edgeopt("devices", "check", "gpu-host")
    assert code == 3 and "onnxruntime_cuda" in out
    assert "device gpu-host has no NVIDIA GPU" in err and "install the NVIDIA driver" in err


def test_a_gpu_without_its_packages_is_not_ready(edgeopt: Any, inside: Any, smi: Any) -> None:
    if inside("session").find_runtime("onnxruntime_cuda").version() is not None:
        pytest.skip("onnxruntime-gpu is installed")
    smi(STAND_IN)
    code, out, err = edgeopt("devices", "check", "gpu-host")
    assert code == 3 and "H100" in out
    assert "device gpu-host lacks onnxruntime_cuda" in err


def test_a_run_skips_what_has_no_gpu_and_measures_the_rest(
    edgeopt: Any, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tf2onnx")
    found = [part for part in os.environ["PATH"].split(os.pathsep) if not Path(part, "nvidia-smi").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(found))
    recipe = write_recipe(
        formats="[onnx]",
        devices="[host, gpu-host]",
        optimize="{float: {}}",
        latency="{min_runs: 5, min_seconds: 0.0, max_seconds: 1.0}",
    )
    out, store = tmp_path / "out", tmp_path / "store"
    assert edgeopt("optimize", recipe, "--out", out, "--store", store)[0] == 3
    rows = {row["device"]: row for row in json.loads((out / "report.json").read_text())["results"]}
    assert set(rows) == {"host", "gpu-host"}
    assert rows["host"]["status"] == "ok" and rows["host"]["measurements"]["top1"]["value"] > 0.9
    assert rows["gpu-host"]["status"] == "skipped"
    assert "device gpu-host has no NVIDIA GPU" in rows["gpu-host"]["reason"]
    assert set(rows["gpu-host"]["measurements"]) == {"size_bytes", "gzip_bytes"}


@pytest.mark.parametrize(
    ("runtime", "options", "words"),
    [
        ("torch_cuda", {"precision": "int8"}, "'precision' is 'int8'; choose from: fp32, fp16, bf16"),
        ("torch_cuda", {"compile": "yes"}, "'compile' is 'yes'; choose from: false, true"),
        ("torch_cuda", {"compile": 1}, "'compile' is 1; choose from: false, true"),
        ("torch_cuda", {"provider": "cuda"}, "no option 'provider'"),
        ("onnxruntime_cuda", {"provider": "cpu"}, "'provider' is 'cpu'; choose from: cuda, tensorrt"),
        ("onnxruntime_cuda", {"precision": "fp16"}, "cannot convert it to fp16: set provider: tensorrt"),
        ("onnxruntime_cuda", {"cpu_nodes": "no"}, "'cpu_nodes' is 'no'; choose from: true, false"),
    ],
)
def test_options_are_checked_before_anything_is_imported(
    inside: Any, runtime: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(inside("failure").AgentError) as caught:
        inside("session").prepare_runtime(runtime, tmp_path / "m", 1, options)
    assert words in caught.value.message


def test_providers_are_asked_for_in_order(inside: Any) -> None:
    settings = inside("runtimes.onnxruntime_cuda").provider_settings
    assert settings({}) == [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})]
    names, given = zip(*settings({"provider": "tensorrt", "precision": "fp16"}), strict=True)
    assert names == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert given[0]["trt_fp16_enable"] == "1"


def test_falling_back_to_the_cpu_is_refused(inside: Any) -> None:
    module, error = inside("runtimes.onnxruntime_cuda"), inside("failure").AgentError
    with pytest.raises(error, match="CUDAExecutionProvider could not be started and ONNX Runtime fell back"):
        module.check_active("CUDAExecutionProvider", ["CPUExecutionProvider"])
    with pytest.raises(error, match=r"TensorrtExecutionProvider could not .* fell back to CUDA"):
        module.check_active("TensorrtExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    module.check_active("CUDAExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_inputs_and_outputs_are_bound(inside: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The same calls as for a GPU, on the memory of the processor.
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    module = inside("runtimes.onnxruntime_cuda")
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "provider_settings", lambda options: ["CPUExecutionProvider"])
    monkeypatch.setitem(module.PROVIDERS, "cuda", "CPUExecutionProvider")
    file = tmp_path / "m.onnx"
    specs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "abc"]
    node = onnx.helper.make_node("Sub", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "g", specs[:2], specs[2:])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), file)
    assert onnxruntime.get_available_providers()
    session = module.Session(file, 1, {})
    assert [spec.shape for spec in session.inputs] == [(None, 3), (None, 3)]
    (out,), seconds = session.run([np.full((2, 3), 5.0), np.full((2, 3), 3, np.float32)])
    assert out.tolist() == [[2.0] * 3] * 2 and 0 < seconds < 1
    assert "CPUExecutionProvider, fp32" in session.notes()[0]


def test_an_onnxruntime_for_the_cpu_says_so(inside: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    with pytest.raises(inside("failure").AgentError, match=r"has no CUDAExecutionProvider; it has: .*CPU"):
        inside("session").prepare_runtime("onnxruntime_cuda", tmp_path / "m.onnx", 1, {})


def test_a_torch_for_the_cpu_says_so(inside: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this torch finds a GPU")
    with pytest.raises(inside("failure").AgentError, match=r"is built without CUDA|finds no GPU"):
        inside("session").prepare_runtime("torch_cuda", tmp_path / "m.pt2", torch.get_num_threads(), {})


def exported(path: Path) -> tuple[Path, Any, Any]:
    """A small exported program that also creates a tensor itself, an input for it, and its output."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)
            self.norm = torch.nn.BatchNorm2d(8)

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
            return y + torch.arange(8, device=y.device) / 8

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    torch.export.save(torch.export.export(net, (x,)), path)
    return path, x, net(x).detach()


# For a program of another device type, torch warns about its own loading code.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2), ("fp16", 4e-3)])
def test_precisions_are_cast_alike_on_every_device(
    inside: Any, tmp_path: Path, precision: str, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    module, torchside = inside("runtimes.torch_cuda"), inside("torchside")
    path, x, wanted = exported(tmp_path / "m.pt2")
    net, specs = module.load(path, False, "cpu")
    assert [(spec.shape, spec.dtype) for spec in specs] == [((1, 3, 8, 8), "float32")]
    net = module.cast_module(net, "cpu", precision)
    types = {value.dtype for value in net.state_dict().values() if value.is_floating_point()}
    assert types == {getattr(torch, module.DTYPES[precision])}
    (given, index) = module.cast_inputs([x, torch.zeros(2, dtype=torch.int64)], "cpu", precision)
    assert given.dtype in types and index.dtype == torch.int64
    with torch.no_grad():
        (out,) = module.widen_outputs(torchside.as_arrays(net(given)), precision)
    assert out.dtype == np.float32
    error = float(np.abs(out - wanted.numpy()).max())
    assert error < tolerance
    assert precision == "fp32" or error > 0


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_torchscript_is_loaded_and_what_cannot_be_used_is_refused(inside: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module, error = inside("runtimes.torch_cuda"), inside("failure").AgentError
    net = torch.jit.trace(torch.nn.Linear(4, 2).eval(), torch.zeros(1, 4))
    net.save(str(tmp_path / "m.pt"))
    loaded, specs = module.load(tmp_path / "m.pt", False, "cpu")
    assert specs is None and loaded(torch.zeros(1, 4)).shape == (1, 2)
    with pytest.raises(error, match=r"torch\.compile does not support TorchScript"):
        module.compile_module(loaded, "m.pt")
    net._save_for_lite_interpreter(str(tmp_path / "m.ptl"))
    with pytest.raises(error, match="for the lite interpreter, which runs only on the CPU"):
        module.load(tmp_path / "m.ptl", False, "cpu")
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(error, match="neither TorchScript nor an exported program"):
        module.load(tmp_path / "text.pt", False, "cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_exported_program_runs_on_the_gpu(inside: Any, tmp_path: Path, precision: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU on this machine")
    path, x, wanted = exported(tmp_path / "m.pt2")
    options = {"precision": precision}
    kind = inside("session").prepare_runtime("torch_cuda", path, torch.get_num_threads(), options)
    session = kind(path, 1, options)
    (out,), seconds = session.run([x.numpy()])
    assert np.abs(out - wanted.numpy()).max() < 2e-2 and 0 < seconds < 60
    assert session.measurements()["gpu_memory_bytes"]["value"] > 0
    assert torch.cuda.get_device_name() in session.notes()[0]
