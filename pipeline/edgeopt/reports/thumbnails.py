"""Thumbnails of evaluation samples for a report: PNG files in ``data:`` URIs."""

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array, Layout
from edgeopt.plugin import Sample
from edgeopt.results import Result

MAX_COUNT = 24
"""Maximum number of thumbnails in a report."""
SIDE = 48
"""Maximum length of a thumbnail's longer side, in pixels."""
MAX_CHARACTERS = 190_000
"""Maximum number of characters of all thumbnails together."""
MIN_SIDE = 8
"""Minimum side length in pixels of an input that is considered an image."""
MAX_ASPECT = 4
"""Maximum aspect ratio of an image."""
PREFIX = "data:image/png;base64,"

Pixels = NDArray[np.uint8]


def worst_flips(results: Iterable[Result], limit: int = MAX_COUNT) -> list[int]:
    """The samples to show: the worst of each artifact, then the second worst of each, and so on."""
    rows = [[flip.sample for flip in result.flips] for result in results if result.flips]
    longest = max(map(len, rows), default=0)
    ranked = (row[rank] for rank in range(longest) for row in rows if rank < len(row))
    return list(dict.fromkeys(ranked))[:limit]


def thumbnails(samples: Iterable[Sample], wanted: Sequence[int], layout: Layout | None) -> dict[int, str]:
    """Thumbnails of the samples ``wanted``, in that order, if their first input is an image.

    Args:
        samples: all samples, raw; reading stops after the last one needed.
        wanted: indices of the samples, most important first; the last ones are dropped if space is short.
        layout: layout of the raw samples; None: the channel axis is the one of size 1, 3 or 4.
    """
    pending = set(wanted)
    images: dict[int, Array] = {}
    for index, sample in enumerate(samples if pending else ()):
        if index not in pending:
            continue
        pending.remove(index)
        image = image_of(sample.inputs[0], layout)
        if image is None:
            return {}
        images[index] = image
        if not pending:
            break
    if not images:
        return {}
    low, high = _range(images.values())
    pictures: dict[int, str] = {}
    remaining = MAX_CHARACTERS
    for index in wanted:
        if index in images:
            picture = data_uri(_downscale(images[index], low, high))
            remaining -= len(picture)
            if remaining < 0:
                break
            pictures[index] = picture
    return pictures


def image_of(value: Array, layout: Layout | None) -> Array | None:
    """A raw sample as ``[height, width, 1 or 3]``; None if it is not an image.

    Arrays of an extreme aspect ratio, such as features over time, are not considered images.
    """
    if value.ndim == 2 and value.dtype == np.uint8:
        value = value[..., np.newaxis]
    elif value.ndim != 3:
        return None
    elif layout == "NCHW" or (layout is None and value.shape[-1] not in (1, 3, 4)):
        value = value.transpose(1, 2, 0)
    height, width, channels = value.shape
    if channels not in (1, 3, 4) or not MIN_SIDE <= min(height, width) >= max(height, width) / MAX_ASPECT:
        return None
    return value[..., : 3 if channels == 4 else channels]


def data_uri(pixels: Pixels) -> str:
    """Pixels ``[height, width, 1 or 3]`` as a PNG in a ``data:`` URI."""
    return PREFIX + base64.b64encode(png(pixels)).decode("ascii")


def png(pixels: Pixels) -> bytes:
    """A PNG file of 8-bit grey or RGB pixels ``[height, width, 1 or 3]``.

    Source: PNG specification, third edition (https://www.w3.org/TR/png-3/), sections 5.2 to 9.2.
    """
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    # Filter type 2 (Up) stores the difference to the byte above, since neighbouring rows are similar.
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _range(images: Iterable[Array]) -> tuple[float, float]:
    """The values of black and white: 0 and 255 for bytes, otherwise minimum and maximum."""
    image_list = list(images)
    if all(image.dtype == np.uint8 for image in image_list):
        return 0.0, 255.0
    extremes = [(float(image.min()), float(image.max())) for image in image_list]
    return min(low for low, _ in extremes), max(high for _, high in extremes)


def _downscale(image: Array, low: float, high: float) -> Pixels:
    """Downscale to at most ``SIDE`` pixels on the longer side, each pixel the mean of its area."""
    real = (image.astype(np.float64) - low) * (255.0 / ((high - low) or 1.0))
    height, width = real.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    for axis, size in ((0, height), (1, width)):
        starts = np.arange(max(1, round(size * scale))) * size // max(1, round(size * scale))
        counts = np.diff([*starts, size]).reshape(-1, *[1] * (2 - axis))
        real = np.add.reduceat(real, starts, axis=axis) / counts
    return np.clip(np.rint(real), 0, 255).astype(np.uint8)
