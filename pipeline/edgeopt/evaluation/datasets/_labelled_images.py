"""Images with boxes or masks: listing, sizes, and boxes that follow a resized image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets._sample_files import pillow

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ORIENTATION = 0x0112
SIDEWAYS = range(5, 9)
"""Values of the EXIF tag for images that are shown turned by 90 degrees; Pillow turns TIFF files itself."""
MARGIN = 1.0
"""How far a box may extend outside the image, in pixels: annotations are rounded."""
UNREADABLE = (OSError, SyntaxError, ValueError)
"""Exceptions of Pillow for files that are damaged or not images."""


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, by name; subfolders are not read.

    Raises:
        UsageError: it is not a folder, it has no images, or two of them differ in their suffix only, so
            that they share a label.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", fix="set 'images' to the folder of the images")
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise UsageError(f"{folder}: no images", fix="set 'images' to the folder that contains them")
    first: dict[str, Path] = {}
    for file in files:
        other = first.setdefault(file.stem, file)
        if other is not file:
            raise UsageError(
                f"{folder}: {other.name} and {file.name} differ in their suffix only, so they share a label",
                fix="rename or remove one of them",
            )
    return files


def image_size(path: Path, where: str) -> tuple[int, int]:
    """Height and width of an image, from its header, turned as by ``read_image``.

    Raises:
        UsageError: the file is missing, damaged or not an image.
    """
    module = pillow()
    try:
        with module.open(path) as image:
            turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)
    except (*UNREADABLE, module.DecompressionBombError) as error:
        raise UsageError(
            f"{where}: cannot read the image {path}: {error}", fix="replace or remove the file"
        ) from error


def check_box(box: Sequence[float], size: tuple[int, int], where: str) -> None:
    """Check a box x1, y1, x2, y2 in an image of ``size`` = height, width; ``where`` names it.

    Raises:
        UsageError: the box is empty, or extends outside the image by more than ``MARGIN``.
    """
    x1, y1, x2, y2 = box
    height, width = size
    corners = ", ".join(f"{value:g}" for value in box)
    if not (x1 < x2 and y1 < y2):
        raise UsageError(
            f"{where}: the box is empty: its corners are {corners}", fix="fix or remove the annotation"
        )
    if min(x1, y1) < -MARGIN or x2 > width + MARGIN or y2 > height + MARGIN:
        raise UsageError(
            f"{where}: the box extends outside the image of {width} × {height}: its corners are {corners}",
            fix="fix or remove the annotation",
        )


def box_label(
    rows: Sequence[Sequence[float]], size: tuple[int, int], resized: tuple[int, int] | None
) -> NDArray[np.float32]:
    """The label ``[k, 6]`` of an image of ``size``: rows of x1, y1, x2, y2, class, and 1 for crowds.

    The boxes follow an image that is stretched to ``resized``.
    """
    boxes = np.array(rows, np.float64).reshape(-1, 6)
    if resized is not None:
        boxes[:, :4] *= np.tile([resized[1] / size[1], resized[0] / size[0]], 2)
    return boxes.astype(np.float32)
