"""``edgeopt profile`` on files that edgeopt did not make."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.results import Report

EDGEOPT = [sys.executable, "-c", "from edgeopt.cli import main; main()"]
MAKE = """
import sys
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

folder = sys.argv[1]
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                                        torch.nn.Linear(144, 5))
    def forward(self, x):
        return self.body(x)
net, x = Net().eval(), torch.zeros(1, 3, 8, 8)
torch.jit.freeze(torch.jit.trace(net, x))._save_for_lite_interpreter(folder + "/net.ptl")
program = torch.export.export(net, (x,))
torch.onnx.export(program, (x,), folder + "/net.onnx", dynamo=True, external_data=False)
lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
open(folder + "/net.pte", "wb").write(lowered.buffer)
import numpy as np
images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3)).astype(np.uint8)
with torch.no_grad():
    labels = net(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))).argmax(1).numpy()
np.savez(folder + "/data.npz", x=images, y=labels)
"""


def profile(*arguments: str | Path) -> tuple[int, str, str]:
    quick = ["--min-runs", "10", "--min-seconds", "0"]
    done = subprocess.run(
        [*EDGEOPT, "profile", *map(str, arguments), *quick], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def measurements(out: str) -> dict[str, Any]:
    (result,) = Report.model_validate_json(out).results
    assert result.status == "ok"
    return {name: value.value for name, value in result.measurements.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files as another tool makes them: images go in as NCHW, the data lies as NHWC."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, str(folder)], check=True, capture_output=True)
    yield folder


@pytest.mark.parametrize("name", ["net.onnx", "net.pte", "net.ptl"])
def test_a_foreign_file_is_measured_with_data_in_the_other_layout(folder: Path, name: str) -> None:
    shape = ["--shape", "1,3,8,8"] if name == "net.ptl" else []
    code, out, err = profile(folder / name, "--data", folder / "data.npz", "--json", *shape)
    assert code == 0, err
    found = measurements(out)
    assert found["top1"] == 1.0
    assert found["latency_p50_ms"] > 0
    assert found["size_bytes"] == (folder / name).stat().st_size


def test_the_runtimes_profiler_tells_the_time_of_every_operator(folder: Path) -> None:
    code, out, err = profile(folder / "net.onnx", "--data", folder / "data.npz", "--json")
    assert code == 0, err
    (result,) = Report.model_validate_json(out).results
    operators = [layer["operator"] for layer in result.layers]
    assert any("Conv" in str(operator) for operator in operators)
    assert sum(float(layer["share"] or 0) for layer in result.layers) == pytest.approx(1, abs=0.01)


def test_without_data_random_inputs_are_used_and_said(folder: Path) -> None:
    code, out, _ = profile(folder / "net.onnx", "--json")
    assert code == 0
    (result,) = json.loads(out)["results"]
    assert "random inputs: no accuracy" in result["notes"]
    assert "top1" not in result["measurements"]
    (folder / "boards").mkdir()
    (folder / "boards" / "twin.yaml").write_text("base: host\n")
    both = ("--device", "host", "--device", "twin", "--device-folder", folder / "boards")
    code, out, _ = profile(folder / "net.onnx", *both)
    assert code == 0
    assert "net.onnx on host" in out and "net.onnx on twin" in out


def test_trust_is_accepted_by_every_runtime(folder: Path) -> None:
    for name, shape in (("net.onnx", []), ("net.pte", []), ("net.ptl", ["--shape", "1,3,8,8"])):
        code, _, err = profile(folder / name, *shape, "--trust")
        assert code == 0, err


def test_a_format_that_tells_nothing_says_what_to_give(folder: Path) -> None:
    code, _, err = profile(folder / "net.ptl")
    assert code in (2, 3)
    assert "--shape" in err


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"not a model at all")
    code, _, err = profile(tmp_path / "junk.onnx")
    assert code == 2
    assert "junk.onnx" in err
    assert profile(tmp_path / "none.onnx")[0] == 2


def test_data_that_does_not_fit_names_both_shapes(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((3, 7, 7, 3), np.uint8))
    code, _, err = profile(folder / "net.onnx", "--data", tmp_path / "wrong.npz")
    assert code == 2
    assert "[7, 7, 3]" in err and "[3, 8, 8]" in err.replace("batch, ", "")


@pytest.mark.parametrize(
    ("name", "data", "accuracy"),
    [
        ("kws_reference_int8", "kws/evaluation400.npz", 0.890),
        ("resnet8_reference_int8", "cifar10/test446.npz", 0.8834),
    ],
)
def test_published_int8_files_have_their_known_accuracy(
    real_data: Path, name: str, data: str, accuracy: float
) -> None:
    code, out, err = profile(
        real_data / "mlperf-tiny" / f"{name}.tflite", "--data", real_data / data, "--json"
    )
    assert code == 0, err
    assert measurements(out)["top1"] == pytest.approx(accuracy, abs=0.003)


def test_the_older_runtime_in_its_own_environment(real_data: Path) -> None:
    """Sets the environment up for real: pip installs tflite-runtime 2.14 and an older numpy."""
    setup = subprocess.run(
        [*EDGEOPT, "devices", "setup", "host-tflite-runtime"], capture_output=True, text=True, check=False
    )
    assert setup.returncode == 0, setup.stderr
    again = subprocess.run(
        [*EDGEOPT, "devices", "setup", "host-tflite-runtime"], capture_output=True, text=True, check=True
    )
    assert "already set up" in again.stderr
    file = real_data / "mlperf-tiny" / "kws_reference_int8.tflite"
    data = real_data / "kws" / "evaluation400.npz"
    code, out, err = profile(file, "--device", "host-tflite-runtime", "--data", data, "--json")
    assert code == 0, err
    assert measurements(out)["top1"] == pytest.approx(0.890, abs=0.005)
    (environment,) = json.loads(out)["environment"].values()
    assert environment["numpy"].startswith("1.")
    # In front of the softmax, which turned two steps into 22 where this was written.
    devices = ["--device", "host", "--device", "host-tflite-runtime"]
    compared = [*EDGEOPT, "parity", str(file), *devices, "--data", str(data), "--json"]
    told = subprocess.run(compared, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["devices"][1]["max_steps"] <= 8
