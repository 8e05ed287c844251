"""Labels of several kinds, recordings, and images of other than 8 bits or upright."""

import math
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets._sample_files import read_image, read_mask
from edgeopt.evaluation.datasets.csv import Csv
from edgeopt.evaluation.datasets.image_folder import ImageFolder
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.datasets.wav_folder import WavFolder
from edgeopt.evaluation.samples import checked, collect
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.plugin import digest_of
from edgeopt.testing.conformance.options import check_options

VECTOR = (TensorSpec(name="x", shape=(1, 3)),)
RANDOM = np.random.default_rng(0)


# npz


def ragged(folder: Path, **arrays: np.ndarray) -> Npz:
    np.savez(folder / "d.npz", **({"x": np.ones((3, 3), np.float32)} | arrays))
    return Npz(path=folder / "d.npz", label="boxes", offsets="starts")


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, ">i4"])
def test_npz_labels_of_different_lengths(tmp_path, dtype):
    boxes = RANDOM.random((5, 6), np.float32)
    data = ragged(tmp_path, boxes=boxes, starts=np.array([0, 3, 3, 5], dtype))
    labels = [sample.label for sample in data.samples()]
    assert [label.shape for label in labels] == [(3, 6), (0, 6), (2, 6)]
    assert np.array_equal(np.concatenate(labels), boxes)
    check_options(data)
    first = data.model_copy(update={"limit": 1})
    assert [sample.label.shape for sample in first.samples()] == [(3, 6)]
    tokens = ragged(tmp_path, boxes=np.arange(4, dtype=">i2"), starts=np.array([0, 1, 1, 4]))
    assert [sample.label.tolist() for sample in tokens.samples()] == [[0], [], [1, 2, 3]]
    assert all(sample.label.dtype.isnative for sample in tokens.samples())


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (np.array([0, 3, 5]), "'starts' has 3 entries, not 4 for 3 samples"),
        (np.array([1, 3, 3, 5]), "'starts' starts at 1, not at 0"),
        (np.array([0, 4, 3, 5]), "'starts' decreases after entry 1, from 4 to 3"),
        (np.array([0, 4, 3, 5], np.uint8), "'starts' decreases after entry 1, from 4 to 3"),
        (np.array([0, 3, 3, 6]), "'starts' ends at 6, but 'boxes' has 5 rows"),
        (np.array([0.0, 3, 3, 5]), r"'starts' has shape \[4\] and dtype float64, not integers \[n \+ 1\]"),
        (np.zeros((4, 1), int), r"'starts' has shape \[4, 1\] and dtype int64"),
        (np.array([0, 3, 3, 5], object), "'starts' contains pickled objects, which are rejected"),
    ],
)
def test_npz_offsets_that_do_not_fit(tmp_path, starts, message):
    with pytest.raises(UsageError, match=rf"d\.npz: the array {message}"):
        list(ragged(tmp_path, boxes=np.ones((5, 6)), starts=starts).samples())


def test_npz_offsets_without_labels_or_key(tmp_path):
    with pytest.raises(UsageError, match=r"d\.npz: no array 'starts'; the arrays are 'x', 'boxes'") as error:
        list(ragged(tmp_path, boxes=np.ones((5, 6))).samples())
    assert "'offsets'" in error.value.fix
    data = ragged(tmp_path, starts=np.array([0, 1, 1, 4])).model_copy(update={"label": None})
    with pytest.raises(UsageError, match=r"d\.npz: 'offsets' is 'starts', but there are no labels"):
        list(data.samples())


def test_npz_objects_are_refused_with_a_hint_at_offsets(tmp_path):
    boxes = np.array([np.ones(2), np.ones(3), np.ones(1)], object)
    with pytest.raises(UsageError, match="'boxes' contains pickled objects, which are rejected") as error:
        list(ragged(tmp_path, boxes=boxes, starts=np.array([0, 1, 1, 4])).samples())
    assert "labels of different lengths are stored with 'offsets'" in error.value.fix


def test_npz_digest_includes_offsets_only_if_set(tmp_path):
    data = ragged(tmp_path, boxes=np.ones((5, 6)), starts=np.array([0, 3, 3, 5]))
    plain = data.model_copy(update={"offsets": None})
    content = ["npz", file_digest(data.path), ("x",), "boxes", None]
    assert plain.digest() == digest_of(content)
    assert data.digest() == digest_of([*content, "starts"])


def test_collect_labels_of_different_shapes(tmp_path):
    data = ragged(tmp_path, boxes=RANDOM.random((5, 6)), starts=np.array([0, 3, 3, 5]))
    _, labels = collect(data, Preprocessing(), VECTOR)
    assert isinstance(labels, list)
    assert [label.shape for label in labels] == [(3, 6), (0, 6), (2, 6)]
    same = ragged(tmp_path, boxes=np.arange(6), starts=np.array([0, 2, 4, 6]))
    _, labels = collect(same, Preprocessing(), VECTOR)
    assert np.array_equal(labels, np.arange(6).reshape(3, 2))
    _, labels = collect(Npz(path=same.path, label=None), Preprocessing(), VECTOR)
    assert labels is None


# csv


@pytest.fixture
def table(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))

    def write(header: str, *cells: str) -> Path:
        path = tmp_path / "t.csv"
        path.write_text(f"file{header}\n" + "".join(f"a.npy{cell}\n" for cell in cells))
        return path

    return write


def test_csv_several_numbers(table):
    data = Csv(path=table(",x,y,label", ",1,-2.5,a", ", 1e-3 ,0,b"), labels=("x", "y"))
    labels = [sample.label for sample in data.samples()]
    assert [label.dtype for label in labels] == [np.float32, np.float32]
    assert np.array_equal(labels, np.array([[1, -2.5], [1e-3, 0]], np.float32))
    check_options(data)
    other = Csv(path=data.path, labels=("y", "x"))
    assert data.digest() != other.digest()


def test_csv_sequence(table):
    data = Csv(path=table(",text", ",3 1  2", ",", ",-100"), sequence="text")
    labels = [sample.label for sample in data.samples()]
    assert [label.tolist() for label in labels] == [[3, 1, 2], [], [-100]]
    assert {label.dtype for label in labels} == {np.dtype(np.int64)}
    check_options(data)
    before = data.digest()
    table(",text", ",3 1  2", ",", ",-101")
    assert data.digest() != before


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (("1,2", "1,x"), {"labels": ("p", "q")}, r"t\.csv:3: 'x' in the column 'q' is not a finite number"),
        (("1,",), {"labels": ("p", "q")}, r"t\.csv:2: '' in the column 'q' is not a finite number"),
        (("1",), {"labels": ("p", "q")}, r"t\.csv:2: '' in the column 'q'"),
        (("1,nan",), {"labels": ("p", "q")}, r"t\.csv:2: 'nan' in the column 'q'"),
        (("1,1e39",), {"labels": ("p", "q")}, r"t\.csv:2: '1e39' in the column 'q'"),
        (("1,2",), {"labels": ("p", "r")}, r"t\.csv:1: no column 'r'; the columns are 'file', 'p', 'q'"),
        (("1,2",), {"sequence": "r"}, r"t\.csv:1: no column 'r'"),
        (("1,2 x",), {"sequence": "q"}, r"t\.csv:2: 'x' in the column 'q' is not an integer"),
        (("1,2 3.0",), {"sequence": "q"}, r"t\.csv:2: '3\.0' in the column 'q' is not an integer"),
        (("1,1234567890123456789",), {"sequence": "q"}, r"t\.csv:2: '1234567890123456789' in the column"),
        (("1,1", "1"), {"sequence": "q"}, r"t\.csv:3: no column 'q' in this row"),
    ],
)
def test_csv_labels_that_are_no_numbers(table, cells, options, message):
    path = table(",p,q", *(f",{cell}" for cell in cells))
    with pytest.raises(UsageError, match=message):
        list(Csv(path=path, **options).samples())


def test_csv_has_one_kind_of_label(table):
    path = table(",p,q", ",1,2")
    for options in ({"label": "p", "labels": ["q"]}, {"labels": ["p"], "sequence": "q"}):
        with pytest.raises(ValidationError, match=f"set only one of {', '.join(options)}"):
            Csv(path=path, **options)
    assert next(Csv(path=path, label=None, labels=("q",)).samples()).label.tolist() == [2]


def test_csv_digest_is_that_of_before(table):
    path = table(",label", ",3")
    content = ["csv", [[file_digest(path.parent / "a.npy"), 3]], None, "rgb"]
    assert Csv(path=path).digest() == digest_of(content)


# wav_folder


def write_wav(path: Path, frames: bytes, width: int = 2, channels: int = 1, rate: int = 8000) -> Path:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return path


VALUES = np.array([-1.0, -0.5, 0.0, 0.25, 0.9])


def pcm(width: int) -> bytes:
    """``VALUES`` as PCM."""
    if width == 1:
        return bytes(np.rint(VALUES * 128 + 128).astype(np.uint8))
    return b"".join(
        round(value * 2 ** (8 * width - 1)).to_bytes(width, "little", signed=True) for value in VALUES
    )


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_widths(tmp_path, width):
    write_wav(tmp_path / "on" / "a.wav", pcm(width), width)
    (sample,) = WavFolder(path=tmp_path).samples()
    assert sample.inputs[0].dtype == np.float32
    assert sample.inputs[0].shape == (5,)
    assert np.abs(sample.inputs[0] - VALUES).max() <= max(2.0 ** -(8 * width), 1e-7)
    assert sample.label == 0


def test_wav_classes_alternate(tmp_path):
    for name, count in {"off": 1, "on": 3}.items():
        for index in range(count):
            write_wav(tmp_path / name / f"{index}.WAV", struct.pack("<h", 100 * index))
    (tmp_path / "on" / "notes.txt").write_text("no recording")
    data = WavFolder(path=tmp_path)
    assert data.classes() == ["off", "on"]
    assert [sample.label for sample in data.samples()] == [0, 1, 1, 1]
    assert [round(float(s.inputs[0][0]) * 32768) for s in data.samples()] == [0, 0, 100, 200]
    assert len(list(WavFolder(path=tmp_path, limit=2).samples())) == 2
    check_options(data)


def test_wav_channels(tmp_path):
    stereo = np.array([[100, 300], [-200, 0], [5, 5]], "<i2")
    write_wav(tmp_path / "on" / "a.wav", stereo.tobytes(), channels=2)
    mono, kept = (next(WavFolder(path=tmp_path, channels=c).samples()).inputs[0] for c in ("mono", "keep"))
    assert (mono * 32768).tolist() == [200, -100, 5]
    assert (kept * 32768).tolist() == stereo.tolist()
    kept = next(WavFolder(path=tmp_path, channels="keep", seconds=5 / 8000).samples()).inputs[0]
    assert (kept * 32768).tolist() == [*stereo.tolist(), [0, 0], [0, 0]]


def test_wav_seconds(tmp_path):
    write_wav(tmp_path / "on" / "a.wav", np.full(1000, 50, "<i2").tobytes())
    write_wav(tmp_path / "on" / "b.wav", np.full(3000, 50, "<i2").tobytes())
    with pytest.raises(UsageError, match=r"sample 1 has shape \[3000\]"):
        list(checked(WavFolder(path=tmp_path)))
    samples = [sample.inputs[0] for sample in checked(WavFolder(path=tmp_path, seconds=0.25, rate=8000))]
    assert [sample.shape for sample in samples] == [(2000,), (2000,)]
    assert [int((sample > 0).sum()) for sample in samples] == [1000, 2000]
    assert not samples[0][1000:].any()


def test_wav_digest(tmp_path):
    file = write_wav(tmp_path / "on" / "a.wav", pcm(2))
    data = WavFolder(path=tmp_path)
    changed = [data.model_copy(update=u) for u in ({"rate": 8000}, {"seconds": 1.0}, {"channels": "keep"})]
    digests = {data.digest(), *(other.digest() for other in changed)}
    assert len(digests) == 4
    write_wav(file, pcm(2)[:-2])
    assert data.digest() not in digests


def test_wav_of_another_rate(tmp_path):
    write_wav(tmp_path / "on" / "a.wav", pcm(2), rate=44100)
    with pytest.raises(UsageError, match=r"a\.wav has a rate of 44100 Hz, but 'rate' is 16000 Hz") as error:
        list(WavFolder(path=tmp_path, rate=16000).samples())
    assert "-ar 16000" in error.value.fix


def damaged(content: bytes, kind: str) -> bytes:
    return {
        "no wav": b"not a recording",
        "empty file": b"",
        "header only": content[:30],
        "cut": content[:-3],
        "float": content[:20] + struct.pack("<H", 3) + content[22:],
        "no channels": content[:22] + struct.pack("<H", 0) + content[24:],
        "64 bits": content[:34] + struct.pack("<H", 64) + content[36:],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no wav", "cannot read the recording"),
        ("empty file", "cannot read the recording .*it ends too early"),
        ("header only", "cannot read the recording"),
        ("cut", "truncated: it ends after 3 of 5 frames"),
        ("float", "cannot read the recording .*unknown format: 3"),
        ("no channels", "cannot read the recording .*bad # of channels"),
        ("64 bits", "has 64 bits per value|truncated"),
    ],
)
def test_wav_damaged(tmp_path, kind, message):
    file = write_wav(tmp_path / "on" / "a.wav", pcm(2))
    file.write_bytes(damaged(file.read_bytes(), kind))
    with pytest.raises(UsageError, match=message) as error:
        list(WavFolder(path=tmp_path).samples())
    assert str(file) in error.value.message


def test_wav_that_is_empty(tmp_path):
    write_wav(tmp_path / "on" / "a.wav", b"")
    with pytest.raises(UsageError, match=r"a\.wav is empty"):
        list(WavFolder(path=tmp_path).samples())
    with pytest.raises(UsageError, match="no subfolders"):
        list(WavFolder(path=tmp_path / "on").samples())
    with pytest.raises(UsageError, match="is not a folder"):
        list(WavFolder(path=tmp_path / "on" / "a.wav").samples())


# images


def save(path: Path, array: np.ndarray, **options) -> Path:
    from PIL import Image

    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation, suffix):
    from PIL import Image

    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[8:, :16] = 255, (255, 0, 0)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # to be turned clockwise
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, quality=100)
    read = read_image(file, "here", "rgb", None)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 12
    assert read_image(file, "here", "gray", (4, 8)).shape == (4, 8, 1)


def test_damaged_exif_is_ignored(tmp_path):
    array = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    for content in (b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01"):
        file = save(tmp_path / "a.png", array, exif=content)
        assert np.array_equal(read_image(file, "here", "rgb", None), array)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 25700], [385, 386, 32768, 65407, 65535]], np.uint16)
    file = save(tmp_path / f"a.{suffix}", values)
    wanted = np.rint(values / 257).astype(np.uint8)
    assert wanted.tolist() == [[0, 0, 1, 1, 100], [1, 2, 128, 255, 255]]
    assert np.array_equal(read_image(file, "here", "gray", None)[:, :, 0], wanted)
    rgb = read_image(file, "here", "rgb", None)
    assert rgb.shape == (2, 5, 3)
    assert all(np.array_equal(rgb[:, :, channel], wanted) for channel in range(3))
    assert read_image(file, "here", "rgb", (4, 4)).shape == (4, 4, 3)


def test_32_bits_and_floats_are_refused(tmp_path):
    within = np.array([[0, 65535, 257]], np.int32)
    assert read_image(save(tmp_path / "a.tif", within), "here", "gray", None).ravel().tolist() == [0, 255, 1]
    for array, message in (
        (within + 1, r"a\.tif has integers from 1 to 65536, not values of 8 or 16 bits"),
        (within - 1, r"a\.tif has integers from -1 to 65534"),
        (within.astype(np.float32) / 65535, r"a\.tif has floats from 0 to 1"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            read_image(save(tmp_path / "a.tif", array), "here", "rgb", None)
        assert ".npy" in error.value.fix


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_images_are_read_as_by_pillow(tmp_path, mode):
    from PIL import Image

    colors = Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image = colors.convert(mode)
    if mode.endswith("A"):
        image.putalpha(100)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    for color, target in (("rgb", "RGB"), ("gray", "L")):
        wanted = np.asarray(image.convert(target)).reshape(4, 6, -1)
        assert np.array_equal(read_image(file, "here", color, None), wanted)


def test_first_image_of_an_animation(tmp_path):
    from PIL import Image

    frames = [Image.new("L", (5, 4), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(read_image(tmp_path / "a.gif", "here", "gray", None).flat) == {10}


def test_images_that_cannot_be_read(tmp_path):
    from PIL import Image

    file = save(tmp_path / "a.png", RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UsageError, match=r"here: cannot read the image .*a\.png"):
        read_image(file, "here", "rgb", None)
    with pytest.raises(UsageError, match=r"here: cannot read the image .*none\.png"):
        read_mask(tmp_path / "none.png", "here", None)
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"here: cannot read the image .*a\.tif"):
        read_image(tmp_path / "a.tif", "here", "gray", None)


# masks

CLASSES = RANDOM.integers(0, 2, (5, 7))


def mask_file(folder: Path, mode: str) -> Path:
    from PIL import Image

    if mode == "P":
        image = Image.fromarray(CLASSES.astype(np.uint8)).convert("P")
        image.putpalette([255, 0, 0, 0, 255, 0])
    else:
        dtype = {"1": np.bool_, "L": np.uint8, "I;16": np.uint16, "I;16B": ">u2", "I": np.int32}[mode]
        image = Image.fromarray(CLASSES.astype(dtype))
    path = folder / ("m.png" if mode in "1LP" else "m.tif")
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I;16B", "I"])
def test_masks_hold_class_indices(tmp_path, mode):
    from PIL import Image

    path = mask_file(tmp_path, mode)
    mask = read_mask(path, "here", None)
    assert mask.dtype == np.int64
    assert np.array_equal(mask, CLASSES)
    for size in ((10, 14), (3, 4), (5, 20), (1, 1)):
        wanted = Image.fromarray(CLASSES.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(read_mask(path, "here", size), np.asarray(wanted))


def test_masks_of_many_classes(tmp_path):
    file = save(tmp_path / "m.png", np.array([[0, 300, 65535]], np.uint16))
    assert read_mask(file, "here", None).tolist() == [[0, 300, 65535]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_masks_with_several_values_per_pixel(tmp_path, mode):
    from PIL import Image

    Image.new(mode, (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(UsageError, match=f"here: the mask .*m.png has the mode {mode}: masks hold one class"):
        read_mask(tmp_path / "m.png", "here", None)


def test_folder_of_16_bit_images(tmp_path):
    (tmp_path / "a").mkdir()
    save(tmp_path / "a" / "x.png", np.full((3, 4), 257 * 77, np.uint16))
    (sample,) = ImageFolder(path=tmp_path).samples()
    assert set(sample.inputs[0].flat) == {77}
    assert math.prod(sample.inputs[0].shape) == 3 * 4 * 3


def test_npz_gives_labels_by_task(tmp_path: Path) -> None:
    """Both of one shape and of different lengths; the digest says which array is whose."""
    path = tmp_path / "two.npz"
    boxes = np.arange(18, dtype=np.float32).reshape(3, 6)
    np.savez(
        path, x=np.zeros((2, 4), np.float32), kind=np.array([1, 0]), boxes=boxes, ends=np.array([0, 1, 3])
    )
    data = Npz(path=path, label={"kind": "kind", "boxes+scores": "boxes"}, offsets={"boxes+scores": "ends"})

    first, second = data.samples()

    assert (first.label["kind"], second.label["kind"]) == (1, 0)
    assert [sample.label["boxes+scores"].tolist() for sample in (first, second)] == [
        boxes[:1].tolist(),
        boxes[1:].tolist(),
    ]
    swapped = data.model_copy(update={"label": {"boxes+scores": "boxes", "kind": "ends"}})
    assert data.digest() != swapped.digest()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label": {"kind": "kind"}, "offsets": "ends"}, "give 'label' and 'offsets' both as keys"),
        ({"label": {"kind": "kind"}, "offsets": {"knd": "ends"}}, "'offsets' has 'knd', and 'label' has not"),
    ],
)
def test_npz_refuses_offsets_of_other_tasks(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)))
    with pytest.raises(ValidationError, match=expected):
        Npz(path=tmp_path / "d.npz", **options)


def test_npz_names_the_missing_labels_of_a_task(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4), np.float32), y=np.zeros(2))
    with pytest.raises(UsageError, match=r"no array 'kind'; the arrays are 'x', 'y'") as caught:
        list(Npz(path=tmp_path / "d.npz", label={"a": "kind"}).samples())
    assert "Set 'label'" in str(caught.value.fix)
