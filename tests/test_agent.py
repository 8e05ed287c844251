"""The agent, packed as for a device and run in separate processes."""

import ast
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgeopt.devices.agent_archive import SCANNERS, SOURCE, build_agent, runtime_names
from edgeopt.devices.connections.local import Local
from edgeopt.devices.device import load_device
from edgeopt.errors import DeviceError
from edgeopt.run.measuring.probe import check_requirements
from edgeopt.run.measuring.protocol import PROTOCOL

FAST = {"min_runs": 5, "min_seconds": 0.0, "max_seconds": 5.0, "repeats": 1}


class Answer(NamedTuple):
    result: dict[str, Any]
    outputs: dict[str, Any]
    times: dict[str, Any]
    code: int


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent") / "agent.pyz")


@pytest.fixture
def inside(agent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the packed agent by its short name."""
    monkeypatch.syspath_prepend(str(agent))

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"edgeopt_agent.{name}")

    yield module
    for name in [name for name in sys.modules if name.startswith(("edgeopt_agent", "edgeopt_untrusted"))]:
        del sys.modules[name]


def run_job(
    agent: Path, tmp_path: Path, name: str, file: Path, inputs: list[Any] | None, **job: Any
) -> Answer:
    with Local().open() as link:
        link.put(agent, "agent.pyz")
        link.put(file, file.name)
        names = None
        if inputs is not None:
            names = []
            for index, values in enumerate(inputs):
                np.save(tmp_path / f"input{index}.npy", values)
                link.put(tmp_path / f"input{index}.npy", f"input{index}.npy")
                names.append(f"input{index}.npy")
        whole = {
            "protocol": PROTOCOL,
            "runtime": name,
            "threads": 1,
            "options": {},
            "trust": False,
            "model": file.name,
            "inputs": names,
            "samples": None,
            "outputs": "outputs.npz",
            "batch": 1,
            "latency": None,
            "baseline": None,
            "python_path": [],
            "layers": [],
        }
        (tmp_path / "job.json").write_text(json.dumps({**whole, **job}))
        link.put(tmp_path / "job.json", "job.json")
        done = link.python(["agent.pyz", "run", "job.json"], 120)
        assert done.returncode in (0, 1), done.stderr
        link.get("result.json", tmp_path / "result.json")
        result = json.loads((tmp_path / "result.json").read_text())
        outputs: dict[str, Any] = {}
        if result["ok"]:
            link.get("outputs.npz", tmp_path / "outputs.npz")
            with np.load(tmp_path / "outputs.npz") as archive:
                outputs = dict(archive)
        times: dict[str, Any] = {}
        if result["ok"] and job.get("latency"):
            link.get("times.npz", tmp_path / "times.npz")
            with np.load(tmp_path / "times.npz") as archive:
                times = dict(archive)
    return Answer(result, outputs, times, done.returncode)


# The archive


def test_archive_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = build_agent(tmp_path / "a" / "agent.pyz"), build_agent(tmp_path / "b.pyz")
    assert first.read_bytes() == second.read_bytes()
    assert [file.name for file in first.parent.iterdir()] == ["agent.pyz"]
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert names == sorted(names)
    assert not [name for name in names if "__pycache__" in name]
    assert {f"edgeopt_agent/runtimes/{name}.py" for name in runtime_names()} < set(names)


def test_archive_leaves_nothing_behind_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").mkdir()
    with pytest.raises(OSError):
        build_agent(tmp_path / "agent.pyz")
    assert [file.name for file in tmp_path.iterdir()] == ["agent.pyz"]


def test_sources_are_python_3_8_and_import_numpy_alone() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "edgeopt_agent", "edgeopt_untrusted"}
    for file in (*SOURCE.rglob("*.py"), *SCANNERS.glob("*.py")):
        tree = ast.parse(file.read_text("utf-8"), str(file), feature_version=(3, 8))
        for node in tree.body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # The scanners have another name in the agent: they import each other by relative imports.
                # The scanners' package has another name in the agent.
                assert node.level == 0 or file.parent == SCANNERS, f"{file}: relative import"
                names = [] if node.level else [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, file


def test_every_module_imports_without_a_framework(agent: Path) -> None:
    code = """
        import importlib, pkgutil, sys
        sys.path.insert(0, sys.argv[1])
        import edgeopt_agent
        for module in pkgutil.walk_packages(edgeopt_agent.__path__, "edgeopt_agent."):
            importlib.import_module(module.name)
        print(*sorted({name.partition(".")[0] for name in sys.modules}))
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), str(agent)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "edgeopt_agent" in loaded
    assert not loaded & {
        "tensorflow",
        "keras",
        "torch",
        "onnxruntime",
        "ai_edge_litert",
        "executorch",
        "edgeopt",
    }


def test_layers_that_a_later_one_overwrote_are_told(inside: Any) -> None:
    logits, others = np.zeros(4, np.int8), np.zeros(4, np.int8)
    memory = {0: others, 1: logits, 2: logits.reshape(2, 2), 3: logits, 4: np.zeros(4, np.float32)}

    class Model:
        def tensor(self, index: int) -> Any:
            if index not in memory:
                raise ValueError("Tensor data is null")
            return lambda: memory[index]

    chain = [("CONV_2D", 0), ("FULLY_CONNECTED", 1), ("RESHAPE", 2), ("CUSTOM", 9)]
    found = inside("tflite")._overwritten
    assert found(Model(), chain) == set()
    # The reshaped logits are gone, and what they were reshaped from.
    assert found(Model(), [*chain, ("SOFTMAX", 3), ("DEQUANTIZE", 4)]) == {1, 2}


def test_probe_tells_versions_without_importing_frameworks(agent: Path) -> None:
    done = subprocess.run([sys.executable, agent, "probe"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["runtimes"]) == set(runtime_names())
    assert found["runtimes"]["null"] == found["agent"]
    assert found["numpy"] == np.__version__
    assert found["cores"] >= 1 and found["memory_bytes"] > 2**20
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_device_without_numpy_is_described(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = inside("probe").probe()
    assert found["numpy"] is None and found["runtimes"]["litert"] is None
    with pytest.raises(DeviceError, match="of device host has no numpy") as caught:
        check_requirements(load_device("host"), found)
    assert caught.value.fix == "install it on the device"


def test_wrong_usage_exits_2(agent: Path) -> None:
    done = subprocess.run([sys.executable, agent, "measure"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage" in done.stderr


# Modules


def test_quantize_rounds_half_to_even_and_clips(inside: Any) -> None:
    session = inside("session")
    spec = session.Spec("x", (None, 6), "int8", 0.5, 3)
    real = np.array([[0.25, 0.75, -0.25, 1000.0, -1000.0, 1.0]], np.float32)
    stored = session.fit(real, spec)
    assert stored.dtype == np.int8
    assert stored.tolist() == [[3, 5, 3, 127, -128, 5]]
    assert session.dequantize(stored[:, :1], spec).tolist() == [[0.0]]
    assert session.dequantize(stored[:, 3:4], spec).tolist() == [[62.0]]
    assert session.fit(stored, spec) is stored or (session.fit(stored, spec) == stored).all()


def test_values_are_never_lost_without_a_word(inside: Any) -> None:
    session, failure = inside("session"), inside("failure")
    small = session.Spec("x", (None, 2), "uint8")
    assert session.fit(np.array([[0, 255]]), small).dtype == np.uint8
    with pytest.raises(failure.AgentError, match="'x' has dtype uint8, but the data has int64"):
        session.fit(np.array([[0, 256]]), small)
    with pytest.raises(failure.AgentError, match="float32"):
        session.fit(np.zeros((1, 2), np.float32), small)
    with pytest.raises(failure.AgentError, match="NaN or infinity"):
        session.quantize(np.array([np.nan]), session.Spec("x", (1,), "int8", 1.0, 0))


def test_warm_up_stops_when_steady(inside: Any) -> None:
    timing = inside("timing")
    falling = [1.0 / (index + 1) for index in range(30)] + [0.01] * 1000
    assert 40 <= timing.warm_up(lambda index: falling[index], 10.0) <= 50
    assert timing.warm_up(lambda index: 1.0, 10.0) == 20
    assert timing.warm_up(lambda index: float(index), 0.0) == 1


def test_runs_take_turns(inside: Any) -> None:
    timing = inside("timing")
    order: list[str] = []

    def call(name: str) -> Any:
        return lambda index: order.append(name) or float(len(name))

    first, second = timing.take_turns([call("a"), call("bb")], 7, 0.0, 10.0)
    assert (first, second) == ([1.0] * 7, [2.0] * 7)
    assert order[-14:] == ["a", "bb"] * 7


def test_timing_respects_the_longest_time(inside: Any) -> None:
    (seconds,) = inside("timing").take_turns([lambda index: 1.0], 10**9, 0.0, 0.05)
    assert 1 <= len(seconds) < 10**9


def test_outputs_are_streamed_to_disk(inside: Any, tmp_path: Path) -> None:
    outputs = inside("outputs")
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    with outputs.OutputFile(tmp_path / "o.npz", 5) as file:
        file.write(4, 4, [values[:4], np.arange(4)])
        file.write(1, 4, [values[[4, 0, 1, 2]], np.arange(4)])
    with np.load(tmp_path / "o.npz") as archive:
        assert (archive["output_0"] == values).all()
        assert archive["output_1"].tolist() == [0, 1, 2, 3, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["o.npz"]


def test_outputs_that_change_their_shape_are_refused(inside: Any, tmp_path: Path) -> None:
    outputs, failure = inside("outputs"), inside("failure")
    refused = pytest.raises(failure.AgentError, match="differs between samples")
    with refused, outputs.OutputFile(tmp_path / "o.npz", 2) as file:
        file.write(1, 1, [np.zeros((1, 2))])
        file.write(1, 1, [np.zeros((1, 3))])
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_sees_what_was_freed_again(inside: Any) -> None:
    peak = inside("memory").Peak()
    np.ones(5_000_000).sum()
    if peak.method != "VmHWM":
        pytest.skip("this system cannot reset the high-water mark")
    assert 38e6 < peak.bytes() < 60e6


# Jobs without a framework


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    return path


SPECS = {
    "inputs": [{"name": "x", "shape": [None, 2, 3], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [1, 4], "dtype": "float32"}],
}


def test_null_measures_the_harness(agent: Path, tmp_path: Path, nothing: Path) -> None:
    values = np.ones((4, 3), np.float32)
    answer = run_job(agent, tmp_path, "null", nothing, [values], latency=FAST)
    assert answer.code == 0 and answer.result["n"] == 4
    assert answer.outputs["output_0"].shape == (4, 3) and not answer.outputs["output_0"].any()
    assert len(answer.times["null"]) == 200
    assert np.median(answer.times["null"]) < 1e-4
    assert answer.result["environment"]["runtimes"]["null"] == "1"


def test_shape_that_does_not_fit_names_both(agent: Path, tmp_path: Path, nothing: Path) -> None:
    answer = run_job(agent, tmp_path, "null", nothing, [np.ones((4, 5, 3))], options=SPECS)
    assert answer.code == 1 and answer.result["kind"] == "input"
    assert "'x' of model.bin has shape [?, 2, 3]" in answer.result["error"]
    assert "[n, 5, 3]" in answer.result["error"]


def test_number_of_inputs_that_does_not_fit_names_all(agent: Path, tmp_path: Path, nothing: Path) -> None:
    values = np.ones((4, 2, 3))
    answer = run_job(agent, tmp_path, "null", nothing, [values, values], options=SPECS)
    assert "has 1 input(s): x [?, 2, 3]; the job has 2: [4, 2, 3], [4, 2, 3]" in answer.result["error"]


@pytest.mark.parametrize(
    ("changes", "inputs", "kind", "words"),
    [
        ({"runtime": "nul"}, [np.ones((1, 1))], "runtime", "no runtime 'nul'; it has: "),
        ({"options": {"fast": 1}}, [np.ones((1, 1))], "runtime", "no option 'fast'; known: inputs, outputs"),
        ({"options": {"trust": True}}, [np.ones((1, 1))], "runtime", "no option 'trust': no device sets it"),
        ({"protocol": 9}, [np.ones((1, 1))], "input", "protocol: expected 4, got 9"),
        ({"model": "gone.bin"}, [np.ones((1, 1))], "input", "gone.bin does not exist"),
        ({}, [np.ones((0, 2))], "input", "contain no samples"),
        ({}, [np.ones((1, 2)), np.ones((2, 2))], "input", "differ in their number of samples"),
        ({"samples": 2}, [np.ones((2, 2)), np.ones((3, 2))], "input", "differ in their number of samples"),
        ({}, [np.array([None])], "input", "input0.npy cannot be read"),
        ({}, None, "input", "does not declare its inputs"),
    ],
)
def test_bad_jobs_are_explained(
    agent: Path,
    tmp_path: Path,
    nothing: Path,
    changes: dict[str, Any],
    inputs: list[Any] | None,
    kind: str,
    words: str,
) -> None:
    result, _, _, code = run_job(agent, tmp_path, "null", nothing, inputs, **changes)
    assert code == 1
    assert not result["ok"] and result["kind"] == kind
    assert words in result["error"] and "\n" not in result["error"]


# Jobs with every runtime, on toys built by these scripts

MAKE_TORCH = """
    import importlib, json, sys
    from pathlib import Path
    import numpy as np, torch
    sys.path.insert(0, ".")
    Path("nets_of_test.py").write_text(
        "import torch\\n"
        "class Net(torch.nn.Module):\\n"
        "    def __init__(self, width):\\n"
        "        super().__init__()\\n"
        "        self.conv = torch.nn.Conv2d(2, width, 3)\\n"
        "        self.out = torch.nn.Linear(width * 16, 3)\\n"
        "    def forward(self, x):\\n"
        "        return self.out(torch.relu(self.conv(x)).flatten(1))\\n"
    )
    torch.manual_seed(0)
    net = importlib.import_module("nets_of_test").Net(width=4).eval()
    x = torch.randn(40, 2, 6, 6)
    np.save("torch_x.npy", x.numpy())
    np.save("torch_y.npy", net(x).detach().numpy())

    from safetensors.torch import save_file
    Path("toy").mkdir()
    save_file(net.state_dict(), "toy/weights.safetensors")
    Path("toy/model.json").write_text(json.dumps({
        "factory": "nets_of_test:Net",
        "arguments": {"width": 4},
        "inputs": [{"name": "x", "shape": [1, 2, 6, 6], "dtype": "float32"}],
    }))
    program = torch.export.export(net, (x[:1],))
    torch.export.save(program, "toy.pt2")
    script = torch.jit.freeze(torch.jit.trace(net, x[:1]))
    script._save_for_lite_interpreter("toy.ptl")
    script.save("toy.pt")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    Path("toy.pte").write_bytes(lowered.to_executorch().buffer)
    volume = torch.export.export(torch.nn.Conv3d(1, 1, 1), (torch.zeros(1, 1, 2, 2, 2),))
    Path("volume.pte").write_bytes(to_edge_transform_and_lower(volume).to_executorch().buffer)
"""

MAKE_TENSORFLOW = """
    import numpy as np, tensorflow as tf, keras, tf_keras
    keras.utils.set_random_seed(0)
    x = np.random.RandomState(0).standard_normal((40, 6, 6, 2)).astype(np.float32)
    np.save("keras_x.npy", x)
    for library, name in ((keras, "toy.keras"), (tf_keras, "toy.h5")):
        layers = library.layers
        def toy():
            return library.Sequential([
                layers.Input((6, 6, 2)), layers.Conv2D(4, 3, activation="relu"),
                layers.Flatten(), layers.Dense(3),
            ])
        def recurrent(**options):
            image = layers.Input(batch_shape=(1, 6, 6, 2))
            return library.Model(image, layers.LSTM(3, **options)(layers.Reshape((6, 12))(image)))
        net = toy()
        net.save(name)
        np.save(name + ".npy", net(x).numpy())
        library.mixed_precision.set_global_policy("mixed_float16")
        half = toy()
        library.mixed_precision.set_global_policy("float32")
        half.set_weights(net.get_weights())
        half.save(name.replace("toy", "half"))
        fresh, stateful = recurrent(), recurrent(stateful=True)
        stateful.set_weights(fresh.get_weights())
        stateful.save(name.replace("toy", "stateful"))
        np.save(name.replace("toy", "stateful") + ".npy", np.concatenate([fresh(v[None]) for v in x]))
        evil = library.Sequential([layers.Input((6, 6, 2)), layers.Lambda(lambda v: v + 1)])
        evil.save(name.replace("toy", "evil"))
        if library is keras:
            net.save("toy_3.h5")
            open("own_layers.py", "w").write("import keras\\nclass Twice(keras.layers.Layer):\\n"
                                             "    def call(self, x):\\n        return 2 * x\\n")
            from own_layers import Twice
            keras.Sequential([net, Twice()]).save("own.keras")
    net.save("toy_keras_2")
    class Plain(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 2], tf.float32, name="x")])
        def __call__(self, x):
            return {"y": net(x)}
    plain = Plain()
    plain.net = net
    tf.saved_model.save(plain, "toy_plain", signatures=plain.__call__.get_concrete_function())
    double = tf.function(lambda x: {"y": 2 * net(x)}, input_signature=plain.__call__.input_signature)
    plain.double = double
    tf.saved_model.save(plain, "toy_named", signatures={"zoom": double, "scale": plain.__call__})
    converter = tf.lite.TFLiteConverter.from_keras_model(net)
    open("toy.tflite", "wb").write(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([v[None]] for v in x)
    converter.inference_input_type = converter.inference_output_type = tf.int8
    open("toy_int8.tflite", "wb").write(converter.convert())
"""


def make(folder: Path, script: str) -> Path:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="session")
def torch_toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("executorch", reason="needs edgeopt[executorch]")
    return make(tmp_path_factory.mktemp("torch"), MAKE_TORCH)


@pytest.fixture(scope="session")
def keras_toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("needs edgeopt[keras]")
    return make(tmp_path_factory.mktemp("keras"), MAKE_TENSORFLOW)


@pytest.mark.parametrize(
    ("runtime", "file"),
    [
        ("torch", "toy"),
        ("torch", "toy.pt2"),
        ("torchscript", "toy.ptl"),
        ("torchscript", "toy.pt"),
        ("executorch", "toy.pte"),
    ],
)
def test_torch_formats(agent: Path, tmp_path: Path, torch_toys: Path, runtime: str, file: str) -> None:
    x, expected = np.load(torch_toys / "torch_x.npy"), np.load(torch_toys / "torch_y.npy")
    job: dict[str, Any] = {"python_path": [str(torch_toys)]} if file == "toy" else {}
    answer = run_job(agent, tmp_path, runtime, torch_toys / file, [x], latency=FAST, batch=32, **job)
    assert answer.result["ok"], answer.result
    assert np.abs(answer.outputs["output_0"] - expected).max() < 1e-5
    assert len(answer.times["latency"]) == 5
    assert 0 < min(answer.times["latency"]) < 1
    assert answer.result["peak_memory_bytes"] > 0
    assert answer.result["outputs"][0]["dtype"] == "float32"


def test_a_failing_executorch_kernel_is_named_without_a_number(
    agent: Path, tmp_path: Path, torch_toys: Path
) -> None:
    zeros = np.zeros((1, 1, 2, 2, 2), np.float32)
    answer = run_job(agent, tmp_path, "executorch", torch_toys / "volume.pte", [zeros])
    words = "ExecuTorch cannot run the program: invalid argument in aten::convolution.out"
    assert words in answer.result["error"] and "0x" not in answer.result["error"]


@pytest.mark.parametrize(
    ("file", "reference"),
    [
        ("toy.keras", "toy.keras.npy"),
        ("toy_3.h5", "toy.keras.npy"),
        ("toy.h5", "toy.h5.npy"),
        ("toy_plain", "toy.h5.npy"),
        # Of signatures with other names, the one that is converted.
        ("toy_named", "toy.h5.npy"),
        # As the files made from them: weights of float32 compute in it, and every run begins without a state.
        ("half.keras", "toy.keras.npy"),
        ("half.h5", "toy.h5.npy"),
        ("stateful.keras", "stateful.keras.npy"),
        ("stateful.h5", "stateful.h5.npy"),
    ],
)
def test_keras_formats(agent: Path, tmp_path: Path, keras_toys: Path, file: str, reference: str) -> None:
    x, expected = np.load(keras_toys / "keras_x.npy"), np.load(keras_toys / reference)
    answer = run_job(agent, tmp_path, "keras", keras_toys / file, [x], latency=FAST, batch=32)
    assert answer.result["ok"], answer.result
    assert np.abs(answer.outputs["output_0"] - expected).max() < 1e-5
    assert answer.result["inputs"][0]["shape"] == [1 if "stateful" in file else None, 6, 6, 2]


def test_custom_layers_of_keras_are_those_of_the_named_module(
    agent: Path, tmp_path: Path, keras_toys: Path
) -> None:
    x, expected = np.load(keras_toys / "keras_x.npy"), 2 * np.load(keras_toys / "toy.keras.npy")
    job: dict[str, Any] = {"options": {"code": "own_layers"}, "python_path": [str(keras_toys)]}
    answer = run_job(agent, tmp_path, "keras", keras_toys / "own.keras", [x], trust=True, **job)
    assert answer.result["ok"], answer.result
    assert np.abs(answer.outputs["output_0"] - expected).max() < 1e-5


@pytest.mark.parametrize("file", ["evil.keras", "evil.h5"])
def test_code_inside_a_keras_model_is_refused(
    agent: Path, tmp_path: Path, keras_toys: Path, file: str
) -> None:
    answer = run_job(agent, tmp_path, "keras", keras_toys / file, [np.load(keras_toys / "keras_x.npy")])
    assert answer.code == 1 and answer.result["kind"] == "model"
    assert file in answer.result["error"] and "ambda" in answer.result["error"]


def test_quantized_tflite_beside_its_float_baseline(agent: Path, tmp_path: Path, keras_toys: Path) -> None:
    x, expected = np.load(keras_toys / "keras_x.npy"), np.load(keras_toys / "toy.h5.npy")
    plain = run_job(agent, tmp_path, "litert", keras_toys / "toy.tflite", [x])
    assert np.abs(plain.outputs["output_0"] - expected).max() < 1e-5
    quantized = run_job(agent, tmp_path, "litert", keras_toys / "toy_int8.tflite", [x], latency=FAST)
    assert quantized.result["inputs"][0]["dtype"] == "int8" and quantized.result["inputs"][0]["scale"] > 0
    assert quantized.outputs["output_0"].dtype == np.float32
    assert np.abs(quantized.outputs["output_0"] - expected).max() < 0.05 * np.abs(expected).max()
    assert len(quantized.times["baseline"]) == 0


def test_tflite_takes_made_up_inputs(agent: Path, tmp_path: Path, keras_toys: Path) -> None:
    answer = run_job(agent, tmp_path, "litert", keras_toys / "toy_int8.tflite", None)
    assert answer.result["ok"] and answer.outputs["output_0"].shape == (16, 3)


def test_onnx_with_and_without_optimization(agent: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs edgeopt[onnx]")
    pytest.importorskip("onnxruntime", reason="needs edgeopt[onnx]")

    def save(name: str, weights: Any, batch: int | str) -> Path:
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "toy",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 2])],
            [onnx.numpy_helper.from_array(weights, "w")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    for batch, optimize in ((1, False), ("n", True), (4, True)):
        path = save(f"toy_{batch}.onnx", weights, batch)
        options = {"optimize": optimize}
        answer = run_job(agent, tmp_path, "onnxruntime", path, [x], options=options, batch=3, latency=FAST)
        assert answer.result["ok"], answer.result
        assert np.abs(answer.outputs["output_0"] - x @ weights).max() < 1e-5
    broken = save("broken.onnx", np.full((3, 2), np.nan, np.float32), 1)
    answer = run_job(agent, tmp_path, "onnxruntime", broken, [x], latency=None)
    assert answer.result["ok"] and answer.result["non_finite"] == 14

    with Local().open() as link:
        for file in (agent, tmp_path / "toy_1.onnx", tmp_path / "toy_n.onnx", tmp_path / "input0.npy"):
            link.put(file, file.name)
        job = json.loads((tmp_path / "job.json").read_text())
        job.update(model="toy_1.onnx", baseline="toy_n.onnx", latency=FAST)
        (tmp_path / "job.json").write_text(json.dumps(job))
        link.put(tmp_path / "job.json", "job.json")
        assert link.python(["agent.pyz", "run", "job.json"], 60).returncode == 0
        link.get("times.npz", tmp_path / "times.npz")
    with np.load(tmp_path / "times.npz") as times:
        assert len(times["latency"]) == len(times["baseline"]) == 5


@pytest.mark.parametrize(
    ("runtime", "file"),
    [("onnxruntime", "bad.onnx"), ("litert", "bad.tflite")],
)
def test_damaged_files_are_named(agent: Path, tmp_path: Path, runtime: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"not a model at all" * 50)
    answer = run_job(agent, tmp_path, runtime, tmp_path / file, [np.ones((1, 2), np.float32)])
    if answer.result["kind"] == "runtime":
        pytest.skip(answer.result["error"])
    assert answer.code == 1 and answer.result["kind"] == "model"
    assert file in answer.result["error"] and "edgeopt-job" not in answer.result["error"]


@pytest.mark.parametrize(("runtime", "file"), [("torchscript", "bad.ptl"), ("torch", "bad.pt2")])
def test_damaged_archives_are_named(inside: Any, tmp_path: Path, runtime: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"not a model at all" * 50)
    with pytest.raises(inside("failure").AgentError, match=f"{file} is not a"):
        inside(f"runtimes.{runtime}").Session(tmp_path / file, 1, {})


def test_objects_pickled_into_an_exported_program_are_refused(inside: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
        archive.writestr("m/data/constants/opaque_obj_0", b"anything")
    with pytest.raises(inside("failure").AgentError, match=r"evil.pt2 contains .*opaque_obj_0.*'trust'"):
        inside("runtimes.torch").Session(tmp_path / "evil.pt2", 1, {})


def test_published_model_keeps_its_accuracy(agent: Path, tmp_path: Path) -> None:
    data = os.environ.get("EDGEOPT_DATA")
    if not data:
        pytest.skip("EDGEOPT_DATA is not set: no real data")
    with np.load(Path(data) / "kws" / "evaluation400.npz") as samples:
        x, y = samples["x"], samples["y"]
    model = Path(data) / "mlperf-tiny" / "kws_reference_int8.tflite"
    answer = run_job(agent, tmp_path, "litert", model, [x])
    assert answer.result["ok"], answer.result
    assert abs((answer.outputs["output_0"].argmax(1) == y).mean() - 0.89) < 0.005
