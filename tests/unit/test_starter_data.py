"""Files and folders of samples are recognised; what outputs and labels mean is found by their shapes."""

import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.config import registry
from edgeopt.errors import UsageError
from edgeopt.model import Outputs, TensorSpec
from edgeopt.plugin import Dataset, Labels
from edgeopt.recipe.starter.data import Parts, parts_of
from edgeopt.recipe.starter.factories import candidates as factories
from edgeopt.recipe.starter.meaning import with_labels
from edgeopt.recipe.starter.preprocessing import candidates, chance, is_raw, ranked, statistics_of
from edgeopt.recipe.starter.shapes import proposed_shape

IMAGE = (TensorSpec(name="image", shape=(None, 8, 6, 3), layout="NHWC"),)
VECTOR = (TensorSpec(name="x", shape=(None, 4)),)
SOUND = (TensorSpec(name="sound", shape=(1, 8000)),)


def image(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def images(folder: Path, *classes: str) -> Path:
    for name in classes:
        for index in range(2):
            image(folder / name / f"{index}.png")
    return folder


def arrays(path: Path, **content: Any) -> Path:
    np.savez(path, **content)
    return path


def works(parts: Parts) -> list[Dataset]:
    """The datasets, as a recipe makes them."""
    found = []
    for use in (parts.calibration, parts.evaluation):
        kind = registry.find(Dataset, use["uses"])
        found.append(kind.model_validate(use["with"]))
        list(found[-1].samples())
    return found


def test_one_file_is_split(tmp_path: Path) -> None:
    data = arrays(tmp_path / "d.npz", x=np.random.default_rng(0).random((5000, 4)), y=np.zeros(5000, int))
    parts = parts_of([data], VECTOR)
    assert parts.evaluation == {
        "uses": "split",
        "with": {"of": {"uses": "npz", "with": {"path": data}}, "part": "evaluation", "share": 0.04},
    }
    assert parts.judging.shapes == ((4,),)
    calibration, evaluation = works(parts)
    assert 100 < len(list(calibration.samples())) <= 200
    assert len(list(evaluation.samples())) > 4700
    assert "d.npz, arrays (5,000 samples), is split" in parts.note


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (("val.npz", "calibration.npz"), "by their names"),
        (("x_test.npz", "other.npz"), "by their names"),
        (("train.npz", "other.npz"), "by their names"),
        (("a.npz", "b.npz"), "by their order"),
    ],
)
def test_of_two_files_one_calibrates(tmp_path: Path, names: Sequence[str], how: str) -> None:
    paths = [arrays(tmp_path / name, x=np.zeros((3, 4)) + at) for at, name in enumerate(names)]
    parts = parts_of(paths, VECTOR)
    swapped = names[0] in ("val.npz", "x_test.npz")
    assert parts.judging.path == paths[0 if swapped else 1]
    assert parts.calibration == {"uses": "npz", "with": {"path": paths[1 if swapped else 0], "label": None}}
    assert how in parts.note
    works(parts)


def test_arrays_under_other_names(tmp_path: Path) -> None:
    digits = arrays(
        tmp_path / "mnist.npz",
        x_train=np.zeros((300, 4)),
        y_train=np.zeros(300, int),
        x_test=np.ones((5, 4)),
        y_test=np.zeros(5, int),
    )
    parts = parts_of([digits], VECTOR)
    assert parts.evaluation["with"] == {"path": digits, "inputs": ["x_test"], "label": "y_test"}
    assert [len(list(data.samples())) for data in works(parts)][1] == 5
    two = (TensorSpec(name="ids", shape=(1, 3)), TensorSpec(name="mask", shape=(1, 3)))
    named = arrays(tmp_path / "n.npz", mask=np.zeros((9, 3)), ids=np.zeros((9, 3)), target=np.zeros(9, int))
    options = parts_of([named], two).judging.options
    assert options == {"path": named, "inputs": {"ids": "ids", "mask": "mask"}, "label": "target"}
    only = arrays(tmp_path / "o.npz", spectra=np.zeros((9, 4)))
    assert parts_of([only], VECTOR).judging.options["inputs"] == ["spectra"]
    for specs, content, message in (
        (two, {"ids": np.zeros((2, 3))}, "no array for the input 'mask'; the arrays are ids"),
        (VECTOR, {"a": np.zeros(3), "b": np.zeros(3)}, "which array holds the samples\\? There are a, b"),
    ):
        with pytest.raises(UsageError, match=message):
            parts_of([arrays(tmp_path / "w.npz", **content)], specs)


def test_folders_of_images(tmp_path: Path) -> None:
    parts = parts_of([images(tmp_path / "all", "cat", "dog")], IMAGE)
    assert parts.judging.options == {"path": tmp_path / "all", "size": [8, 6]}
    assert (parts.judging.classes, parts.judging.count) == (("cat", "dog"), 4)
    grey = (TensorSpec(name="image", shape=(1, 1, 9, 7), layout="NCHW"),)
    assert parts_of([tmp_path / "all"], grey).judging.options["size"] == [9, 7]
    assert parts_of([tmp_path / "all"], grey).judging.options["color"] == "gray"
    for name in ("train", "validation", "test"):
        images(tmp_path / "divided" / name, "cat", "dog")
    parts = parts_of([tmp_path / "divided"], IMAGE)
    assert parts.judging.path == tmp_path / "divided" / "validation"
    works(parts)
    images(tmp_path / "odd", "cat", "cow")
    with pytest.raises(UsageError, match="have different classes: cat, dog; cat, cow"):
        parts_of([tmp_path / "all", tmp_path / "odd"], IMAGE)
    with pytest.raises(UsageError, match="the model takes x \\[None, 4\\]"):
        parts_of([tmp_path / "all"], VECTOR)
    with pytest.raises(UsageError, match="the size of the model's input is unknown") as caught:
        parts_of([tmp_path / "all"], ())
    assert "--shape" in caught.value.fix
    image(tmp_path / "flat" / "1.png")
    with pytest.raises(UsageError, match="but images without classes"):
        parts_of([tmp_path / "flat"], IMAGE)


def test_boxes_masks_tables_and_recordings(tmp_path: Path) -> None:
    image(tmp_path / "coco" / "pictures" / "1.png")
    annotations = {
        "images": [{"id": 1, "file_name": "1.png", "width": 4, "height": 4}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 1, "name": "door"}],
    }
    (tmp_path / "coco" / "boxes.json").write_text(json.dumps(annotations))
    found = parts_of([tmp_path / "coco"], IMAGE).judging
    assert (found.uses, found.options["images"]) == ("coco", tmp_path / "coco" / "pictures")
    image(tmp_path / "seg" / "images" / "1.png")
    image(tmp_path / "seg" / "masks" / "1.png")
    assert parts_of([tmp_path / "seg"], IMAGE).judging.uses == "mask_folder"
    image(tmp_path / "yolo" / "images" / "1.png")
    (tmp_path / "yolo" / "labels").mkdir()
    assert parts_of([tmp_path / "yolo"], IMAGE).judging.uses == "yolo"
    table = tmp_path / "list.csv"
    table.write_text("filename,class\ncoco/pictures/1.png,dog\ncoco/pictures/1.png,cat\n")
    found = parts_of([table], IMAGE).judging
    expected = {
        "path": table,
        "file": "filename",
        "label": "class",
        "classes": ["cat", "dog"],
        "size": [8, 6],
    }
    assert found.options == expected and found.count == 2
    (tmp_path / "words" / "yes").mkdir(parents=True)
    with wave.open(str(tmp_path / "words" / "yes" / "1.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(200))
    found = parts_of([tmp_path / "words"], SOUND).judging
    assert found.options == {"path": tmp_path / "words", "rate": 16000, "seconds": 0.5}
    with pytest.raises(UsageError, match="has recordings, but the model takes image"):
        parts_of([tmp_path / "words"], IMAGE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["none.npz"], "no such data: .*none.npz"),
        (["a.npz", "./a.npz"], "is given twice"),
        (["a.npz", "b.npz", "c.npz"], "--data is given 3 times"),
        (["text.txt"], "no known kind of data"),
        (["bad.npz"], "not an .npz file"),
        (["bad.json"], "not an annotation file with boxes"),
        (["bad.csv"], "which column names the files\\? There are a, b"),
        (["empty"], "no images or recordings in subfolders"),
    ],
)
def test_data_that_is_none(tmp_path: Path, given: list[str], message: str) -> None:
    arrays(tmp_path / "a.npz", x=np.zeros((2, 4)))
    (tmp_path / "empty").mkdir()
    for name in ("text.txt", "bad.npz", "bad.json", "bad.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=message):
        parts_of([tmp_path / name for name in given], IMAGE)


TAGS = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1]], np.float32)


@pytest.mark.parametrize(
    ("shapes", "labels", "metric"),
    [
        ([(3,)], np.array([0, 1, 2]), "top1"),
        ([(1,)], np.array([0, 1, 1]), "top1"),
        ([(1, 1, 3)], np.array([0, 1, 2]), "top1"),
        ([(3,)], np.array([0, 1, 3]), ""),
        ([(3,)], TAGS, "f1"),
        ([(3,)], TAGS * 0.3, "mean_squared_error"),
        ([(8, 8, 3)], np.zeros((3, 8, 8), np.int64), "miou"),
        ([(3, 8, 8)], np.zeros((3, 8, 8), np.int64), "miou"),
        ([(8, 8, 3)], [np.zeros((2, 6)), np.zeros((0, 6)), np.zeros((1, 6))], ""),
        ([(3,), (4,)], np.array([0, 1, 2]), ""),
        ([(3,)], None, ""),
    ],
)
def test_the_metric_of_outputs_and_labels(
    shapes: list[tuple[int, ...]], labels: Labels | None, metric: str
) -> None:
    random = np.random.default_rng(0)
    outputs = Outputs([random.normal(size=(3, *shape)).astype(np.float32) for shape in shapes])
    meaning = with_labels(outputs, labels)
    assert meaning.metric == metric
    assert bool(meaning.reason) is not meaning.labelled
    assert meaning.is_fraction is (metric in ("top1", "f1", "miou"))


def test_the_preprocessing_that_answers_best() -> None:
    raw = np.array([0, 40, 255], np.uint8)
    steps = candidates(raw, IMAGE[0])
    assert [each.get("scale") for each in steps] == [None, "1/255", "2/255", "1/255", "1/255"]
    assert candidates(raw, TensorSpec(name="x", shape=(1, 3), dtype="uint8")) == [{}]
    assert candidates(raw / 255 - 0.5, VECTOR[0]) == [{}]
    assert candidates(np.array([0.0, 16.0]), VECTOR[0])[1] == {"scale": "1/16"}
    assert is_raw(raw) and not is_raw(raw / 255)
    gray = [np.full((2, 2, 1), value, np.uint8) for value in (0, 255)]
    assert statistics_of(gray, None) == statistics_of(gray[:1], "NHWC") == statistics_of([raw], "NHWC") == {}
    own = statistics_of(gray, "NHWC")
    assert candidates(raw, IMAGE[0], own)[-1] == {"scale": "1/255", "mean": [0.5], "std": [0.5]}
    planes = statistics_of([np.stack([np.zeros((2, 2)), np.eye(2)])] * 2, "NCHW")
    assert planes == {}  # a channel is constant
    labels = np.array([0, 1, 2, 0])
    scores = np.eye(3, dtype=np.float32)[labels]
    task = with_labels(Outputs([scores]), labels).task
    assert task is not None
    outputs, repeated = Outputs([np.concatenate([scores * 0, scores, scores * 4])]), np.tile(labels, 3)
    found = ranked([{}, {"scale": 2}, {"scale": 3}], task, outputs, repeated)
    assert found == [({"scale": 2}, 1), ({"scale": 3}, 1), ({}, 0.5)]  # of equal ones, the simplest
    balanced = chance(task, np.array([0, 1] * 32))
    assert 0.5 < balanced < 0.7 < chance(task, np.array([0] * 60 + [1] * 4))
    masks = np.array([[[0, 1], [1, 2]]] * 2)
    pixels = np.eye(3, dtype=np.float32)[masks]
    task = with_labels(Outputs([pixels]), masks).task
    assert task is not None
    found = ranked([{}, {"scale": 2}], task, Outputs([pixels * [[[[0]]], [[[1]]]]]), masks)
    assert found == [({"scale": 2}, 1), ({}, 0.25)]
    numbers = np.array([[0.5], [2.0]], np.float32)
    task = with_labels(Outputs([numbers]), numbers).task
    assert task is not None and not ranked([{}, {"scale": 2}], task, Outputs([numbers]), numbers)


def test_a_shape_is_proposed_by_the_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "a", "b")
    assert proposed_shape([folder]) == "1,3,4,4"
    assert (
        proposed_shape([folder], TensorSpec(name="x", shape=(None, None, None, 1), layout="NHWC"))
        == "1,4,4,1"
    )
    assert proposed_shape([], TensorSpec(name="x", shape=(None, None))) == "1,N"
    (folder / "a" / "2.png").write_bytes(b"no image")
    assert proposed_shape([folder]) == proposed_shape([tmp_path / "none"]) == "1,3,H,W"
    free = (TensorSpec(name="x", shape=(None, 3, None, None), layout="NCHW"),)
    with pytest.raises(UsageError) as caught:
        parts_of([images(tmp_path / "e", "a")], free)
    assert caught.value.fix == "add the shape of the input: --shape 1,3,4,4"
    with pytest.raises(UsageError) as caught:
        parts_of([tmp_path / "e"], [TensorSpec(name="x", shape=(3, 4, 4))])
    assert caught.value.fix.startswith("a shape has batch and channels, too: --shape 1,3,4,4; or ")


def test_networks_in_the_code_beside_a_checkpoint(tmp_path: Path) -> None:
    package = tmp_path / "src" / "doors"
    package.mkdir(parents=True)
    (package / "nets.py").write_text(
        "import torch\nfrom torch import nn\nraise SystemExit('never run')\n"
        "class Block(nn.Module):\n    def __init__(self, width): ...\n"
        "class Net(torch.nn.Module):\n    def __init__(self, classes=2): ...\n"
        "class Data: ...\n"
    )
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "make.py").write_text("def build_small(): ...\ndef helper(): ...\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_nets.py").write_text("def build(): ...\n")
    found = [each.name.removeprefix(f"{tmp_path}/") for each in factories(tmp_path)]
    assert found == ["make.py:build_small", "src/doors/nets.py:Net", "src/doors/nets.py:Block"]
