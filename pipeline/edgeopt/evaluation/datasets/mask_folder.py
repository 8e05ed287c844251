"""Images with one class index per pixel."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets._labelled_images import UNREADABLE, image_size, images_in
from edgeopt.evaluation.datasets._sample_files import Color, pillow, read_image
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

INDICES = ("1", "L", "P", "I", "I;16", "I;16B")
"""Modes of Pillow with one value per pixel."""
BIT_DEPTH = 24
"""Position of the bit depth in a PNG file; the colour type follows (W3C PNG, 11.2.1)."""


class MaskFolder(Dataset):
    """Images in one folder and masks in another, as PNG files of the same name.

    The values of a mask are class indices: grey levels of 1 to 16 bits, or the indices of a palette; colours
    are never converted. Samples are uint8 ``[height, width, channels]``, by file name; labels are int64
    ``[height, width]``. With ``size``, images are resized bilinearly, and masks to the nearest pixel.
    """

    requires: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str | None] = "data"

    images: ExistingPath = Field(description="folder of the images")
    masks: ExistingPath = Field(description="folder of the .png files with class indices")
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="height and width to resize to")
    color: Color = Field("rgb", description="three channels or one")
    limit: int | None = Field(None, gt=0, description="read only the first images")

    def samples(self) -> Iterator[Sample]:
        for image, file in self._files():
            height, width = image_size(image, str(self.images))
            mask = _read_mask(file)
            if mask.shape != (height, width):
                raise UsageError(
                    f"{file} is {mask.shape[1]} × {mask.shape[0]}, but its image {image.name} is "
                    f"{width} × {height}",
                    fix="provide a mask of the size of its image",
                )
            pixels = read_image(image, str(self.images), self.color, self.size)
            yield Sample((pixels,), mask if self.size is None else _resized(mask, self.size))

    def digest(self) -> str:
        files = [[image.name, file_digest(image), file_digest(mask)] for image, mask in self._files()]
        return digest_of(["mask_folder", files, self.size, self.color])

    def _files(self) -> list[tuple[Path, Path]]:
        """The images, each with its mask."""
        pairs = [(image, self.masks / f"{image.stem}.png") for image in images_in(self.images)[: self.limit]]
        for image, mask in pairs:
            if not mask.is_file():
                raise UsageError(
                    f"{image.name} has no mask: no such file: {mask}",
                    fix="save it as a PNG file of the name of the image, or remove the image",
                )
        return pairs


def _read_mask(path: Path) -> NDArray[np.int64]:
    """The class indices of a mask ``[height, width]``.

    Raises:
        UsageError: the file is damaged, not a PNG file, or has colours.
    """
    module = pillow()
    try:
        with module.open(path, formats=("PNG",)) as image:
            mode = image.mode
            values = np.asarray(image)
        with path.open("rb") as file:
            depth, kind = file.read(BIT_DEPTH + 2)[BIT_DEPTH:]
    except (*UNREADABLE, module.DecompressionBombError) as error:
        raise UsageError(
            f"cannot read the mask {path}: {error}", fix="save class indices as a PNG file"
        ) from error
    if mode not in INDICES or values.ndim != 2:
        raise UsageError(
            f"{path}: a mask of mode {mode} has colours, not class indices",
            fix="save one value per pixel, as grey levels or as indices of a palette",
        )
    if kind == 0 and depth in (2, 4):
        # Pillow stretches these grey levels to 0..255.
        values = values // (255 // ((1 << depth) - 1))
    return values.astype(np.int64)


def _resized(mask: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """The nearest pixels: those whose centres the bilinear resize of an image interpolates."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
