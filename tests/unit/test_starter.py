"""A starter recipe is valid YAML, describes the model file, and marks the values to fill in."""

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgeopt.commands.init import starter
from edgeopt.commands.start import Given, Place, start
from edgeopt.errors import UsageError
from edgeopt.model import TensorSpec
from edgeopt.recipe.starter.draft import Draft, flow, recipe_text
from edgeopt.recipe.starter.meaning import without_labels
from edgeopt.run.store import Store

Outputs = tuple[TensorSpec, ...]
CLASSES: Outputs = (TensorSpec(name="probabilities", shape=(None, 10)),)
FIDELITY = [{"metric": "fidelity_snr_db", "min": 20}]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The starter recipe of a file, of whose outputs a trial run has shown these."""

    def text(path: Path, outputs: Outputs = (), *, folder: Path = tmp_path, **given: Any) -> str:
        def tried(draft: Draft, *_: object, **__: object) -> Draft:
            return replace(draft, outputs=outputs, meaning=without_labels(outputs))

        monkeypatch.setattr("edgeopt.commands.start.tried", tried)
        return starter(Given(path, **given), folder / "recipe.yaml")

    return text


Write = Callable[..., str]


def _convolution(path: Path) -> Path:
    header = json.dumps({"conv.weight": {"dtype": "F32", "shape": [4, 1, 3, 3], "data_offsets": [0, 144]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(144))
    return path


def test_the_shape_of_an_input_is_asked_for_only_if_neither_weights_nor_data_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def asked(*data: Path) -> str:
        with pytest.raises(UsageError, match="holds weights without the network") as told:
            place = Place(tmp_path / "recipe.yaml", Store(tmp_path / "store"))
            start(Given(_convolution(tmp_path / "net.safetensors"), data), place, complete=True)
        return told.value.fix.splitlines()[0]

    assert asked().endswith("--factory my_network.py:build --shape 1,1,H,W")
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 8, 8, 1)), y=np.zeros(9, int))
    assert asked(tmp_path / "d.npz").endswith("--factory my_network.py:build")
    (tmp_path / "empty").mkdir()  # an error of its own, once the network is known
    assert asked(tmp_path / "empty").endswith("--shape 1,1,H,W")


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


def _weights(path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


def _recipe(text: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(text)
    assert recipe["version"] == 1
    assert recipe["optimize"] == {"float": {}, "int8": {"quantize": "int8"}}
    assert set(recipe["data"]) == {"calibration", "evaluation"}
    assert "CHANGE" in text
    return recipe


def _uncommented(text: str, words: str) -> Any:
    line = next(line for line in text.splitlines() if words in line)
    return yaml.safe_load(line.replace("# ", "", 1))


def test_a_file_that_tells_its_input(tmp_path: Path, write: Write) -> None:
    text = write(_keras(tmp_path / "models" / "My Net.keras", [None, 32, 32, 3]), CLASSES)
    recipe = _recipe(text)
    assert recipe["name"] == "my-net"
    assert recipe["model"] == {"path": "models/My Net.keras"}
    assert recipe["formats"] == ["tflite", "onnx", "torchscript", "executorch"]
    assert (recipe["metric"], recipe["gates"]) == ("top1", [{"metric": "top1", "max_drop": 0.01}])
    assert "image [null, 32, 32, 3] float32 NHWC" in text
    # What is commented out is valid once uncommented.
    assert _uncommented(text, "# preprocess:")["preprocess"]["scale"] == "1/255"
    assert _uncommented(text, "# labels:") == {"labels": ["CHANGE", "..."]}
    assert _uncommented(text, "# int8:") == {"int8": {"quantize": {"scheme": "int8", "io": "int8"}}}


def test_every_kind_of_data_is_mentioned(tmp_path: Path, write: Write) -> None:
    text = write(_keras(tmp_path / "m.keras", [None, 4]), CLASSES)
    for kind in ("coco", "csv", "function", "image_folder", "mask_folder", "split", "wav_folder", "yolo"):
        use = yaml.safe_load(
            next(line for line in text.splitlines() if f"{{uses: {kind}," in line).lstrip(" #")
        )
        assert use["uses"] == kind and use["with"]


def test_a_file_that_leaves_sizes_free_or_untold(tmp_path: Path, write: Write) -> None:
    free = _keras(tmp_path / "free.keras", [None, None, None, 3])
    written = {"name": "image", "shape": [1, 224, 224, 3], "dtype": "float32", "layout": "NHWC"}
    text = write(free)
    assert _recipe(text)["model"]["inputs"] == [written]
    assert "inputs:   # CHANGE: artifacts have fixed sizes" in text
    text = write(free, shapes=[(1, 96, 96, 3)])
    assert _recipe(text)["model"]["inputs"] == [{**written, "shape": [1, 96, 96, 3]}]
    assert "inputs:\n" in text
    untold = _recipe(write(_keras(tmp_path / "untold.keras", None)))
    assert untold["model"]["inputs"][0]["shape"] == [1, 3, 224, 224]
    with pytest.raises(UsageError, match=r"--shape is given 2 times, and .* has 1 inputs: image"):
        write(free, shapes=[(1, 9, 9, 3), (1, 4)])


@pytest.mark.parametrize(
    "shapes", [(), ((None, 1),), ((None, 8, 8, 3),), ((None, 5), (None, 5), (None, 4))], ids=str
)
def test_outputs_that_are_not_classes_have_no_metric_of_classes(
    tmp_path: Path, write: Write, shapes: tuple[tuple[int | None, ...], ...]
) -> None:
    outputs = tuple(TensorSpec(name=f"head {at}", shape=shape) for at, shape in enumerate(shapes))
    text = write(_keras(tmp_path / "m.keras", [None, 4]), outputs)
    recipe = _recipe(text)
    assert recipe.get("metric") is None
    assert recipe["gates"] == FIDELITY
    assert recipe["data"]["evaluation"]["with"] == {"path": "evaluation.npz", "label": None}
    if outputs:
        tasks = _uncommented(text, "# tasks:")["tasks"]
        assert list(tasks) == [spec.name for spec in outputs]


def test_a_checkpoint_asks_for_its_factory(tmp_path: Path, write: Write) -> None:
    path = _weights(tmp_path / "best: #1.safetensors")
    text = write(path)
    recipe = _recipe(text)
    assert recipe["model"]["weights"] == path.name
    assert recipe["model"]["factory"] == "my_network:build"
    assert recipe["model"]["inputs"][0]["layout"] == "NCHW"
    assert "CHANGE: the function that builds it" in text
    assert recipe.get("metric") is None and recipe["gates"] == FIDELITY
    (tmp_path / "nets.py").write_text("def build():\n    ...\n")
    text = write(path, CLASSES, factory="nets:build", shapes=[(1, 3, 8, 8)])
    assert yaml.safe_load(text)["model"]["factory"] == f"{tmp_path}/nets.py:build"
    with pytest.raises(
        UsageError, match=r"--factory nets:buld: .* does not define 'buld'; did you mean 'build'"
    ):
        write(path, factory="nets:buld")
    with pytest.raises(UsageError, match=r"--factory nets:build\(3\)") as caught:
        write(path, factory="nets:build(3)")
    assert caught.value.fix.endswith("which --set model.arguments.NAME=... gives: nets:build")
    with pytest.raises(UsageError, match=r"--factory nets.build") as caught:
        write(path, factory="nets.build")
    assert caught.value.fix == "did you mean nets:build?"
    with pytest.raises(UsageError, match="--for fone: no such kind of device") as caught:
        write(path, goal="fone")
    assert caught.value.fix == "one of phone, pi, mcu"


def test_tasks_that_are_stated_are_not_to_be_filled_in(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "m.keras", ("tflite",), evaluation={"uses": "npz"})
    assert "# metric: top1" in recipe_text(draft)
    assert "CHANGE" not in recipe_text(replace(draft, stated=True, preprocess={}))


def test_a_file_elsewhere_is_named_in_full(tmp_path: Path, write: Write) -> None:
    path = _keras(tmp_path / "a" / "m.keras", [None, 4])
    (tmp_path / "b").mkdir()
    assert _recipe(write(path, folder=tmp_path / "b"))["model"]["path"] == str(path)


def test_a_hostile_name_stays_in_its_comment(tmp_path: Path, write: Write) -> None:
    text = write(_keras(tmp_path / "m\nformats: [x].keras", [None, 4]))
    assert _recipe(text)["formats"] == ["tflite", "onnx", "torchscript", "executorch"]
    assert flow(
        {"a\nb": "c: d", "path": Path("/x y"), "n": None, "on": [True, 0.5, "1/255", "1e3", "no"]}
    ) == ('{"a\\nb": "c: d", path: "/x y", "n": null, "on": [true, 0.5, 1/255, "1e3", "no"]}')


def test_trust_is_written_down(tmp_path: Path, write: Write) -> None:
    path = _keras(tmp_path / "m.keras", [None, 4])
    assert _recipe(write(path, overrides=["model.trust=true"]))["model"]["trust"] is True
    assert "trust" not in _recipe(write(path))["model"]


def test_nothing_to_convert(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(struct.pack("<I", 28) + b"TFL3" + bytes(56))
    with pytest.raises(UsageError, match="already tflite") as caught:
        write(path)
    assert "edgeopt profile" in caught.value.fix
