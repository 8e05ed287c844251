"""Drawings: how a report shows one decision. They know neither the task that decided nor the renderer."""

import base64
import binascii
import math
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias, TypeVar

from pydantic import Field

from edgeopt.results.measurement import Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BOXES = 20
"""Maximum number of boxes of a drawing. The following limit other parts of one."""
MAX_SIDE = 64
MAX_POINTS = 40
MAX_CLASSES = 8
MAX_TOKENS = 60
MAX_NUMBERS = 8
DIGITS = 4
"""Significant digits of numbers, enough for a picture."""

Scalar = TypeVar("Scalar", bound="np.generic")


class Box(Value):
    """An object in a picture."""

    corners: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the sample")
    label: int
    score: float | None = None


class Boxes(Value):
    """Objects in a picture, by decreasing score."""

    kind: Literal["boxes"] = "boxes"
    boxes: tuple[Box, ...]
    count: int = Field(description="number of all boxes, of which the first ones are kept")

    @classmethod
    def of(
        cls, corners: "NDArray[np.float64]", labels: Iterable[int], scores: Iterable[float | None]
    ) -> Self:
        """Boxes ``[k, 4]`` with their classes and scores ``[k]``; those that are not finite are left out."""
        boxes = [
            Box(corners=(x1, y1, x2, y2), label=label, score=rounded(score))
            for row, label, score in zip(corners.tolist(), labels, scores, strict=True)
            for x1, y1, x2, y2 in [[rounded(value) for value in row]]
            if x1 is not None and y1 is not None and x2 is not None and y2 is not None
        ]
        return cls(boxes=tuple(boxes[:MAX_BOXES]), count=len(boxes))


class Raster(Value):
    """Base of drawings of pixels, reduced to at most 64 on the longer side."""

    height: int = Field(ge=1, le=MAX_SIDE)
    width: int = Field(ge=1, le=MAX_SIDE)
    data: str = Field(description="the values row by row, compressed with zlib, then base64")

    def _bytes(self, size: int) -> bytes:
        """The decompressed data.

        Raises:
            ValueError: they are damaged.
        """
        try:
            packed = base64.b64decode(self.data, validate=True)
            # One byte more than expected is enough to detect excess data, and bounds memory.
            raw = zlib.decompressobj().decompress(packed, size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"damaged picture: {error}") from error
        if len(raw) != size:
            raise ValueError(f"damaged picture: {size} bytes were declared")
        return raw


class Mask(Raster):
    """A class for every pixel: int16, little-endian; negative for none."""

    kind: Literal["mask"] = "mask"

    @classmethod
    def of(cls, classes: "NDArray[np.int64]") -> Self:
        """A mask ``[height, width]``; a larger one is sampled, so that classes are not mixed."""
        import numpy as np

        limits = np.iinfo(np.int16)
        sampled = _sampled(np.clip(classes, limits.min, limits.max))
        return cls(
            height=sampled.shape[0], width=sampled.shape[1], data=_packed(sampled.astype("<i2").tobytes())
        )

    def unpack(self) -> "NDArray[np.int16]":
        """The classes ``[height, width]``; raises ValueError if they are damaged."""
        import numpy as np

        raw = np.frombuffer(self._bytes(2 * self.height * self.width), "<i2")
        return raw.reshape(self.height, self.width).astype(np.int16)


class Picture(Raster):
    """An image that the model returned: one byte per channel, grey or RGB."""

    kind: Literal["picture"] = "picture"
    channels: Literal[1, 3]

    @classmethod
    def of(cls, values: "NDArray[np.float64]", low: float, high: float) -> Self:
        """An image ``[height, width, 1 or 3]`` whose values from ``low`` to ``high`` are black to white."""
        import numpy as np

        scaled = np.nan_to_num((_sampled(values) - low) * (255.0 / ((high - low) or 1.0)))
        pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        height, width, channels = pixels.shape
        return cls(
            height=height, width=width, channels=3 if channels == 3 else 1, data=_packed(pixels.tobytes())
        )

    def unpack(self) -> "NDArray[np.uint8]":
        """The pixels ``[height, width, channels]``; raises ValueError if they are damaged."""
        import numpy as np

        shape = (self.height, self.width, self.channels)
        return np.frombuffer(self._bytes(math.prod(shape)), np.uint8).reshape(shape)


class Points(Value):
    """Places in a picture, such as keypoints, in the order of the model; null for those not finite."""

    kind: Literal["points"] = "points"
    points: tuple[tuple[float, float] | None, ...] = Field(description="x and y in pixels of the sample")
    count: int

    @classmethod
    def of(cls, places: "NDArray[np.float64]") -> Self:
        """Places ``[k, 2]``: x and y."""
        pairs = [(rounded(x), rounded(y)) for x, y in places[:MAX_POINTS].tolist()]
        return cls(
            points=tuple(None if x is None or y is None else (x, y) for x, y in pairs), count=len(places)
        )


class ClassScore(Value):
    """A class that applies to a sample."""

    label: int
    score: float | None = None


class Classes(Value):
    """The classes of a sample, as far as they apply, by decreasing score."""

    kind: Literal["classes"] = "classes"
    classes: tuple[ClassScore, ...]
    count: int

    @classmethod
    def of(cls, labels: Iterable[int], scores: Iterable[float | None]) -> Self:
        """Classes and their scores."""
        known = [
            ClassScore(label=label, score=rounded(score)) for label, score in zip(labels, scores, strict=True)
        ]
        return cls(classes=tuple(known[:MAX_CLASSES]), count=len(known))


class Tokens(Value):
    """A sequence of classes, such as the characters of a line."""

    kind: Literal["tokens"] = "tokens"
    tokens: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, tokens: "NDArray[np.int64]") -> Self:
        """Tokens ``[k]``."""
        return cls(tokens=tuple(int(token) for token in tokens[:MAX_TOKENS]), count=len(tokens))


class Numbers(Value):
    """Numbers without a further meaning; null for those not finite."""

    kind: Literal["numbers"] = "numbers"
    numbers: tuple[float | None, ...]
    count: int

    @classmethod
    def of(cls, values: "NDArray[np.float64]") -> Self:
        """Values of any shape."""
        flat = values.reshape(-1)
        return cls(numbers=tuple(rounded(value) for value in flat[:MAX_NUMBERS].tolist()), count=flat.size)


Drawing: TypeAlias = Annotated[
    Boxes | Mask | Picture | Points | Classes | Tokens | Numbers, Field(discriminator="kind")
]
"""How a report shows one decision."""

OVERLAYS = (Boxes, Mask, Points)
"""Drawings that are laid over a picture of the sample."""


def rounded(value: float | None) -> float | None:
    """The value with the digits of a drawing; None if it is not finite: JSON has neither infinity nor NaN."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def _packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def _sampled(values: "NDArray[Scalar]") -> "NDArray[Scalar]":
    """The first two axes reduced to at most ``MAX_SIDE``, by the values in the middle of each area."""
    import numpy as np

    height, width = values.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    rows, columns = (
        ((np.arange(max(1, round(size * scale))) + 0.5) * size / max(1, round(size * scale))).astype(int)
        for size in (height, width)
    )
    sampled: NDArray[Scalar] = values[rows[:, None], columns]
    return sampled
