"""Size breakdown of files: the sum is correct, and so are the parts of files with known content."""

import importlib.util
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.config import absent
from edgeopt.errors import StageError, UsageError
from edgeopt.formats.source import size_breakdown
from edgeopt.formats.tflite.files import breakdown
from edgeopt.plugin import SizeBreakdown
from toy_tflite import NOTES, toy

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def told(path: Path) -> SizeBreakdown:
    found = size_breakdown(path)
    size = sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file())
    assert found.size_bytes == size
    assert sum(found.parts.values()) == found.size_bytes
    assert min(found.parts.values()) > 0
    return found


@needs("ai_edge_litert")
def test_a_tflite_file_is_inspected_without_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy())
    whole = size_breakdown(path)
    monkeypatch.setattr(absent, "installed", lambda: False)
    monkeypatch.setattr(breakdown, "np", absent._Package("numpy"))  # refuses every call
    found = size_breakdown(path)
    assert whole.sparsity is not None and found.sparsity is None
    assert found.notes[-1].startswith("the sparsity of the weights is unknown without NumPy: ")
    assert found.model_copy(update={"sparsity": whole.sparsity, "notes": whole.notes}) == whole


@needs("ai_edge_litert")
@pytest.mark.parametrize("behind", [False, True])
def test_every_byte_of_a_tflite_file_has_its_place(tmp_path: Path, behind: bool) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy(behind=behind))
    found = told(path)
    length = 0 if behind else 4  # of a vector, before its data
    assert found.parts["weights"] == 64 + length
    assert found.parts["biases"] == 32 + length
    assert found.parts["unused buffers"] == 100 + length
    assert found.parts["min/max statistics"] >= 2 * 8
    # The weights and bias of the second layer, and scales that already exist.
    assert found.parts["duplicates"] >= 64 + 32
    assert found.parts["metadata"] >= len(NOTES)
    assert found.parameters == 2 * (8 * 8 + 8)
    assert [(layer.kind, layer.macs, layer.parameters) for layer in found.layers] == [
        ("FULLY_CONNECTED", 64, 72)
    ] * 2
    assert found.layers[0].types == ("int8", "int8", "int32", "int8")
    assert found.macs == 128


@pytest.mark.parametrize(
    ("name", "macs", "weights", "duplicates"),
    [
        ("kws", 2_656_768, 22_056, 9_588),
        ("resnet8", 12_501_632, 77_400, 5_348),
        ("vww", 7_489_664, 208_224, 41_752),
    ],
)
def test_published_files(real_data: Path, name: str, macs: int, weights: int, duplicates: int) -> None:
    found = told(real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite")
    assert found.macs == macs
    assert found.parts["weights"] == weights
    assert found.parts["duplicates"] == duplicates
    assert sum(layer.parameters for layer in found.layers) == found.parameters


def onnx_file(path: Path, batch: int | str = 1) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    kernel = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    dense = random.standard_normal((10, 4 * 36)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], name="conv"),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "dense"], ["y"], name="gemm", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.zeros(4, np.float32), "bias"),
            numpy_helper.from_array(dense, "dense"),
        ],
    )
    onnx.save(helper.make_model(graph), str(path))
    return path


@needs("onnx")
@pytest.mark.parametrize("batch", [1, "n"])
def test_an_onnx_file(tmp_path: Path, batch: Any) -> None:
    found = told(onnx_file(tmp_path / "m.onnx", batch))
    weights = 4 * (4 * 3 * 9 + 10 * 144)
    # Each tensor's data has a tag and a length.
    assert weights <= found.parts["weights float32"] <= weights + 8
    assert 16 <= found.parts["biases float32"] <= 20
    assert found.parameters == 108 + 4 + 1440
    assert [layer.macs for layer in found.layers] == [4 * 36 * 27, 0, 1440]
    assert found.layers[0].types == ("float32",) * 4
    assert found.layers[0].shape == (1, 4, 6, 6)


@needs("safetensors")
def test_a_safetensors_file() -> None:
    found = told(RECIPES / "digits" / "digits.safetensors")
    assert found.parts["weights F32"] == 52_904
    assert found.parts["weights I64"] == 48
    assert found.parameters == 52_904 // 4 + 48 // 8


def test_archives_tell_their_members(tmp_path: Path) -> None:
    found = told(RECIPES / "digits" / "digits.keras")
    assert set(found.parts) == {
        "config.json", "metadata.json", "model.weights.h5", "archive directory and padding"
    }  # fmt: skip
    path = tmp_path / "m.ptl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, size in (("bytecode.pkl", 50), ("data.pkl", 20), ("constants/0", 4000), ("code/m.py", 300)):
            archive.writestr(f"m/{name}", bytes(size))
    found = told(path)
    assert found.format == "torchscript"
    assert (found.parts["tensors"], found.parts["code"], found.parts["data.pkl"]) == (4000, 350, 20)


def test_an_executorch_file_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "m.pte"
    header = struct.pack("<I4s4sIQQQ", 60, b"ET12", b"eh00", 32, 512, 1024, 2000)
    path.write_bytes(header.ljust(3024, b"\0"))
    assert told(path).parts == {
        "program": 512,
        "segments (weights and delegates' data)": 2000,
        "padding": 512,
    }
    path.write_bytes(header.ljust(800, b"\0"))
    with pytest.raises(UsageError, match="more bytes than the file has"):
        size_breakdown(path)


@needs("h5py")
def test_an_hdf5_file(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}" * 50
        file["model_weights/dense/kernel"] = np.zeros((30, 40), np.float32)
        file["optimizer_weights/dense/kernel"] = np.zeros((30, 40), np.float32)
    found = told(path)
    assert found.parts["weights float32"] == found.parts["optimizer state float32"] == 4800
    assert found.parts["model_config"] == 100
    assert found.parameters == 1200


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(bytes(10))
    (tmp_path / "variables" / "data").write_bytes(bytes(30))
    assert told(tmp_path).parts == {"saved_model.pb": 10, "variables/data": 30}


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        size_breakdown(tmp_path / "missing.tflite")
    empty = tmp_path / "empty.tflite"
    empty.touch()
    with pytest.raises(UsageError, match="is empty"):
        size_breakdown(empty)
    empty.write_text("some text")
    with pytest.raises(UsageError, match="it is of an unknown format"):
        size_breakdown(empty)
    empty.write_bytes(b"\x10\0\0\0TFL3" + bytes(3))
    with pytest.raises(StageError, match="is damaged"):
        size_breakdown(empty)
    empty.write_bytes(b"PK\3\4" + bytes(50))
    with pytest.raises(UsageError, match="is damaged"):
        size_breakdown(empty)


@needs("ai_edge_litert")
def test_the_command_shows_a_table_or_json(tmp_path: Path) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy())
    run = CliRunner().invoke(app, ["inspect", str(path)])
    assert run.exit_code == 0, run.output
    assert "FULLY_CONNECTED" in run.output
    assert "144 parameters, 128 MACs" in run.output
    value = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert sum(value["parts"].values()) == value["size_bytes"] == len(toy())
    assert value["layers"][0]["macs"] == 64
