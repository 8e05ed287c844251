"""A starter recipe is valid YAML, describes the model file, and marks the values to fill in."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeopt.errors import UsageError
from edgeopt.recipe.starter import starter_recipe


def _keras(path: Path, shape: list[int | None] | None) -> Path:
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}}
    head = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"name": "image", "batch_shape": shape},
    }
    layers = [head, dense] if shape else [dense]
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": layers}}
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("model.weights.h5", "x")
    return path


def _recipe(text: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(text)
    assert recipe["version"] == 1
    assert recipe["optimize"] == {"float": {}, "int8": {"quantize": "int8"}}
    assert recipe["gates"] == [{"metric": "top1", "max_drop": 0.01}]
    assert set(recipe["data"]) == {"calibration", "evaluation"}
    assert "CHANGE" in text
    return recipe


def test_a_file_that_tells_its_input(tmp_path: Path) -> None:
    text = starter_recipe(_keras(tmp_path / "models" / "My Net.keras", [None, 32, 32, 3]), folder=tmp_path)
    recipe = _recipe(text)
    assert recipe["name"] == "my-net"
    assert recipe["model"] == {"path": "models/My Net.keras"}
    assert recipe["formats"] == ["tflite", "onnx", "torchscript", "executorch"]
    assert "image [null, 32, 32, 3] float32 NHWC" in text
    # The commented-out preprocessing is valid once uncommented.
    line = next(line for line in text.splitlines() if "# preprocess:" in line)
    assert yaml.safe_load(line.replace("# ", ""))["preprocess"]["scale"] == "1/255"
    line = next(line for line in text.splitlines() if "# labels:" in line)
    assert yaml.safe_load(line.replace("# ", "")) == {"labels": ["CHANGE", "..."]}
    line = next(line for line in text.splitlines() if "# int8:" in line)
    given = {"int8": {"quantize": {"scheme": "int8", "io": "int8"}}}
    assert yaml.safe_load(line.replace("# ", "")) == given


def test_a_file_that_leaves_sizes_free_or_untold(tmp_path: Path) -> None:
    free = _recipe(starter_recipe(_keras(tmp_path / "free.keras", [None, None, None, 3])))
    assert free["model"]["inputs"] == [
        {"name": "image", "shape": [1, 224, 224, 3], "dtype": "float32", "layout": "NHWC"}
    ]
    untold = _recipe(starter_recipe(_keras(tmp_path / "untold.keras", None)))
    assert untold["model"]["inputs"][0]["shape"] == [1, 3, 224, 224]


def test_several_outputs_have_no_single_metric(tmp_path: Path) -> None:
    heads: list[tuple[Any, bool]] = [
        (["head", 0, 0], True),
        ([["head", 0, 0]], True),
        ([["boxes", 0, 0], ["scores", 0, 0], ["classes", 0, 0]], False),
        ({"boxes": ["boxes", 0, 0], "scores": ["scores", 0, 0]}, False),
    ]
    for index, (outputs, classifies) in enumerate(heads):
        path = _keras(tmp_path / f"{index}.keras", [None, 4])
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        config["class_name"] = "Functional"
        config["config"]["output_layers"] = outputs
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
            archive.writestr("model.weights.h5", "x")
        recipe = yaml.safe_load(starter_recipe(path))
        assert recipe.get("metric") == ("top1" if classifies else None)
        assert [gate["metric"] for gate in recipe["gates"]] == ["top1" if classifies else "fidelity_snr_db"]
        given = {"path": "evaluation.npz"} | ({} if classifies else {"label": None})
        assert recipe["data"]["evaluation"]["with"] == given


def test_a_checkpoint_asks_for_its_factory(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "best: #1.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    text = starter_recipe(path, folder=tmp_path)
    model = _recipe(text)["model"]
    assert model["weights"] == path.name
    assert model["factory"] == "my_network:build"
    assert model["inputs"][0]["layout"] == "NCHW"
    assert "CHANGE: the function that builds it" in text


def test_a_file_elsewhere_is_named_in_full(tmp_path: Path) -> None:
    path = _keras(tmp_path / "a" / "m.keras", [None, 4])
    (tmp_path / "b").mkdir()
    assert _recipe(starter_recipe(path, folder=tmp_path / "b"))["model"]["path"] == str(path)


def test_trust_is_written_down(tmp_path: Path) -> None:
    path = _keras(tmp_path / "m.keras", [None, 4])
    assert _recipe(starter_recipe(path, trust=True))["model"]["trust"] is True
    assert "trust" not in _recipe(starter_recipe(path))["model"]


def test_nothing_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(struct.pack("<I", 28) + b"TFL3" + bytes(56))
    with pytest.raises(UsageError, match="already tflite") as caught:
        starter_recipe(path)
    assert "edgeopt profile" in caught.value.fix
