"""Samples stored one per file: arrays and images."""

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array

Color: TypeAlias = Literal["rgb", "gray"]


def read_array(path: Path, where: str) -> Array:
    """Read one ``.npy`` file; pickled objects are rejected.

    Raises:
        UsageError: the file is missing, damaged or not an array of numbers.
    """
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, *MALFORMED) as error:
        raise UsageError(f"{where}: cannot read {path}: {error}", fix="save it with numpy.save") from error
    return array


def read_image(path: Path, where: str, color: Color, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read one image file as ``[height, width, channels]``, resized (bilinear) to ``size`` = height, width.

    Raises:
        UsageError: the file is missing, damaged or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # Pillow decodes lazily, here: a truncated file fails at this point.
            pixels = image.convert("RGB" if color == "rgb" else "L")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(
            f"{where}: cannot read the image {path}: {error}", fix="replace or remove the file"
        ) from error
    if size is not None and pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(pixels, np.uint8)
    return array if array.ndim == 3 else array[:, :, np.newaxis]
