"""Images with boxes from text files in YOLO's format."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError, shortened
from edgeopt.evaluation.datasets._labelled_images import box_label, check_box, image_size, images_in
from edgeopt.evaluation.datasets._sample_files import Color, read_image
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

MAX_DIGITS = 6
"""Most digits of a class index: float32 represents them exactly."""


class Yolo(Dataset):
    """One ``.txt`` file per image, with a line ``class cx cy width height`` per object.

    Coordinates are relative to the width and height of the image, 0..1 (Redmon and Farhadi 2016, Darknet).
    An image without a file has no objects. Samples are uint8 ``[height, width, channels]``, by file name;
    labels are float32 ``[k, 6]``: x1, y1, x2, y2 in pixels, class index, 0. With ``size``, images are
    stretched, and boxes with them.
    """

    requires: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str | None] = "data"

    images: ExistingPath = Field(description="folder of the images")
    labels: ExistingPath | None = Field(
        None,
        description="folder of the text files; default: 'labels' in place of the last 'images' of the path, "
        "if there is such a folder, otherwise that of the images",
    )
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="height and width to resize to")
    color: Color = Field("rgb", description="three channels or one")
    limit: int | None = Field(None, gt=0, description="read only the first images")

    def samples(self) -> Iterator[Sample]:
        for image, text in self._files():
            size = image_size(image, str(self.images))
            rows = [] if text is None else _rows(text, size)
            pixels = read_image(image, str(self.images), self.color, self.size)
            yield Sample((pixels,), box_label(rows, size, self.size))

    def digest(self) -> str:
        files = [
            [image.name, file_digest(image), None if text is None else file_digest(text)]
            for image, text in self._files()
        ]
        return digest_of(["yolo", files, self.size, self.color])

    def _files(self) -> list[tuple[Path, Path | None]]:
        """The images, each with its text file, if there is one."""
        folder = self.labels or self._beside()
        pairs = [(image, folder / f"{image.stem}.txt") for image in images_in(self.images)]
        present = [(image, text if text.is_file() else None) for image, text in pairs]
        if all(text is None for _, text in present):
            raise UsageError(
                f"{self.images}: no image has a text file in {folder}, such as {pairs[0][1].name}",
                fix="set 'labels' to the folder of the text files",
            )
        return present[: self.limit]

    def _beside(self) -> Path:
        parts = list(self.images.parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        folder = Path(*parts)
        return folder if folder.is_dir() else self.images


def _rows(path: Path, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """The objects of a text file as rows of x1, y1, x2, y2, class, 0, in an image of ``size``.

    Raises:
        UsageError: a line is malformed, or its box is empty or outside the image.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a text file in UTF-8: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(line.split(), size, f"{path}:{number}"))
    return rows


def _row(fields: list[str], size: tuple[int, int], where: str) -> tuple[float, ...]:
    wrong = partial(UsageError, fix="write one object per line: class cx cy width height")
    if len(fields) != 5:
        kind = " (a polygon?)" if len(fields) > 6 and len(fields) % 2 else ""
        raise wrong(f"{where}: {len(fields)} values{kind} instead of 5")
    category, *numbers = fields
    if not (category.isascii() and category.isdecimal() and len(category) <= MAX_DIGITS):
        raise wrong(f"{where}: the class {shortened(category, 40)!r} is not an integer from 0 to 999,999")
    try:
        cx, cy, width, height = map(float, numbers)
    except ValueError as error:
        raise wrong(f"{where}: {shortened(str(error), 100)}") from error
    if not all(math.isfinite(value) for value in (cx, cy, width, height)):
        raise wrong(f"{where}: a coordinate is not finite")
    if max(abs(cx), abs(cy), abs(width), abs(height)) > 2:
        raise wrong(f"{where}: coordinates in pixels; they must be relative to the image, 0 to 1")
    scale_y, scale_x = size
    corners = (
        (cx - width / 2) * scale_x,
        (cy - height / 2) * scale_y,
        (cx + width / 2) * scale_x,
        (cy + height / 2) * scale_y,
    )
    check_box(corners, size, where)
    return (*corners, int(category), 0)
