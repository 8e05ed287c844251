"""Samples stored one per file: arrays and images."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import MissingPackageError, UsageError, install
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array

IMAGES = 2
"""Version of ``read_image``, for digests: 2 turns images by their EXIF data, and scales 16-bit ones."""

Color: TypeAlias = Literal["rgb", "gray"]
MAX_16_BITS = 65535


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

    It is turned as its EXIF orientation says. 16 bits are scaled to 8: divided by 257 and rounded.

    Raises:
        UsageError: the file is missing, damaged, not an image, or its values are not of 8 or 16 bits.
    """
    with _opened(path, where) as image:
        pixels = _eight_bits(image, path, where).convert("RGB" if color == "rgb" else "L")
    if size is not None and pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), pillow().Resampling.BILINEAR)
    array = np.asarray(pixels, np.uint8)
    return array if array.ndim == 3 else array[:, :, np.newaxis]


def read_mask(path: Path, where: str, size: tuple[int, int] | None) -> NDArray[np.int64]:
    """Read one mask as class indices ``[height, width]``, resized (nearest) to ``size`` = height, width.

    The class is the palette index, or the value of a gray image of 1, 8, 16 or 32 bits.

    Raises:
        UsageError: the file is missing, damaged or not an image, or has several values per pixel.
    """
    with _opened(path, where) as image:
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise UsageError(
                f"{where}: the mask {path} has the mode {image.mode}: masks hold one class index per pixel",
                fix="store it as a gray or palette image, such as an 8-bit PNG",
            )
        mask = np.asarray(image).astype(np.int64)
    if size is not None and mask.shape != size:
        # The pixel under the center of each new pixel, as Pillow, which does not resize all modes.
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, mask.shape, strict=True)
        )
        mask = mask[rows[:, np.newaxis], columns]
    return mask


def pillow() -> Any:
    """The module that reads images.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError(
            "reading images needs pillow, which is not installed", fix=install("data")
        ) from error
    return Image


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Any]:
    """An image (of an animation, the first), decoded completely and turned upright."""
    module = pillow()
    try:
        with module.open(path) as image:
            image.load()  # Pillow decodes lazily: a truncated file fails at this point
            yield _upright(image)
    except (module.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(
            f"{where}: cannot read the image {path}: {error}", fix="replace or remove the file"
        ) from error


def _upright(image: Any) -> Any:
    from PIL import ExifTags, ImageOps

    # Damaged metadata of complete pixels is ignored, as by viewers. Pillow reports it by errors and warnings.
    try:
        with warnings.catch_warnings(action="ignore"):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return ImageOps.exif_transpose(image) if turned else image
    except (OSError, *MALFORMED):
        return image


def _eight_bits(image: Any, path: Path, where: str) -> Any:
    """An image with at most 8 bits per channel. Pillow's own conversion clips to 0..255."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > MAX_16_BITS:
        kind = "floats" if image.mode == "F" else "integers"
        raise UsageError(
            f"{where}: the image {path} has {kind} from {low:g} to {high:g}, not values of 8 or 16 bits",
            fix="store it with 8 or 16 bits, or its numbers as a .npy file, which the csv dataset reads",
        )
    return pillow().fromarray(np.rint(values / (MAX_16_BITS / 255)).astype(np.uint8))
