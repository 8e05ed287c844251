"""The byte ledger: that it adds up, and what it says about files whose content is known."""

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
from edgeopt.errors import StageError, UsageError
from edgeopt.formats.arithmetic import Ledger
from edgeopt.formats.inspection import inspect
from toy_tflite import NOTES, toy

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def told(path: Path) -> Ledger:
    ledger = inspect(path)
    size = sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file())
    assert ledger.size_bytes == size
    assert sum(ledger.parts.values()) == ledger.size_bytes
    assert min(ledger.parts.values()) > 0
    return ledger


@needs("ai_edge_litert")
@pytest.mark.parametrize("behind", [False, True])
def test_every_byte_of_a_tflite_file_has_its_place(tmp_path: Path, behind: bool) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy(behind=behind))
    ledger = told(path)
    length = 0 if behind else 4  # of a vector, before its data
    assert ledger.parts["weights"] == 64 + length
    assert ledger.parts["biases"] == 32 + length
    assert ledger.parts["unused buffers"] == 100 + length
    assert ledger.parts["min/max statistics"] >= 2 * 8
    # The second layer's weights and bias, and scales that were there before.
    assert ledger.parts["duplicates"] >= 64 + 32
    assert ledger.parts["metadata"] >= len(NOTES)
    assert ledger.parameters == 2 * (8 * 8 + 8)
    assert [(layer.kind, layer.macs, layer.parameters) for layer in ledger.layers] == [
        ("FULLY_CONNECTED", 64, 72)
    ] * 2
    assert ledger.layers[0].types == ("int8", "int8", "int32", "int8")
    assert ledger.macs == 128


@pytest.mark.parametrize(
    ("name", "macs", "weights", "duplicates"),
    [
        ("kws", 2_656_768, 22_056, 9_588),
        ("resnet8", 12_501_632, 77_400, 5_348),
        ("vww", 7_489_664, 208_224, 41_752),
    ],
)
def test_published_files(real_data: Path, name: str, macs: int, weights: int, duplicates: int) -> None:
    ledger = told(real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite")
    assert ledger.macs == macs
    assert ledger.parts["weights"] == weights
    assert ledger.parts["duplicates"] == duplicates
    assert sum(layer.parameters for layer in ledger.layers) == ledger.parameters


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
    ledger = told(onnx_file(tmp_path / "m.onnx", batch))
    weights = 4 * (4 * 3 * 9 + 10 * 144)
    # Each tensor's data has a tag and a length.
    assert weights <= ledger.parts["weights float32"] <= weights + 8
    assert 16 <= ledger.parts["biases float32"] <= 20
    assert ledger.parameters == 108 + 4 + 1440
    assert [layer.macs for layer in ledger.layers] == [4 * 36 * 27, 0, 1440]
    assert ledger.layers[0].types == ("float32",) * 4
    assert ledger.layers[0].shape == (1, 4, 6, 6)


@needs("safetensors")
def test_a_safetensors_file() -> None:
    ledger = told(RECIPES / "digits" / "digits.safetensors")
    assert ledger.parts["weights F32"] == 52_904
    assert ledger.parts["weights I64"] == 48
    assert ledger.parameters == 52_904 // 4 + 48 // 8


def test_archives_tell_their_members(tmp_path: Path) -> None:
    ledger = told(RECIPES / "digits" / "digits.keras")
    assert set(ledger.parts) == {
        "config.json", "metadata.json", "model.weights.h5", "archive directory and padding"
    }  # fmt: skip
    path = tmp_path / "m.ptl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, size in (("bytecode.pkl", 50), ("data.pkl", 20), ("constants/0", 4000), ("code/m.py", 300)):
            archive.writestr(f"m/{name}", bytes(size))
    ledger = told(path)
    assert ledger.format == "torchscript"
    assert (ledger.parts["tensors"], ledger.parts["code"], ledger.parts["data.pkl"]) == (4000, 350, 20)


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
    with pytest.raises(UsageError, match="more bytes than there are"):
        inspect(path)


@needs("h5py")
def test_an_hdf5_file(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}" * 50
        file["model_weights/dense/kernel"] = np.zeros((30, 40), np.float32)
        file["optimizer_weights/dense/kernel"] = np.zeros((30, 40), np.float32)
    ledger = told(path)
    assert ledger.parts["weights float32"] == ledger.parts["optimizer state float32"] == 4800
    assert ledger.parts["model_config"] == 100
    assert ledger.parameters == 1200


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(bytes(10))
    (tmp_path / "variables" / "data").write_bytes(bytes(30))
    assert told(tmp_path).parts == {"saved_model.pb": 10, "variables/data": 30}


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        inspect(tmp_path / "missing.tflite")
    empty = tmp_path / "empty.tflite"
    empty.touch()
    with pytest.raises(UsageError, match="is empty"):
        inspect(empty)
    empty.write_text("some text")
    with pytest.raises(UsageError, match="nothing that is known here"):
        inspect(empty)
    empty.write_bytes(b"\x10\0\0\0TFL3" + bytes(3))
    with pytest.raises(StageError, match="is damaged"):
        inspect(empty)
    empty.write_bytes(b"PK\3\4" + bytes(50))
    with pytest.raises(UsageError, match="is damaged"):
        inspect(empty)


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
