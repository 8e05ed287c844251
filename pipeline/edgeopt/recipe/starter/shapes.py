"""The shape to propose for an input whose sizes are unknown, by the images that it is to be tried on."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from edgeopt.evaluation.datasets.image_folder import SUFFIXES
from edgeopt.model import TensorSpec
from edgeopt.recipe.starter.networks import Network

LOOKED_AT = 8
"""Images whose sizes are compared: if they differ, they are resized for the model, to an unknown size."""
GRAY = ("1", "L", "I", "I;16", "F")
"""Modes of images with one channel."""
UNKNOWN: tuple[int | str, ...] = (3, "H", "W")


class FirstWeight(NamedTuple):
    """The weight of the first layer, and the shape of its input; letters stand for unknown sizes."""

    name: str
    weight: tuple[int, ...]
    shape: tuple[int | str, ...]

    @property
    def known(self) -> tuple[int, ...]:
        """The whole shape; empty if some of it is unknown."""
        sizes = tuple(size for size in self.shape if isinstance(size, int))
        return sizes if len(sizes) == len(self.shape) else ()

    def __str__(self) -> str:
        return f"{self.name} {list(self.weight)}"


def first_weight(
    weights: Mapping[str, tuple[int, ...]], network: Network | None = None
) -> FirstWeight | None:
    """The first layer of a network by its weights: a dense layer or a convolution; None for any other.

    Names in alphabetical order, as in safetensors, say nothing about the first layer; the code does.
    """
    names = [name for name, shape in weights.items() if len(shape) > 1]
    for part in network.layers if network is not None else ():
        if own := [name for name in names if f".{part}." in f".{name}"]:
            names = own
            break
    else:
        if len(names) > 1 and names == sorted(names):
            return None
    if not names:
        return None
    name, shape = names[0], weights[names[0]]
    stem, _, last = name.rpartition(".")
    if last != "weight":
        return None
    if len(shape) == 2:  # of an embedding, which has no bias, the input is numbers of tokens
        return FirstWeight(name, shape, (1, shape[1])) if weights.get(f"{stem}.bias") == shape[:1] else None
    sizes: tuple[int | str, ...] = ("H", "W") if len(shape) == 4 else ("N",)
    return FirstWeight(name, shape, (1, shape[1], *sizes)) if len(shape) in (3, 4) else None


def proposed_shape(
    data: Sequence[Path], spec: TensorSpec | None = None, first: FirstWeight | None = None
) -> str:
    """The shape as ``--shape`` takes it, of images in folders; letters stand for what is unknown."""
    if spec is None and first is not None:
        last = _size(data)[1:] if len(first.shape) == 4 else first.shape[2:]
        return ",".join(map(str, (*first.shape[:2], *last)))
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
