"""The handwritten digits of scikit-learn: a small real dataset that needs no download."""

import functools
import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import MissingPackageError, UsageError, install
from edgeopt.plugin import Dataset, Sample, digest_of

CONTENT = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""sha256 of all images and labels as uint8, in scikit-learn's order."""

PARTS = {"train": slice(0, 1097), "calibration": slice(1097, 1297), "evaluation": slice(1297, 1797)}


class Digits(Dataset):
    """1,797 handwritten digits, uint8 ``[8, 8, 1]`` with values 0..16, labels 0..9.

    The split is fixed: all samples in the order of ``numpy.random.RandomState(0).permutation(1797)``,
    the first 1,097 for training, the next 200 for calibration, the last 500 for evaluation.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """

    requires: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    extra: ClassVar[str | None] = "data"

    part: Literal["train", "calibration", "evaluation"] = Field(description="which part of the fixed split")
    limit: int | None = Field(None, gt=0, description="read only the first samples of the part")

    def samples(self) -> Iterator[Sample]:
        images, labels = _load()
        order = np.random.RandomState(0).permutation(len(labels))[PARTS[self.part]][: self.limit]
        for image, label in zip(images[order], labels[order], strict=True):
            yield Sample((image[:, :, np.newaxis],), int(label))

    def digest(self) -> str:
        # The content is fixed and verified on reading, so nothing needs to be imported here.
        return digest_of(["digits", CONTENT, self.part, self.limit])


@functools.cache  # one command asks for several parts, several times
def _load() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    # Read the package's data file directly: importing scikit-learn takes seconds.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            "the digits are part of scikit-learn, which is not installed", fix=install("data")
        )
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path) as file:
            table = np.array([line.split(b",") for line in file.read().splitlines()]).astype(np.float32)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the digits in {path}: {error}",
            fix="reinstall scikit-learn: pip install --force-reinstall scikit-learn",
        ) from error
    images = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8)
    labels = table[:, -1].astype(np.uint8)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != CONTENT:
        raise UsageError(
            "the digits of the installed scikit-learn do not have the expected content",
            fix="reinstall it: pip install --force-reinstall scikit-learn",
        )
    return images, labels
