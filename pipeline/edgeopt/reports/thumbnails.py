"""Small pictures of evaluation samples, made once for a report: PNG files in ``data:`` URIs."""

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.model import Array, Layout
from edgeopt.plugin import Sample
from edgeopt.results import Result

MOST = 24
"""Pictures in one report."""
SIDE = 48
"""Pixels of a picture's longer side, at most."""
ROOM = 190_000
"""Characters of all pictures together."""
SMALLEST = 8
"""Pixels of a side below which an input is no image."""
LONGEST = 4
"""Times its shorter side that an image's longer side may be."""
PREFIX = "data:image/png;base64,"

Pixels = NDArray[np.uint8]


def worst_flips(results: Iterable[Result], most: int = MOST) -> list[int]:
    """Which samples to show: the worst of every artifact, then the second worst of each, and so on."""
    rows = [[flip.sample for flip in result.flips] for result in results if result.flips]
    longest = max(map(len, rows), default=0)
    ranked = (row[rank] for rank in range(longest) for row in rows if rank < len(row))
    return list(dict.fromkeys(ranked))[:most]


def thumbnails(samples: Iterable[Sample], wanted: Sequence[int], layout: Layout | None) -> dict[int, str]:
    """A picture for each sample of ``wanted``, in that order, where its first input is an image.

    Args:
        samples: all of them, raw; no more are read than are needed.
        wanted: their indices, the most important first: it is those that fit.
        layout: where the channels of raw samples are; None: where one, three or four values are.
    """
    left = set(wanted)
    images: dict[int, Array] = {}
    for index, sample in enumerate(samples if left else ()):
        if index not in left:
            continue
        left.remove(index)
        image = image_of(sample.inputs[0], layout)
        if image is None:
            return {}
        images[index] = image
        if not left:
            break
    if not images:
        return {}
    low, high = _range(images.values())
    found: dict[int, str] = {}
    room = ROOM
    for index in wanted:
        if index in images:
            picture = data_uri(_shrunk(images[index], low, high))
            room -= len(picture)
            if room < 0:
                break
            found[index] = picture
    return found


def image_of(value: Array, layout: Layout | None) -> Array | None:
    """A raw sample as ``[height, width, 1 or 3]``; None where it is no image.

    What is much longer than wide, such as features over time, is none.
    """
    if value.ndim == 2 and value.dtype == np.uint8:
        value = value[..., np.newaxis]
    elif value.ndim != 3:
        return None
    elif layout == "NCHW" or (layout is None and value.shape[-1] not in (1, 3, 4)):
        value = value.transpose(1, 2, 0)
    height, width, channels = value.shape
    if channels not in (1, 3, 4) or not SMALLEST <= min(height, width) >= max(height, width) / LONGEST:
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
    # Filter 2: each byte less the one above it, which is what neighbouring rows have in common.
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _range(images: Iterable[Array]) -> tuple[float, float]:
    """What becomes black and what white: of bytes 0 and 255, of others the least and the greatest."""
    several = list(images)
    if all(image.dtype == np.uint8 for image in several):
        return 0.0, 255.0
    ends = [(float(image.min()), float(image.max())) for image in several]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _shrunk(image: Array, low: float, high: float) -> Pixels:
    """An image of at most ``SIDE`` pixels on its longer side: every pixel the mean of those it stands for."""
    real = (image.astype(np.float64) - low) * (255.0 / ((high - low) or 1.0))
    height, width = real.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    for axis, size in ((0, height), (1, width)):
        starts = np.arange(max(1, round(size * scale))) * size // max(1, round(size * scale))
        counts = np.diff([*starts, size]).reshape(-1, *[1] * (2 - axis))
        real = np.add.reduceat(real, starts, axis=axis) / counts
    return np.clip(np.rint(real), 0, 255).astype(np.uint8)
