"""One value per sample as a short text, so that reports and baselines can be compared sample by sample."""

import base64
import binascii
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

LARGEST = 100_000_000
"""Samples that a text may claim to hold; compressed zeros could claim any number."""


class Samples(BaseModel):
    """Values of one metric for every evaluation sample, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=0, le=LARGEST)
    encoding: Literal["bits", "float32"] = Field(
        description="bits: right or wrong, eight samples to a byte; float32: any value, little-endian"
    )
    data: str = Field(description="compressed with zlib, then base64")

    @classmethod
    def pack(cls, values: NDArray[np.float64]) -> "Samples":
        """Values of 0 and 1 take a bit each and come back exactly; others are rounded to float32."""
        binary = bool(np.isin(values, (0.0, 1.0)).all())
        raw = np.packbits(values.astype(np.uint8)) if binary else values.astype("<f4")
        text = base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode("ascii")
        return cls(count=len(values), encoding="bits" if binary else "float32", data=text)

    def unpack(self) -> NDArray[np.float64]:
        """The values again.

        Raises:
            ValueError: the text is damaged.
        """
        size = (self.count + 7) // 8 if self.encoding == "bits" else 4 * self.count
        try:
            packed = base64.b64decode(self.data, validate=True)
            unpacking = zlib.decompressobj()
            raw = unpacking.decompress(packed, size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"damaged values of samples: {error}") from error
        if len(raw) != size:
            raise ValueError(f"damaged values of samples: {self.count} were announced")
        if self.encoding == "bits":
            return np.unpackbits(np.frombuffer(raw, np.uint8))[: self.count].astype(np.float64)
        return np.frombuffer(raw, "<f4").astype(np.float64)
