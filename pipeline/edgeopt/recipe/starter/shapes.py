"""The shape to propose for an input whose sizes are unknown, by the images that it is to be tried on."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from edgeopt.evaluation.datasets.image_folder import SUFFIXES
from edgeopt.model import TensorSpec

LOOKED_AT = 8
"""Images whose sizes are compared: if they differ, they are resized for the model, to an unknown size."""
GRAY = ("1", "L", "I", "I;16", "F")
"""Modes of images with one channel."""
UNKNOWN: tuple[int | str, ...] = (3, "H", "W")


def proposed_shape(data: Sequence[Path], spec: TensorSpec | None = None) -> str:
    """The shape as ``--shape`` takes it, of images in folders; letters stand for what is unknown."""
    if spec is not None and len(spec.shape) != 4:
        return ",".join(str(size or ("N" if axis else 1)) for axis, size in enumerate(spec.shape))
    channels, *sizes = _size(data)
    shape = (1, *sizes, channels) if spec is not None and spec.layout == "NHWC" else (1, channels, *sizes)
    own = spec.shape if spec is not None else (None,) * 4
    return ",".join(str(stated or size) for stated, size in zip(own, shape, strict=True))


def _size(data: Sequence[Path]) -> tuple[int | str, ...]:
    """Channels, height and width of the images."""
    found: set[tuple[int | str, ...]] = set()
    try:
        from PIL import Image
    except ImportError:
        return UNKNOWN
    try:
        for file in islice(_images(data), LOOKED_AT):
            with Image.open(file) as image:
                found.add((1 if image.mode in GRAY else 3, image.height, image.width))
    except (OSError, ValueError, Image.DecompressionBombError):  # reported where the data is read
        found.clear()
    return found.pop() if len(found) == 1 else UNKNOWN


def _images(data: Sequence[Path]) -> Iterator[Path]:
    return (file for path in data for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
