"""Files and folders of samples: what kind of dataset they are, and which of them is for what."""

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.config.files import regular
from edgeopt.errors import UsageError, shortened
from edgeopt.evaluation.datasets import image_folder, wav_folder
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.model import TensorSpec
from edgeopt.recipe.starter.media import (
    OTHER,
    files_in,
    image_options,
    recording_options,
    suffixes_in,
)

CALIBRATION_SAMPLES = 200
SHARE = 0.2
"""Fraction of the samples that calibrate, if one dataset serves both purposes; fewer of many samples."""
INPUTS = ("x", "inputs", "images", "data", "features")
LABELS = ("y", "labels", "label", "targets", "target")
FILES = ("file", "path", "filename", "filepath", "image")
CLASSES = ("label", "class", "category", "target")
"""Usual names of arrays and columns, the most common first."""
TO_CALIBRATE = re.compile(r"(?:^|[^a-z])(?:calib\w*|cal|train\w*|x?train)(?:[^a-z]|$)", re.IGNORECASE)
TO_EVALUATE = re.compile(r"(?:^|[^a-z])(?:eval\w*|val|valid\w*|test\w*)(?:[^a-z]|$)", re.IGNORECASE)
MAX_TABLE = 100_000
"""Rows of a table whose classes are read."""


@dataclass(frozen=True)
class Found:
    """A dataset that was recognised."""

    path: Path
    kind: str
    """What it is, for people."""
    uses: str
    options: Mapping[str, Any]
    count: int | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shape of a sample for each input, as far as known without reading one."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the labels."""
    layout: str | None = None
    """Layout of the samples, for images."""

    @property
    def use(self) -> dict[str, Any]:
        """The dataset as written in a recipe."""
        return {"uses": self.uses, "with": dict(self.options)}

    def part(self, name: str) -> dict[str, Any]:
        """A part of it, as written in a recipe."""
        share = SHARE if self.count is None else min(SHARE, CALIBRATION_SAMPLES / max(self.count, 1))
        options = {"of": self.use, "part": name, "share": round(share, 4)}
        if name == "calibration":
            options["limit"] = CALIBRATION_SAMPLES
        return {"uses": "split", "with": options}


class Parts(NamedTuple):
    """The datasets of a recipe, as written in it, and the data that judges."""

    calibration: dict[str, Any]
    evaluation: dict[str, Any]
    judging: Found
    note: str


def parts_of(paths: Sequence[Path], specs: Sequence[TensorSpec]) -> Parts:
    """Recognise data for a model with the inputs ``specs``, none if they are unknown.

    Raises:
        UsageError: a path does not exist, is given twice or of an unknown kind, or does not fit the inputs.
    """
    if len(paths) > 2:
        raise UsageError(
            f"--data is given {len(paths)} times: one file or folder is split, of two one calibrates and the "
            "other one judges",
            fix=OTHER,
        )
    for index, path in enumerate(paths):
        _check_present(path)
        if path.resolve() in [other.resolve() for other in paths[:index]]:
            raise UsageError(
                f"--data {path} is given twice", fix="one file is split into two parts by itself"
            )
    if len(paths) == 1 and (inside := _by_role(paths[0])):
        paths = inside
    if len(paths) == 1:
        (path,) = paths
        if path.suffix == ".npz" and (pair := _train_and_test(path, specs)):
            return _two(*pair, "by the names of its arrays")
        found = recognise(path, specs)
        many = f" ({found.count:,} samples)" if found.count else ""
        note = (
            f"{path}, {found.kind}{many}, is split: {CALIBRATION_SAMPLES} samples at most calibrate, "
            "the rest judges"
        )
        return Parts(found.part("calibration"), found.part("evaluation"), found, note)
    first, second = paths
    how = "by their names"
    if _is_for(second, TO_CALIBRATE) or (_is_for(first, TO_EVALUATE) and not _is_for(second, TO_EVALUATE)):
        first, second = second, first
    elif not (_is_for(first, TO_CALIBRATE) or _is_for(second, TO_EVALUATE)):
        how = "by their order"
    return _two(recognise(first, specs), recognise(second, specs), how)


def recognise(path: Path, specs: Sequence[TensorSpec]) -> Found:
    """The dataset at ``path``; raises as `parts_of`."""
    if path.is_dir():
        return _folder(path, specs)
    readers = {".npz": _npz, ".csv": _csv, ".json": _coco}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path}: no known kind of data; these are .npz, .csv, .json with boxes, and folders of images, "
            "masks or recordings",
            fix="save the samples with numpy.savez('data.npz', x=samples, y=labels)",
        )
    try:
        regular(path)
        return reader(path, specs)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", fix="check the file") from error


def _check_present(path: Path) -> None:
    if not os.path.exists(path):  # unlike Path.exists, also for a name that is too long
        names = [each.name for each in path.parent.iterdir()] if os.path.isdir(path.parent) else []
        near = get_close_matches(path.name, names, 1)
        fix = f"did you mean {near[0]!r}?" if near else "check the path"
        raise UsageError(f"no such data: {shortened(str(path), 200)}", fix=fix)


def _two(calibration: Found, evaluation: Found, how: str) -> Parts:
    if calibration.classes != evaluation.classes and calibration.classes and evaluation.classes:
        first, second = (shortened(", ".join(each.classes), 200) for each in (calibration, evaluation))
        raise UsageError(
            f"{calibration.path} and {evaluation.path} have different classes: {first}; {second}",
            fix="give both the same subfolders",
        )
    few = calibration.count is not None and calibration.count <= CALIBRATION_SAMPLES
    use = calibration.use if few else calibration.part("calibration")
    places = dict.fromkeys(str(each.path) for each in (calibration, evaluation))
    note = f"{calibration.path} calibrates ({calibration.kind}), {evaluation.path} judges, assigned {how}"
    if len(places) == 1:
        note = f"{calibration.path}: the training arrays calibrate, the test arrays judge, assigned {how}"
    return Parts(use, evaluation.use, evaluation, note)


def _is_for(path: Path, purpose: re.Pattern[str]) -> bool:
    return bool(purpose.search(path.stem))


def _by_role(folder: Path) -> list[Path]:
    """The subfolders for training and for evaluation; empty if the folder is divided otherwise."""
    if not folder.is_dir():
        return []
    names = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    first = [each for each in names if _is_for(each, TO_CALIBRATE)]
    second = [each for each in names if _is_for(each, TO_EVALUATE)]
    validation = [each for each in second if "val" in each.name.lower()]
    whole = len(first) == 1 and second and len(first) + len(second) == len(names)
    return [first[0], (validation or second)[0]] if whole else []


# Kinds of data


def _npz(path: Path, specs: Sequence[TensorSpec]) -> Found:
    shapes = Npz.shapes_of(path)
    label = next((name for name in LABELS if name in shapes), None)
    arrays = [name for name in shapes if name != label]
    options: dict[str, Any] = {"path": path}
    if len(specs) > 1:
        by_name = {spec.name: spec.name for spec in specs if spec.name in shapes}
        if len(by_name) < len(specs):
            missing = next(spec.name for spec in specs if spec.name not in by_name)
            raise UsageError(
                f"{path}: no array for the input {missing!r}; the arrays are {', '.join(shapes) or 'none'}",
                fix="save one array per input, under the names of the inputs: "
                + ", ".join(spec.name for spec in specs),
            )
        options["inputs"], inputs = by_name, list(by_name)
    else:
        usual = [name for name in (*(spec.name for spec in specs), *INPUTS) if name in arrays]
        inputs = usual[:1] or (arrays if len(arrays) == 1 else [])
        if not inputs:
            raise UsageError(
                f"{path}: which array holds the samples? There are {', '.join(shapes) or 'none'}",
                fix="save them as x, and labels as y: numpy.savez(path, x=samples, y=labels)",
            )
        if inputs != ["x"]:
            options["inputs"] = inputs
    if label != "y":
        options["label"] = label
    rows = [shapes[name] for name in inputs]
    return Found(
        path, "arrays", "npz", options, rows[0][0] if rows[0] else None, tuple(row[1:] for row in rows)
    )


def _train_and_test(path: Path, specs: Sequence[TensorSpec]) -> tuple[Found, Found] | None:
    """Training and test arrays in one file, as in the files of public data sets."""
    shapes = Npz.shapes_of(path)
    if len(specs) > 1 or not {"x_train", "x_test"} <= set(shapes):
        return None
    train, test = (
        Found(
            path,
            "arrays",
            "npz",
            {
                "path": path,
                "inputs": [f"x_{name}"],
                "label": f"y_{name}" if f"y_{name}" in shapes else None,
            },
            *(shapes[f"x_{name}"][0], (shapes[f"x_{name}"][1:],)),
        )
        for name in ("train", "test")
    )
    return train, test


def _folder(path: Path, specs: Sequence[TensorSpec]) -> Found:
    inside = {each.name.lower(): each for each in path.iterdir() if not each.name.startswith(".")}
    annotations = [each for each in inside.values() if each.suffix.lower() == ".json"]
    if "images" in inside and "masks" in inside:
        options = {"images": inside["images"], "masks": inside["masks"], **image_options(path, specs)}
        return Found(path, "images with masks", "mask_folder", options, layout="NHWC")
    if "images" in inside and "labels" in inside:
        options = {"images": inside["images"], "labels": inside["labels"], **image_options(path, specs)}
        return Found(path, "images with boxes", "yolo", options, layout="NHWC")
    if len(annotations) == 1:
        return _coco(annotations[0], specs)
    suffixes = suffixes_in(path)
    if suffixes & image_folder.SUFFIXES:
        names = tuple(image_folder.ImageFolder(path=path).classes())
        options = {"path": path, **image_options(path, specs)}
        return Found(path, "images by class", "image_folder", options, files_in(path), (), names, "NHWC")
    if suffixes & wav_folder.SUFFIXES:
        names = tuple(wav_folder.WavFolder(path=path).classes())
        options = {"path": path, **recording_options(path, specs)}
        return Found(path, "recordings by class", "wav_folder", options, files_in(path), (), names)
    flat = any(each.suffix.lower() in image_folder.SUFFIXES for each in path.iterdir())
    raise UsageError(
        f"{path}: no images or recordings in subfolders, one per class"
        + (", but images without classes" if flat else ""),
        fix="put the files of each class in a subfolder of its name, or list files and labels in a .csv",
    )


def _csv(path: Path, specs: Sequence[TensorSpec]) -> Found:
    try:
        with path.open(encoding="utf-8-sig", newline="") as table:
            reader = csv.DictReader(table)
            columns = list(reader.fieldnames or ())
            rows = [row for _, row in zip(range(MAX_TABLE), reader, strict=False)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a CSV file in UTF-8: {error}", fix=OTHER) from error
    file = next((name for name in FILES if name in columns), None)
    label = next((name for name in CLASSES if name in columns), None)
    if file is None:
        raise UsageError(
            f"{path}: which column names the files? There are {', '.join(columns) or 'none'}",
            fix=f"call it {FILES[0]!r}, and the column of the labels {CLASSES[0]!r}",
        )
    words = sorted({(row[label] or "").strip() for row in rows}) if label else []
    classes = () if all(word.isdecimal() for word in words) else tuple(words)
    options: dict[str, Any] = {"path": path, "file": file, "label": label}
    if classes:
        options["classes"] = list(classes)
    images = any(not str(row[file]).lower().endswith(".npy") for row in rows)
    if images:
        options |= image_options(path, specs)
    return Found(path, "a table of files", "csv", options, len(rows), (), classes, "NHWC" if images else None)


def _coco(path: Path, specs: Sequence[TensorSpec]) -> Found:
    try:
        content = json.loads(path.read_bytes())
        names = [str(image["file_name"]) for image in content["images"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path}: not an annotation file with boxes in COCO's form: {error}", fix=OTHER
        ) from error
    folders = [path.parent, *(each for each in sorted(path.parent.iterdir()) if each.is_dir())]
    images = next((each for each in folders if names and (each / names[0]).is_file()), None)
    if images is None:
        raise UsageError(f"{path}: its images are neither beside it nor in a folder beside it", fix=OTHER)
    options = {"annotations": path, "images": images, **image_options(path, specs)}
    return Found(path, "images with boxes", "coco", options, len(names), layout="NHWC")
