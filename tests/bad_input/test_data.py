"""Data files that are damaged, hostile or of another shape than the model's input."""

import gzip
import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Refused = Callable[..., None]
IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
LABELS = np.arange(4)

ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("NaN", {"x": np.full((4, 8, 8, 1), np.nan, np.float32)}, "sample 0: the input contains NaN"),
    ("infinity", {"x": np.full((4, 8, 8, 1), np.inf, np.float32)}, "sample 0: the input contains infinity"),
    ("objects", {"x": np.array([{}] * 4, dtype=object)}, "contains pickled objects, which are rejected"),
    ("text", {"x": np.array(["a"] * 4)}, "contains values of dtype <U1"),
    ("complex", {"x": IMAGES.astype(complex)}, "contains values of dtype complex128"),
    ("dates", {"x": np.array(["2020-01-01"] * 4, "datetime64[D]")}, "contains values of dtype datetime64[D]"),
    ("500 fields", {"x": np.zeros(4, [(f"field{i}", "f4") for i in range(500)])}, "damaged"),
    ("a scalar", {"x": np.float32(3)}, "'x' is a single number"),
    ("no rows", {"x": IMAGES[:0], "y": LABELS[:0]}, "no samples"),
    ("fewer labels", {"x": IMAGES, "y": LABELS[:3]}, "the arrays differ in length"),
    ("no inputs", {"images": IMAGES}, "no array 'x'"),
    ("no arrays", {"y": None}, "the arrays are none"),
    ("another size", {"x": np.zeros((4, 9, 9, 1), np.uint8)}, "shape [9, 9, 1] does not match"),
    ("another rank", {"x": np.zeros((4, 64), np.uint8)}, "shape [64] does not match"),
    ("an empty axis", {"x": np.zeros((4, 0, 8, 1), np.uint8)}, "shape [0, 8, 1] does not match"),
    ("500 arrays", {f"a_long_name_{i}": LABELS for i in range(500)}, "no array 'x'"),
]


def header(text: str, version: tuple[int, int] = (1, 0), body: bytes = b"\0" * 256) -> bytes:
    """An ``.npy`` file with any header."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + body


def described(shape: str, descr: str = "'|u1'", order: str = "False", more: str = "") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}"


GOOD = "(4, 8, 8, 1)"
MEMBERS = [
    ("30,000 brackets", header("[" * 30_000, (2, 0)), "damaged, or not an .npz file"),
    ("900 brackets", header("(" * 900 + ")" * 900), "damaged, or not an .npz file"),
    ("a nested shape", header(described("(" * 5_000 + ")" * 5_000)), "damaged, or not an .npz file"),
    ("20,000 letters", header(described(GOOD, more=f", 'x': '{'y' * 20_000}'"), (2, 0)), "damaged"),
    ("900 keys", header(described(GOOD, more="".join(f", 'k{i}': 1" for i in range(900)))), "damaged"),
    ("a huge shape", header(described("(99999999999999999999, 8, 8, 1)")), "the arrays differ in length"),
    ("a negative shape", header(described("(-4, 8, 8, 1)")), "the arrays differ in length"),
    ("a terabyte", header(described("(999999999999, 8)", order="True")), "damaged"),
    ("an unknown type", header(described(GOOD, "'|q9'")), "damaged"),
    ("a list as type", header(described(GOOD, "[]")), "contains values of dtype"),
    ("version 9", header(described(GOOD), (9, 9)), "unknown format version"),
    ("too few bytes", header(described(GOOD), body=b"\0" * 5), "damaged"),
    ("no array", b"hello", "damaged"),
    ("nothing", b"", "damaged"),
    ("an expression", header("__import__('os').system('x')"), "damaged"),
]
FILES = [
    ("text", b"hello", "damaged, or not an .npz file"),
    ("nothing", b"", "damaged, or not an .npz file"),
    ("a web page", b"<html>", "damaged, or not an .npz file"),
    ("gzip", gzip.compress(b"x"), "damaged, or not an .npz file"),
    ("an array", header(described(GOOD)), "damaged, or not an .npz file"),
    ("half an archive", b"PK\x03\x04" + b"\0" * 40, "damaged, or not an .npz file"),
]
TABLES = [
    ("nothing", b"", "no column 'file'"),
    ("a header only", b"file,label\n", "no samples"),
    ("other columns", b"a,b\nok.png,1\n", "no column 'file'; the columns are 'a', 'b'"),
    ("900 columns", b",".join(b"column_%d" % i for i in range(900)) + b"\n", "no column 'file'"),
    (
        "a name as label",
        b"file,label\nok.png,x\n",
        "table.csv:2: the label 'x' is not an integer from 0 to 999,999,999",
    ),
    (
        "a negative label",
        b"file,label\nok.png,-1\n",
        "the label '-1' is not an integer from 0 to 999,999,999",
    ),
    ("a fraction", b"file,label\nok.png,1.5\n", "the label '1.5' is not an integer from 0 to 999,999,999"),
    (
        "a superscript",
        "file,label\nok.png,²\n".encode(),
        "the label '²' is not an integer from 0 to 999,999,999",
    ),
    (
        "5,000 digits",
        b"file,label\nok.png," + b"9" * 5_000 + b"\n",
        "is not an integer from 0 to 999,999,999",
    ),
    ("20 digits", b"file,label\nok.png," + b"9" * 20 + b"\n", "is not an integer from 0 to 999,999,999"),
    ("no such file", b"file,label\nno.png,1\n", "table.csv:2: no such file"),
    ("a folder", b"file,label\n.,1\n", "table.csv:2: no such file"),
    ("a device", b"file,label\n/dev/zero,1\n", "table.csv:2: no such file"),
    ("an unknown home", b"file,label\n~nouser/a.png,1\n", "table.csv:2: no such file"),
    ("a name of 300 letters", b"file,label\n" + b"x" * 300 + b".png,1\n", "table.csv:2: no such file"),
    ("a zero byte", b"file,label\nok\0.png,1\n", "table.csv"),
    ("a damaged image", b"file,label\nbad.png,1\n", "cannot read the image"),
    ("nested brackets", b"file,label\nnested.npy,1\n", "cannot read"),
    ("a pickle", b"file,label\nobject.npy,1\n", "cannot read"),
    ("a short row", b"file,label\nok.png\n", "the label '' is not an integer from 0 to 999,999,999"),
    ("no file name", b"file,label\n,1\n", "table.csv:2: no file name"),
    ("an open quote", b'file,label\n"ok.png,1\n', "not a CSV file"),
    ("200,000 letters", b"file,label\n" + b"x" * 200_000 + b",1\n", "not a CSV file"),
    ("latin-1", b"file,label\ncaf\xe9.png,1\n", "not a CSV file in UTF-8"),
    ("UTF-16", "file,label\nok.png,1\n".encode("utf-16"), "not a CSV file in UTF-8"),
]
OPTIONS = [
    ("classes: [a, b]", "the label '1' is not one of 'classes'"),
    (f"classes: [{', '.join(f'class_{i}' for i in range(900))}]", "the label '1' is not one of 'classes'"),
    ("size: [0, 8]", "size.0: input should be greater than 0"),
    ("size: [.inf, 8]", "the number is infinite"),
    ("size: 8", "size: expected a list"),
    ("size: [true, 8]", "true is not a number"),
    ("color: cmyk", "input should be 'rgb' or 'gray'"),
    ("root: nosuch", "no such file: "),
    ("file: nosuch", "no column 'nosuch'"),
    ("limit: 0", "input should be greater than 0"),
    ("limit: 99999999999999999999", "larger than any setting"),
    ("nosuch: 1", "unknown key 'nosuch'"),
]


@pytest.fixture(scope="module")
def files(place: Path) -> Path:
    """Files that tables name."""
    from PIL import Image

    Image.fromarray(IMAGES[0, :, :, 0]).save(place / "ok.png")
    (place / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    (place / "nested.npy").write_bytes(header("[" * 30_000, (2, 0)))
    np.save(place / "object.npy", np.array([{}]), allow_pickle=True)
    return place


def use(refused: Refused, words: str, kind: str, **options: str) -> None:
    listed = ", ".join(f"{key}: {value}" for key, value in options.items())
    refused(words, "plan", "good.yaml", "--set", f"data.calibration={{uses: {kind}, with: {{{listed}}}}}")


@pytest.mark.parametrize(("arrays", "words"), [row[1:] for row in ARRAYS], ids=[row[0] for row in ARRAYS])
def test_arrays(arrays: dict[str, Any], words: str, place: Path, refused: Refused) -> None:
    kept = {name: value for name, value in ({"y": LABELS} | arrays).items() if value is not None}
    np.savez(place / "bad.npz", **kept)
    use(refused, words, "npz", path="bad.npz")


@pytest.mark.parametrize(("member", "words"), [row[1:] for row in MEMBERS], ids=[row[0] for row in MEMBERS])
def test_members_of_an_archive(member: bytes, words: str, place: Path, refused: Refused) -> None:
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(place / "bad.npz", "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", labels.getvalue())
    use(refused, words, "npz", path="bad.npz")


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_files_that_are_no_archive(content: bytes, words: str, place: Path, refused: Refused) -> None:
    (place / "bad.npz").write_bytes(content)
    use(refused, words, "npz", path="bad.npz")


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_tables(content: bytes, words: str, files: Path, refused: Refused) -> None:
    (files / "table.csv").write_bytes(content)
    use(refused, words, "csv", path="table.csv", color="gray")


@pytest.mark.parametrize(("option", "words"), OPTIONS, ids=lambda value: value[:30])
def test_options_of_a_table(option: str, words: str, files: Path, refused: Refused) -> None:
    (files / "table.csv").write_bytes(b"file,label\nok.png,1\n")
    key, _, value = option.partition(": ")
    use(refused, words, "csv", path="table.csv", **{key: value})


def bomb() -> bytes:
    """An image of 3.6 billion pixels in 100 bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


FOLDERS = [
    ("empty", {}, "no subfolders"),
    ("no classes", {"1.png": b"x"}, "no subfolders"),
    ("no images", {"a/1.txt": b"x"}, "no samples"),
    ("a damaged image", {"a/1.png": b"x"}, "cannot read the image"),
    ("an empty image", {"a/1.png": b""}, "cannot read the image"),
    ("a bomb", {"a/1.png": bomb()}, "cannot read the image"),
    ("a folder as image", {"a/1.png/x": b""}, "cannot read the image"),
]


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in FOLDERS], ids=[row[0] for row in FOLDERS])
def test_image_folders(content: dict[str, bytes], words: str, place: Path, refused: Refused) -> None:
    folder = place / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    use(refused, words, "image_folder", path="images", color="gray")


def test_a_class_whose_name_is_not_utf8(files: Path, refused: Refused) -> None:
    folder = files / "images"
    shutil.rmtree(folder, ignore_errors=True)
    named = os.fsencode(folder) + b"/caf\xe9"
    os.makedirs(named)
    shutil.copy(files / "bad.png", os.fsdecode(named + b"/1.png"))
    use(refused, "cannot read the image", "image_folder", path="images", color="gray")


@pytest.mark.parametrize(
    ("kind", "words"), [("npz", "Is a directory"), ("csv", "not a CSV file"), ("npy", "no dataset")]
)
def test_a_folder_in_place_of_a_file(kind: str, words: str, refused: Refused) -> None:
    use(refused, words, kind, path=".")
