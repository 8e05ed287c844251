"""Datasets, and the code that checks and stacks their samples."""

import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import MissingPackageError, UsageError
from edgeopt.evaluation.datasets.csv import Csv
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.datasets.function import Function
from edgeopt.evaluation.datasets.image_folder import ImageFolder
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.samples import checked, collect, random_inputs
from edgeopt.model import Preprocessing, TensorSpec

PLAIN = Preprocessing()
VECTOR = (TensorSpec(name="x", shape=(1, 3)),)


def npz(folder: Path, **arrays: np.ndarray) -> Npz:
    np.savez(folder / "data.npz", **arrays)
    return Npz(path=folder / "data.npz")


def values(dataset) -> np.ndarray:
    return np.stack([sample.inputs[0] for sample in dataset.samples()])


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, ">f4", np.int64])
def test_npz_gives_back_what_was_saved(tmp_path, save, order, dtype):
    x = np.arange(5 * 4 * 3).reshape(5, 4, 3).astype(dtype, order=order)
    save(tmp_path / "d.npz", x=x, y=np.arange(5))
    samples = list(Npz(path=tmp_path / "d.npz").samples())
    assert np.array_equal(np.stack([s.inputs[0] for s in samples]), x)
    assert samples[0].inputs[0].dtype.isnative
    assert [s.label for s in samples] == [0, 1, 2, 3, 4]
    assert all(type(s.label) is int for s in samples)


def test_npz_rows_do_not_change_when_pieces_are_reused(tmp_path):
    x = np.random.default_rng(0).random((300, 64, 64), np.float32)  # 4.7 MiB: several pieces
    data = npz(tmp_path, x=x, y=np.zeros(300, np.int64))
    assert np.array_equal(values(data), x)
    assert np.array_equal(values(data), x)  # again


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_streams(tmp_path, save):
    x = np.ones((2000, 64, 64), np.float32)  # 31 MiB
    save(tmp_path / "d.npz", x=x, y=np.zeros(2000, np.int64))
    del x
    data = Npz(path=tmp_path / "d.npz")
    tracemalloc.start()
    count = sum(1 for _ in data.samples())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 8 << 20


def test_npz_several_inputs_limit_and_no_label(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.arange(4), b=np.ones((4, 2)))
    data = Npz(path=tmp_path / "d.npz", inputs=("b", "a"), label=None, limit=3)
    samples = list(data.samples())
    assert len(samples) == 3
    assert samples[2].inputs[0].shape == (2,)
    assert samples[2].inputs[1] == 2
    assert samples[2].label is None


def test_npz_array_labels_serve_an_autoencoder(tmp_path):
    x = np.random.default_rng(0).random((4, 3), np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    _, labels = collect(Npz(path=tmp_path / "d.npz", label="x"), PLAIN, VECTOR)
    assert np.array_equal(labels, x)


def test_npz_digest_follows_content_not_place(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (npz(tmp_path / place, x=np.ones((2, 3)), y=np.zeros(2, int)) for place in "ab")
    assert one.digest() == other.digest()
    assert one.digest() != one.model_copy(update={"limit": 1}).digest()
    assert one.digest() != npz(tmp_path, x=np.zeros((2, 3)), y=np.zeros(2, int)).digest()


def test_npz_missing_file():
    with pytest.raises(ValidationError, match="no such file"):
        Npz(path="nowhere.npz")


def test_npz_missing_key_lists_those_there(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.ones((2, 3)), labels=np.zeros(2, int))
    with pytest.raises(
        UsageError, match=r"d\.npz: no array 'image'; the arrays are 'images', 'labels'"
    ) as error:
        list(Npz(path=tmp_path / "d.npz", inputs=("image",)).samples())
    assert "did you mean 'images'?" in error.value.fix
    with pytest.raises(UsageError, match="no array 'y'") as error:
        list(Npz(path=tmp_path / "d.npz", inputs=("images",), label="y").samples())
    assert "null for data without labels" in error.value.fix


def test_npz_without_y_has_no_labels(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3)))
    assert [sample.label for sample in Npz(path=tmp_path / "d.npz").samples()] == [None, None]


def test_npz_lengths_differ(tmp_path):
    with pytest.raises(UsageError, match="x has 3, y has 2 rows"):
        list(npz(tmp_path, x=np.ones((3, 3)), y=np.zeros(2, int)).samples())


def test_npz_refuses_objects_text_and_single_numbers(tmp_path):
    with pytest.raises(UsageError, match="'x' contains pickled objects, which are rejected"):
        list(npz(tmp_path, x=np.array([{}, []], object), y=np.zeros(2, int)).samples())
    with pytest.raises(UsageError, match="'y' contains values of dtype <U3"):
        list(npz(tmp_path, x=np.ones(2), y=np.array(["cat", "dog"])).samples())
    with pytest.raises(UsageError, match="single number"):
        list(npz(tmp_path, x=np.float32(1), y=np.zeros(2, int)).samples())


def test_npz_damaged(tmp_path):
    file = tmp_path / "d.npz"
    file.write_bytes(b"not a zip file")
    with pytest.raises(UsageError, match=r"d\.npz: damaged, or not an \.npz file"):
        list(Npz(path=file).samples())
    np.savez(file, x=np.arange(1000.0), y=np.zeros(1000, int))
    content = bytearray(file.read_bytes())
    content[500] ^= 255
    file.write_bytes(content)
    with pytest.raises(UsageError, match="Bad CRC-32"):
        list(Npz(path=file).samples())
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(UsageError, match="damaged"):
        list(Npz(path=file, label=None).samples())


# image_folder and csv


@pytest.fixture
def pictures(tmp_path) -> Path:
    from PIL import Image

    for number, (name, count) in enumerate({"dog": 2, "cat": 3}.items()):
        (tmp_path / name).mkdir()
        for index in range(count):
            color = (100 * number + index, 7, 250)
            Image.new("RGB", (6, 4), color).save(tmp_path / name / f"{index}.png")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    return tmp_path


def test_image_folder(pictures):
    data = ImageFolder(path=pictures)
    samples = list(data.samples())
    assert data.classes() == ["cat", "dog"]
    assert [s.label for s in samples] == [0, 1, 0, 1, 0]  # alternating
    assert samples[0].inputs[0].shape == (4, 6, 3)
    assert samples[0].inputs[0].dtype == np.uint8
    assert samples[2].inputs[0][0, 0].tolist() == [101, 7, 250]
    resized = next(ImageFolder(path=pictures, size=(8, 2), color="gray").samples()).inputs[0]
    assert resized.shape == (8, 2, 1)
    assert abs(int(resized[0, 0, 0]) - (0.299 * 100 + 0.587 * 7 + 0.114 * 250)) <= 1
    assert len(list(ImageFolder(path=pictures, limit=2).samples())) == 2


def test_image_folder_digest(pictures):
    from PIL import Image

    before = ImageFolder(path=pictures).digest()
    assert ImageFolder(path=pictures).digest() == before
    assert ImageFolder(path=pictures, color="gray").digest() != before
    Image.new("RGB", (6, 4)).save(pictures / "dog" / "1.png")
    assert ImageFolder(path=pictures).digest() != before


def test_image_folder_names_the_corrupted_image(pictures):
    file = pictures / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"cannot read the image .*cat/1\.png"):
        list(ImageFolder(path=pictures).samples())


def test_image_folder_without_classes(tmp_path):
    with pytest.raises(UsageError, match="no subfolders"):
        list(ImageFolder(path=tmp_path).samples())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no samples"):
        list(checked(ImageFolder(path=tmp_path)))


def test_images_of_different_sizes_are_told(pictures):
    from PIL import Image

    Image.new("RGB", (5, 5)).save(pictures / "dog" / "0.png")
    with pytest.raises(UsageError, match=r"sample 1 has shape \[5, 5, 3\].* \[4, 6, 3\]") as error:
        list(checked(ImageFolder(path=pictures)))
    assert "'size'" in error.value.fix


def test_csv(pictures):
    np.save(pictures / "a.npy", np.full((4, 6, 3), 9, np.uint8))
    (pictures / "t.csv").write_text("file,label\ndog/1.png,dog\na.npy,cat\n")
    data = Csv(path=pictures / "t.csv", classes=("cat", "dog"))
    samples = list(data.samples())
    assert [s.label for s in samples] == [1, 0]
    assert samples[0].inputs[0][0, 0].tolist() == [1, 7, 250]
    assert samples[1].inputs[0].max() == 9
    before = data.digest()
    np.save(pictures / "a.npy", np.zeros((4, 6, 3), np.uint8))
    assert data.digest() != before
    (pictures / "u.csv").write_text("name,y\n1.png,3\n")
    other = Csv(path=pictures / "u.csv", file="name", label="y", root=pictures / "cat")
    assert [s.label for s in other.samples()] == [3]


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("file,label\ndog/1.png,1\nno.png,0\n", r"t\.csv:3: no such file: .*no\.png", "'root'"),
        ("file,label\ndog/1.png,dog\n", r"t\.csv:2: the label 'dog' is not an integer", "'classes'"),
        ("file,label\n,1\n", r"t\.csv:2: no file name", "'file'"),
        ("file,label\nt.csv,1\n", r"t\.csv:2: cannot read the image", "replace"),
        ("file,label\nbad.npy,1\n", r"t\.csv:2: cannot read .*bad\.npy", "numpy.save"),
        ("file,labels\ndog/1.png,1\n", r"t\.csv:1: no column 'label'; the columns are 'file'", "'labels'"),
    ],
)
def test_csv_names_file_and_line(pictures, text, message, fix):
    (pictures / "t.csv").write_text(text)
    np.save(pictures / "bad.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UsageError, match=message) as error:
        list(Csv(path=pictures / "t.csv").samples())
    assert fix in error.value.fix


def test_csv_unknown_class(pictures):
    (pictures / "t.csv").write_text("file,label\ndog/1.png,dug\n")
    with pytest.raises(UsageError, match=r"t\.csv:2: the label 'dug'") as error:
        list(Csv(path=pictures / "t.csv", classes=("cat", "dog")).samples())
    assert "did you mean 'dog'?" in error.value.fix


# digits


def test_digits_parts_are_all_of_it_once():
    parts = {part: list(Digits(part=part).samples()) for part in ("train", "calibration", "evaluation")}
    assert [len(samples) for samples in parts.values()] == [1097, 200, 500]
    seen = np.stack([s.inputs[0] for samples in parts.values() for s in samples])
    assert seen.shape == (1797, 8, 8, 1)
    assert seen.dtype == np.uint8
    assert (seen.min(), seen.max()) == (0, 16)
    assert seen.sum(dtype=np.int64) == 561718  # the whole dataset
    assert {s.label for s in parts["calibration"]} == set(range(10))
    assert len(list(Digits(part="train", limit=3).samples())) == 3


def test_digits_digest_imports_no_framework():
    code = (
        "import sys; from edgeopt.evaluation.datasets.digits import Digits\n"
        "print(Digits(part='train').digest()); assert 'sklearn' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Digits(part="train").digest()
    assert Digits(part="train").digest() != Digits(part="evaluation").digest()


# function

CODE = """
import numpy as np
X = np.arange(24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 4

def pairs():
    for x, y in zip(X, Y):
        yield x, y

def unlabelled(): return list(X)
def arrays(rows=8): return X[:rows], Y
def two_inputs(): return [((x, x[:1]), int(y)) for x, y in zip(X, Y)]
def nothing(): return 5
def empty(): return []
def three(): return [(x, x, 1) for x in X]

def torch_dataset():
    import torch
    return torch.utils.data.TensorDataset(torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y))

def torch_loader(shuffle=False, batch_size=3):
    import torch
    return torch.utils.data.DataLoader(torch_dataset(), batch_size=batch_size, shuffle=shuffle)

def tf_dataset(batch=0, drop_remainder=False, labels=True, shuffle=False):
    import tensorflow as tf
    data = tf.data.Dataset.from_tensor_slices((X, Y) if labels else X)
    data = data.shuffle(8) if shuffle else data
    return data.batch(batch, drop_remainder=drop_remainder) if batch else data
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data", raising=False)

    def make(name: str, **arguments) -> Function:
        context = {"roots": (tmp_path,)}
        return Function.model_validate(
            {"function": f"own_data:{name}", "arguments": arguments}, context=context
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pairs", {}),
        ("arrays", {}),
        ("torch_dataset", {}),
        ("torch_loader", {}),
        ("torch_loader", {"batch_size": None}),
        ("tf_dataset", {}),
        ("tf_dataset", {"batch": 3}),
        ("tf_dataset", {"batch": 4, "drop_remainder": True}),
    ],
)
def test_function_takes_what_is_returned_as_it_is(code, name, arguments):
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}.get(name.split("_")[0], "numpy"))
    samples = list(code(name, **arguments).samples())
    assert np.array_equal(np.stack([s.inputs[0] for s in samples]), np.arange(24).reshape(8, 3))
    assert samples[0].inputs[0].dtype == np.float32
    assert [s.label for s in samples] == [0, 1, 2, 3] * 2
    assert all(type(s.label) is int for s in samples)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [0, 3])
def test_function_tf_dataset_without_labels(code, batch):
    pytest.importorskip("tensorflow")
    samples = list(code("tf_dataset", labels=False, batch=batch).samples())
    assert np.array_equal(np.stack([s.inputs[0] for s in samples]), np.arange(24).reshape(8, 3))
    assert samples[0].label is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch_loader", "tf_dataset"])
def test_function_shuffling_gives_one_order(code, name):
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[name.split("_")[0]])
    data = code(name, shuffle=True)
    first = [s.label for s in data.samples()]
    assert first != [0, 1, 2, 3] * 2
    assert [s.label for s in data.samples()] == first
    assert data.digest() == data.digest()


def test_function_more_shapes_of_data(code):
    assert [s.label for s in code("unlabelled").samples()] == [None] * 8
    sample = next(code("two_inputs").samples())
    assert [value.shape for value in sample.inputs] == [(3,), (1,)]
    assert sample.label == 0


def test_function_digest_follows_code_arguments_and_data(code, tmp_path):
    assert code("arrays").digest() == code("arrays").digest()
    assert code("arrays").digest() != code("unlabelled").digest()
    assert code("arrays").digest() != code("arrays", rows=8).digest()
    before = code("pairs").digest()
    (tmp_path / "own_data.py").write_text(CODE + "\n# changed\n")
    assert code("pairs").digest() != before


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nothing", {}, "returned int, which contains no samples"),
        ("empty", {}, "own_data:empty: no samples"),
        ("arrays", {"rows": 7}, r"differ in length: \[7, 8\]"),
        ("arrays", {"row": 7}, "unexpected keyword argument 'row'"),
        ("three", {}, "sample 0 has an unsupported type"),
        ("misspelt", {}, "own_data.py does not define 'misspelt'"),
    ],
)
def test_function_mistakes(code, name, arguments, message):
    with pytest.raises((UsageError, ValidationError), match=message) as error:
        list(checked(code(name, **arguments)))
    assert "own_data" in str(error.value)


# checked and collect


def test_nan_names_the_sample(tmp_path):
    x = np.ones((5, 3), np.float32)
    x[3, 1] = np.nan
    with pytest.raises(UsageError, match=r"data\.npz: sample 3: the input contains NaN \(1 of 3"):
        list(checked(npz(tmp_path, x=x, y=np.zeros(5, int))))
    x[3, 1], x[2, 0] = 0, -np.inf
    with pytest.raises(UsageError, match="sample 2: the input contains infinity"):
        list(checked(npz(tmp_path, x=x, y=np.zeros(5, int))))
    with pytest.raises(UsageError, match="sample 1: the label contains NaN"):
        list(checked(npz(tmp_path, x=np.ones((2, 3)), y=np.array([0, np.nan]))))


def test_empty_data(tmp_path):
    with pytest.raises(UsageError, match=r"data\.npz: no samples"):
        list(checked(npz(tmp_path, x=np.ones((0, 3)), y=np.zeros(0, int))))


def test_collect_stacks_in_the_wanted_layout_and_dtype(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    data = npz(tmp_path, x=x, y=np.array([3, 1, 2, 0]))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    preprocessing = Preprocessing(scale=1 / 255, mean=mean, std=std, layout="NHWC")
    spec = TensorSpec(name="image", shape=(1, 3, 5, 6), layout="NCHW")
    (images,), labels = collect(data, preprocessing, [spec])
    wanted = ((x / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert images.dtype == np.float32
    assert np.abs(images - wanted).max() < 1e-6
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 1, 2, 0]
    half = spec.model_copy(update={"dtype": "float16", "layout": "NHWC", "shape": (None, None, None, 3)})
    (images,), labels = collect(data, preprocessing, [half], limit=2)
    assert images.dtype == np.float16
    assert images.shape == (2, 5, 6, 3)
    assert len(labels) == 2


def test_collect_quantizes_for_integer_inputs(tmp_path):
    x = np.array([[-1.0, 0.0, 0.26], [0.5, 9.0, -9.0]], np.float32)
    data = npz(tmp_path, x=x, y=np.zeros(2, int))
    spec = TensorSpec(name="x", shape=(1, 3), dtype="int8", scale=0.5, zero_point=-3)
    (stored,), _ = collect(data, PLAIN, [spec.model_copy(update={"scale": 0.05})])
    assert stored.tolist() == [[-23, -3, 2], [7, 127, -128]]
    (stored,), _ = collect(data, Preprocessing(scale=10), [spec])
    assert stored.tolist() == [[-23, -3, 2], [7, 127, -128]]
    with pytest.raises(UsageError, match="takes int8, but the sample has other values"):
        collect(data, PLAIN, [TensorSpec(name="x", shape=(1, 3), dtype="int8")])


@pytest.mark.parametrize(
    ("shape", "spec", "preprocessing", "fix"),
    [
        ((5, 6, 3), ((1, 3, 5, 6), "NCHW"), {}, "it matches as NHWC: set 'layout: NHWC'"),
        ((5, 6, 3), ((1, 3, 5, 6), "NCHW"), {"mean": (1, 2, 3)}, "'layout: NHWC'"),
        ((3, 5, 6), ((1, 5, 6, 3), "NHWC"), {}, "'layout: NCHW'"),
        ((3, 5, 6), ((1, 3, 5, 6), "NCHW"), {"layout": "NHWC"}, "'layout: NCHW'"),
        ((5, 6), ((1, 5, 6, 1), "NHWC"), {}, "axis of length 1"),
        ((1, 5, 6, 3), ((1, 5, 6, 3), "NHWC"), {}, "no batch axis"),
        ((10, 49), ((1, 49, 10), None), {}, r"transposed to the axes \[1, 0\]"),
        ((7,), ((1, 3), None), {}, "trained with"),
        ((5, 6, 1), ((1, 5, 6, 1), "NHWC"), {"mean": (1, 2, 3)}, "one per channel"),
        ((5, 6, 3), ((1, 5, 6, 3), "NHWC"), {"std": (1, 2)}, "one per channel"),
    ],
)
def test_collect_says_what_would_make_data_fit(tmp_path, shape, spec, preprocessing, fix):
    data = npz(tmp_path, x=np.ones((2, *shape), np.float32), y=np.zeros(2, int))
    wanted = TensorSpec(name="image", shape=spec[0], layout=spec[1])
    with pytest.raises(UsageError, match=fix) as error:
        collect(data, Preprocessing(**preprocessing), [wanted])
    assert str(list(shape)) in error.value.message


def test_collect_number_of_inputs(tmp_path):
    data = npz(tmp_path, x=np.ones((2, 3)), y=np.zeros(2, int))
    with pytest.raises(UsageError, match="has 1 inputs, the model takes 2: 'x', 'x'"):
        collect(data, PLAIN, VECTOR * 2)


def test_random_inputs_are_the_same_in_every_form():
    nhwc = TensorSpec(name="image", shape=(1, 5, 6, 3), layout="NHWC")
    nchw = TensorSpec(name="other", shape=(1, 3, 5, 6), layout="NCHW")
    int8 = nhwc.model_copy(update={"dtype": "int8", "scale": 0.05, "zero_point": 4})
    (one,), (other,), (stored,) = (random_inputs([spec], 8) for spec in (nhwc, nchw, int8))
    assert one.shape == (8, 5, 6, 3)
    assert np.array_equal(one, other.transpose(0, 2, 3, 1))
    assert np.abs((stored.astype(np.float32) - 4) * 0.05 - one).max() <= 0.0251
    tokens, free = random_inputs([TensorSpec(name="i", shape=(1, None), dtype="int32"), VECTOR[0]], 2)
    assert tokens.shape == (2, 16)
    assert set(tokens.flat) == {0, 1}
    assert free.shape == (2, 3)


def test_a_missing_package_is_named_with_the_command_that_installs_it(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackageError, match="pillow, which is not installed") as caught:
        next(iter(ImageFolder(path=pictures).samples()))
    assert "pip install" in caught.value.fix and "[data]" in caught.value.fix
    monkeypatch.setattr(ImageFolder, "requires", ("not-there",))
    with pytest.raises(MissingPackageError, match="image_folder needs not-there, which is not installed"):
        ImageFolder.require()
