"""Thumbnails of evaluation samples for a report: PNG files in ``data:`` URIs."""

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array, Layout
from edgeopt.plugin import Sample
from edgeopt.results import OVERLAYS, Reference, Result

MIN_SIDE = 8
"""Minimum side length in pixels of an input that is considered an image."""
MAX_ASPECT = 4
"""Maximum aspect ratio of an image."""
PREFIX = "data:image/png;base64,"
COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""PNG's types of colour, by the number of channels."""

Pixels = NDArray[np.uint8]


class Room(NamedTuple):
    """Limits of the thumbnails of a report."""

    samples: int
    side: int
    """Maximum length of a thumbnail's longer side, in pixels."""
    characters: int
    """Maximum number of characters of all thumbnails together."""


PLAIN = Room(24, 48, 190_000)
OVERLAID = Room(48, 96, 400_000)
"""If something is drawn over them."""


class Thumbnails(NamedTuple):
    """Pictures of samples."""

    pictures: dict[int, str]
    """PNG files in ``data:`` URIs, by sample."""
    size: tuple[int, int] | None = None
    """Height and width of the samples in pixels; None if they are no images."""


def room_for(references: Iterable[Reference]) -> Room:
    """The limits for what is drawn of these samples."""
    drawn = (drawing for one in references for drawing in (one.label, one.source))
    return OVERLAID if any(isinstance(drawing, OVERLAYS) for drawing in drawn) else PLAIN


def worst_samples(results: Iterable[Result], limit: int = PLAIN.samples) -> list[int]:
    """The samples to show: the one that changed most in each artifact, then the second one, and so on."""
    rows = [[change.sample for change in found.samples] for row in results for found in row.findings]
    longest = max(map(len, rows), default=0)
    ranked = (row[rank] for rank in range(longest) for row in rows if rank < len(row))
    return list(dict.fromkeys(ranked))[:limit]


def thumbnails(
    samples: Iterable[Sample], wanted: Sequence[int], layout: Layout | None, room: Room = PLAIN
) -> Thumbnails:
    """Thumbnails of the samples ``wanted``, in that order, if their first input is an image.

    Args:
        samples: all samples, raw; reading stops after the last one needed.
        wanted: indices of the samples, most important first; the last ones are dropped if space is short.
        layout: layout of the raw samples; None: the channel axis is the one of size 1, 3 or 4.
        room: limits of their size.
    """
    pending = set(wanted)
    images: dict[int, Array] = {}
    for index, sample in enumerate(samples if pending else ()):
        if index not in pending:
            continue
        pending.remove(index)
        image = image_of(sample.inputs[0], layout)
        if image is None:
            return Thumbnails({})
        images[index] = image
        if not pending:
            break
    if not images:
        return Thumbnails({})
    low, high = _range(images.values())
    pictures: dict[int, str] = {}
    remaining = room.characters
    for index in wanted:
        if index in images:
            picture = data_uri(_downscale(images[index], low, high, room.side))
            remaining -= len(picture)
            if remaining < 0:
                break
            pictures[index] = picture
    height, width = next(iter(images.values())).shape[:2]
    return Thumbnails(pictures, (height, width))


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
    """Pixels ``[height, width, 1, 3 or 4]`` as a PNG in a ``data:`` URI."""
    return PREFIX + base64.b64encode(png(pixels)).decode("ascii")


def png(pixels: Pixels) -> bytes:
    """A PNG file of 8-bit grey, RGB or RGBA pixels ``[height, width, 1, 3 or 4]``.

    Source: PNG specification, third edition (https://www.w3.org/TR/png-3/), sections 5.2 to 9.2.
    """
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    # Filter type 2 (Up) stores the difference to the byte above, since neighbouring rows are similar.
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
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


def _downscale(image: Array, low: float, high: float, side: int) -> Pixels:
    """Downscale to at most ``side`` pixels on the longer side, each pixel the mean of its area."""
    real = (image.astype(np.float64) - low) * (255.0 / ((high - low) or 1.0))
    height, width = real.shape[:2]
    scale = min(1.0, side / max(height, width))
    for axis, size in ((0, height), (1, width)):
        starts = np.arange(max(1, round(size * scale))) * size // max(1, round(size * scale))
        counts = np.diff([*starts, size]).reshape(-1, *[1] * (2 - axis))
        real = np.add.reduceat(real, starts, axis=axis) / counts
    return np.clip(np.rint(real), 0, 255).astype(np.uint8)
