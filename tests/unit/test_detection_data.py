"""Datasets of boxes and masks."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets.coco import Coco
from edgeopt.evaluation.datasets.mask_folder import MaskFolder
from edgeopt.evaluation.datasets.yolo import Yolo

Image = pytest.importorskip("PIL.Image")


def picture(path: Path, width: int = 40, height: int = 20, value: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, 2, 3)).save(path)
    return path


def labels(dataset) -> list[list[list[float]]]:
    return [sample.label.tolist() for sample in dataset.samples()]


# coco


@pytest.fixture
def content(tmp_path) -> dict:
    for name in ("b/one.png", "two.png", "three.png"):
        picture(tmp_path / name, value=len(name))
    return {
        "images": [
            {"id": 30, "file_name": "b/one.png", "height": 20, "width": 40},
            {"id": 4, "file_name": "two.png"},
            {"id": 7, "file_name": "three.png", "license": 1},
        ],
        "annotations": [
            {"id": 2, "image_id": 30, "category_id": 90, "bbox": [1, 2, 10, 5.5], "iscrowd": 0},
            {"id": 1, "image_id": 30, "category_id": 5, "bbox": [0, 0, 40, 20], "iscrowd": 1, "area": 3},
            {"id": 3, "image_id": 4, "category_id": 90, "bbox": [-0.5, 0, 41, 20.5]},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 5, "name": "cat", "supercategory": "animal"}],
    }


def coco(folder: Path, content: object, **options) -> Coco:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "a.json").write_text(text)
    return Coco(annotations=folder / "a.json", **options)


def test_coco(tmp_path, content):
    data = coco(tmp_path, content)
    samples = list(data.samples())
    assert data.classes() == ["cat", "dog"]
    # By image id: 4, 7, 30.
    assert [sample.inputs[0][0, 0, 0] for sample in samples] == [7, 9, 9]
    assert all(sample.inputs[0].shape == (20, 40, 3) for sample in samples)
    assert all(sample.label.dtype == np.float32 for sample in samples)
    assert samples[1].label.shape == (0, 6)
    assert labels(data) == [
        [[-0.5, 0, 40.5, 20.5, 1, 0]],
        [],
        [[1, 2, 11, 7.5, 1, 0], [0, 0, 40, 20, 0, 1]],
    ]
    assert labels(data.model_copy(update={"limit": 1})) == labels(data)[:1]


def test_coco_boxes_follow_the_size(tmp_path, content):
    data = coco(tmp_path, content, size=(10, 60), color="gray")
    assert [sample.inputs[0].shape for sample in data.samples()] == [(10, 60, 1)] * 3
    assert labels(data)[2] == [[1.5, 1, 16.5, 3.75, 1, 0], [0, 0, 60, 10, 0, 1]]


def test_coco_images_elsewhere(tmp_path, content):
    (tmp_path / "json").mkdir()
    data = coco(tmp_path / "json", content, images=tmp_path)
    assert len(list(data.samples())) == 3
    with pytest.raises(UsageError, match=r"image 4: no such file: .*two\.png") as error:
        list(coco(tmp_path / "json", content).samples())
    assert "set 'images'" in error.value.fix


def test_coco_digest(tmp_path, content):
    data = coco(tmp_path, content)
    before = data.digest()
    assert before == coco(tmp_path, content).digest()
    assert before != data.model_copy(update={"size": (4, 4)}).digest()
    assert before != data.model_copy(update={"limit": 1}).digest()
    content["annotations"][0]["category_id"] = 5
    changed = coco(tmp_path, content).digest()
    assert before != changed
    picture(tmp_path / "three.png", value=77)
    assert coco(tmp_path, content).digest() != changed


WRONG = [
    ("images", 0, "id", None, "entry 0 of 'images': it has no 'id'"),
    ("images", 0, "id", "4", "entry 0 of 'images': 'id' is \"4\", not an integer"),
    ("images", 0, "id", 4, "image 4: the id occurs twice"),
    ("images", 0, "file_name", None, "image 30: it has no 'file_name'"),
    ("images", 0, "file_name", 3, "image 30: 'file_name' is 3, not a text"),
    ("images", 0, "width", None, "image 30: it has no 'width'"),
    (
        "images",
        0,
        "width",
        41,
        "image 30: .*one.png is 40 × 20, but the annotations are of an image of 41 × 20",
    ),
    ("images", 0, "file_name", "/etc/passwd", "image 30: the file '/etc/passwd' is outside the folder"),
    ("images", 0, "file_name", "b/../two.png", r"image 30: the file 'b/\.\./two.png' is outside the folder"),
    ("images", 0, "file_name", "../x.png", "is outside the folder of the images"),
    ("images", 0, "file_name", "a\0b", "image 30: the file name .* is not a path"),
    ("images", 0, "file_name", "x" * 300, "image 30: "),
    ("images", 0, "file_name", "b", "image 30: no such file"),
    ("images", 0, "file_name", "a.json", "image 30: cannot read the image .*a.json"),
    ("annotations", 0, "id", True, "entry 0 of 'annotations': 'id' is true, not an integer"),
    ("annotations", 0, "id", 3, "annotation 3: the id occurs twice"),
    ("annotations", 0, "image_id", 31, "annotation 2: no image has the id 31"),
    ("annotations", 0, "image_id", None, "annotation 2: it has no 'image_id'"),
    ("annotations", 0, "category_id", 6, "annotation 2: no category has the id 6"),
    ("annotations", 0, "bbox", None, "annotation 2: it has no 'bbox'"),
    (
        "annotations",
        0,
        "bbox",
        [1, 2, 3],
        r"annotation 2: 'bbox' is \[1, 2, 3\], not \[x, y, width, height\]",
    ),
    ("annotations", 0, "bbox", [1, 2, 3, "4"], "annotation 2: 'bbox' contains \"4\", not a number"),
    (
        "annotations",
        0,
        "bbox",
        [1, 2, 3, 10**400],
        "annotation 2: 'bbox' contains a number that is not finite",
    ),
    ("annotations", 0, "bbox", [1, 2, 3, float("nan")], "it contains NaN, which JSON does not allow"),
    (
        "annotations",
        0,
        "bbox",
        [1, 2, 0, 4],
        "annotation 2: the box is empty: its width is 0 and its height 4",
    ),
    ("annotations", 0, "bbox", [1, 2, 3, -4], "annotation 2: the box is empty"),
    ("annotations", 0, "bbox", [1, 2, 41, 4], "annotation 2: the box extends outside the image of 40 × 20"),
    ("annotations", 0, "bbox", [-2, 2, 4, 4], "annotation 2: the box extends outside"),
    ("annotations", 0, "bbox", [1e308, 2, 1e308, 4], "annotation 2: the box extends outside"),
    ("annotations", 0, "bbox", [1e30, 2, 1, 4], "annotation 2: the box is empty"),
    ("annotations", 0, "iscrowd", 2, "annotation 2: 'iscrowd' is 2, not 0 or 1"),
    ("categories", 0, "name", None, "category 90: it has no 'name'"),
    ("categories", 0, "id", 5, "category 5: the id occurs twice"),
]


@pytest.mark.parametrize(("part", "at", "key", "value", "message"), WRONG)
def test_coco_entries_that_are_wrong(tmp_path, content, part, at, key, value, message):
    content[part][at][key] = value
    if value is None:
        del content[part][at][key]
    with pytest.raises(UsageError, match=message) as error:
        list(coco(tmp_path, content).samples())
    assert str(tmp_path / "a.json") in error.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "not annotations in COCO's format"),
        ("[]", "it is not an object with 'images'"),
        ("{}", "it has no 'categories'"),
        ('{"categories": 1}', "'categories' is not a list"),
        ('{"categories": []}', "'categories' is empty"),
        ('{"categories": [3]}', "entry 0 of 'categories': it is not an object"),
        ("[" * 100_000, "not annotations in COCO's format"),
        ('{"categories": [{"id": 1' + "0" * 5000 + "}]}", "not annotations in COCO's format"),
        ("\udcff", "not annotations in COCO's format"),
    ],
)
def test_coco_files_that_are_wrong(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (Coco(annotations=file).classes, lambda: list(Coco(annotations=file).samples())):
        with pytest.raises(UsageError, match=message) as error:
            read()
        assert str(file) in error.value.message
        assert error.value.fix


def test_coco_annotations_that_are_a_folder(tmp_path):
    with pytest.raises(UsageError, match="not annotations in COCO's format"):
        Coco(annotations=tmp_path).classes()
    with pytest.raises(ValidationError, match="no such file"):
        Coco(annotations=tmp_path / "none.json")


def test_coco_links_do_not_leave_the_folder(tmp_path, content):
    inside, outside = tmp_path / "in", picture(tmp_path / "secret.png")
    inside.mkdir()
    content["images"] = [{"id": 1, "file_name": "link.png"}]
    content["annotations"] = []
    data = coco(inside, content)
    os.symlink(outside, inside / "link.png")
    for read in (data.digest, lambda: list(data.samples())):
        with pytest.raises(UsageError, match=r"image 1: the file 'link\.png' is outside the folder"):
            read()
    (inside / "link.png").unlink()
    os.symlink("link.png", inside / "link.png")  # a loop
    with pytest.raises(UsageError, match=r"image 1: "):
        data.digest()
    (inside / "link.png").unlink()
    picture(inside / "real.png")
    os.symlink("real.png", inside / "link.png")
    assert len(list(data.samples())) == 1


# yolo


def yolo(folder: Path, lines: str = "0 0.5 0.5 0.5 0.5", **options) -> Yolo:
    picture(folder / "images/train/a.png")
    picture(folder / "images/train/b.png")
    (folder / "labels/train").mkdir(parents=True, exist_ok=True)
    (folder / "labels/train/b.txt").write_text(lines)
    return Yolo(images=folder / "images/train", **options)


def test_yolo(tmp_path):
    data = yolo(tmp_path, "3 0.5 0.5 0.5 0.5\n\n  0 0.25 0.5 0.5 1.0  \n")
    samples = list(data.samples())
    assert [sample.inputs[0].shape for sample in samples] == [(20, 40, 3)] * 2
    assert samples[0].label.shape == (0, 6)
    assert samples[1].label.dtype == np.float32
    assert labels(data)[1] == [[10, 5, 30, 15, 3, 0], [0, 0, 20, 20, 0, 0]]
    small = data.model_copy(update={"size": (10, 80), "color": "gray"})
    assert [sample.inputs[0].shape for sample in small.samples()] == [(10, 80, 1)] * 2
    assert labels(small)[1] == [[20, 2.5, 60, 7.5, 3, 0], [0, 0, 40, 10, 0, 0]]
    assert labels(data.model_copy(update={"limit": 1})) == [[]]


def test_yolo_finds_the_text_files(tmp_path):
    # The last of several folders called 'images'; then the folder of the images; then the option.
    data = yolo(tmp_path / "images")
    assert len(labels(data)[1]) == 1
    picture(tmp_path / "flat/a.png")
    (tmp_path / "flat/a.txt").write_text("0 0.5 0.5 1 1")
    assert labels(Yolo(images=tmp_path / "flat")) == [[[0, 0, 40, 20, 0, 0]]]
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"no image has a text file in .*other, such as a\.txt") as error:
        list(Yolo(images=tmp_path / "flat", labels=tmp_path / "other").samples())
    assert "set 'labels'" in error.value.fix


def test_yolo_digest(tmp_path):
    data = yolo(tmp_path)
    before = data.digest()
    assert yolo(tmp_path / "elsewhere").digest() == before
    assert yolo(tmp_path, "1 0.5 0.5 0.5 0.5").digest() != before
    yolo(tmp_path)
    picture(tmp_path / "images/train/a.png", value=99)
    assert data.digest() != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "4 values instead of 5"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 values instead of 5"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", r"7 values \(a polygon\?\) instead of 5"),
        ("-1 0.5 0.5 0.5 0.5", "the class '-1' is not an integer"),
        ("1.0 0.5 0.5 0.5 0.5", "the class '1.0' is not an integer"),
        ("9999999 0.5 0.5 0.5 0.5", "the class '9999999' is not an integer"),
        ("0 x 0.5 0.5 0.5", "could not convert string to float: 'x'"),
        ("0 nan 0.5 0.5 0.5", "a coordinate is not finite"),
        ("0 20 10 20 10", "coordinates in pixels"),
        ("0 0.5 0.5 0 0.5", "the box is empty"),
        ("0 0.5 0.5 0.5 -0.5", "the box is empty"),
        ("0 0.5 0.5 1.2 0.5", "the box extends outside the image of 40 × 20"),
    ],
)
def test_yolo_lines_that_are_wrong(tmp_path, line, message):
    with pytest.raises(UsageError, match=rf"labels/train/b\.txt:2: .*{message}") as error:
        list(yolo(tmp_path, f"0 0.5 0.5 0.5 0.5\n{line}\n").samples())
    assert error.value.fix


def test_yolo_files_that_are_wrong(tmp_path):
    data = yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"b\.txt: not a text file in UTF-8"):
        list(data.samples())
    picture(tmp_path / "images/train/a.bmp")
    with pytest.raises(UsageError, match=r"a\.bmp and a\.png differ in their suffix only"):
        list(data.samples())
    (tmp_path / "images/train/a.bmp").write_bytes(b"damaged")
    (tmp_path / "images/train/a.png").unlink()
    with pytest.raises(UsageError, match=r"cannot read the image .*a\.bmp"):
        list(data.samples())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: no images"):
        list(Yolo(images=tmp_path / "empty").samples())
    with pytest.raises(UsageError, match="is not a folder"):
        list(Yolo(images=tmp_path / "labels/train/b.txt").samples())


# mask_folder

VALUES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])


def masks(folder: Path, mask: Image.Image, **options) -> MaskFolder:
    picture(folder / "images/a.jpg", 4, 2)
    (folder / "masks").mkdir(exist_ok=True)
    mask.save(folder / "masks/a.png")
    return MaskFolder(images=folder / "images", masks=folder / "masks", **options)


def only(data: MaskFolder) -> np.ndarray:
    (sample,) = data.samples()
    assert sample.label.dtype == np.int64
    assert sample.inputs[0].shape[:2] == sample.label.shape
    return sample.label


def grey_png(path: Path, values: np.ndarray, depth: int) -> None:
    """A PNG file of grey levels of 1, 2 or 4 bits, which Pillow does not write."""
    bits = [[int(bit) for value in row for bit in f"{value:0{depth}b}"] for row in values]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_masks_are_class_indices(tmp_path):
    grey = Image.fromarray(VALUES.astype(np.uint8))
    assert np.array_equal(only(masks(tmp_path, grey)), VALUES)
    palette = Image.fromarray(VALUES.astype(np.uint8))
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    assert palette.mode == "P"
    assert np.array_equal(only(masks(tmp_path, palette)), VALUES)
    wide = Image.fromarray((VALUES * 1000).astype(np.uint16))
    assert np.array_equal(only(masks(tmp_path, wide)), VALUES * 1000)
    binary = Image.fromarray(VALUES > 1)
    assert binary.mode == "1"
    assert np.array_equal(only(masks(tmp_path, binary)), VALUES > 1)
    ignored = Image.fromarray(np.where(VALUES == 3, 255, VALUES).astype(np.uint8))
    assert only(masks(tmp_path, ignored)).max() == 255


@pytest.mark.parametrize(("depth", "values"), [(1, VALUES % 2), (2, VALUES), (4, VALUES * 5)])
def test_masks_of_few_bits(tmp_path, depth, values):
    data = masks(tmp_path, Image.fromarray(VALUES.astype(np.uint8)))
    grey_png(tmp_path / "masks/a.png", values, depth)
    assert np.array_equal(only(data), values)


def test_masks_are_resized_to_the_nearest_pixel(tmp_path):
    data = masks(tmp_path, Image.fromarray((VALUES * 60).astype(np.uint8)), size=(4, 8))
    assert np.array_equal(only(data), (VALUES * 60).repeat(2, axis=0).repeat(2, axis=1))
    small = data.model_copy(update={"size": (1, 2)})
    assert only(small).tolist() == [[120, 0]]
    odd = data.model_copy(update={"size": (3, 5)})
    pillow = Image.fromarray((VALUES * 60).astype(np.uint8)).resize((5, 3), Image.Resampling.NEAREST)
    assert np.array_equal(only(odd), np.asarray(pillow))


def test_mask_folder_digest(tmp_path):
    data = masks(tmp_path, Image.fromarray(VALUES.astype(np.uint8)))
    before = data.digest()
    assert data.model_copy(update={"color": "gray"}).digest() != before
    assert masks(tmp_path, Image.fromarray((VALUES + 1).astype(np.uint8))).digest() != before


def test_masks_that_do_not_fit(tmp_path):
    data = masks(tmp_path, Image.fromarray(VALUES.T.astype(np.uint8)))
    with pytest.raises(UsageError, match=r"masks/a\.png is 2 × 4, but its image a\.jpg is 4 × 2"):
        list(data.samples())
    for mode in ("RGB", "RGBA", "LA"):
        with pytest.raises(UsageError, match=rf"a\.png: a mask of mode {mode} has colours") as error:
            list(masks(tmp_path, Image.new(mode, (4, 2))).samples())
        assert "one value per pixel" in error.value.fix
    Image.new("L", (4, 2)).save(tmp_path / "masks/a.png", "BMP")
    with pytest.raises(UsageError, match=r"cannot read the mask .*a\.png"):
        list(data.samples())
    Image.fromarray(VALUES.astype(np.uint8)).save(tmp_path / "masks/a.png")
    content = (tmp_path / "masks/a.png").read_bytes()
    (tmp_path / "masks/a.png").write_bytes(content[:45])
    with pytest.raises(UsageError, match=r"cannot read the mask .*a\.png"):
        list(data.samples())
    (tmp_path / "masks/a.png").unlink()
    for read in (data.digest, lambda: list(data.samples())):
        with pytest.raises(UsageError, match=r"a\.jpg has no mask: no such file: .*masks/a\.png"):
            read()
