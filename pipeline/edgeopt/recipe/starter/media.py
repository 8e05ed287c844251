"""Images and recordings as inputs of a model: the options of their datasets, and the files of a folder."""

import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets import wav_folder
from edgeopt.model import TensorSpec
from edgeopt.recipe.starter.shapes import proposed_shape

OTHER = "write the recipe with edgeopt init MODEL, and name the data there: docs/recipe.md#datasets"


def image_options(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Size and colour of images for the input of a model."""
    if len(specs) != 1 or len(specs[0].shape) != 4 or None in specs[0].shape[1:]:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        unknown = not specs or (len(specs) == 1 and len(specs[0].shape) == 4)
        fix = OTHER
        if unknown:
            fix = f"add the shape of the input: --shape {proposed_shape([path], next(iter(specs), None))}"
        elif len(specs) == 1 and len(specs[0].shape) == 3:
            fix = f"a shape has batch and channels, too: --shape {proposed_shape([path])}; or {OTHER}"
        raise UsageError(
            f"{path} has images, but "
            + (f"the model takes {shapes}" if specs else "the size of the model's input is unknown"),
            fix=fix,
        )
    _, *sizes = specs[0].shape
    height, width, channels = (sizes[1], sizes[2], sizes[0]) if is_nchw(specs[0]) else sizes
    return {"size": [height, width], **({"color": "gray"} if channels == 1 else {})}


def is_nchw(spec: TensorSpec) -> bool:
    """Whether the channels of an image come first; a guess by their number where the layout is unknown."""
    return spec.layout == "NCHW" or (spec.layout is None and spec.shape[-1] not in (1, 3, 4))


def recording_options(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Duration of recordings for the input of a model: one of raw samples, ``[1, n]`` or ``[1, n, 1]``."""
    sizes = [size for size in specs[0].shape[1:] if size != 1] if len(specs) == 1 else []
    if len(sizes) != 1:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs) or "an unknown shape"
        raise UsageError(
            f"{path} has recordings, but the model takes {shapes}, and not the samples of a recording",
            fix="compute its features as in training, and save them: numpy.savez('data.npz', x=..., y=...)",
        )
    (length,) = sizes
    file = next(each for each in listed(path) if each.suffix.lower() in wav_folder.SUFFIXES)
    try:
        with wave.open(str(file), "rb") as recording:
            rate = recording.getframerate()
    except (wave.Error, EOFError, OSError) as error:
        raise UsageError(f"cannot read the recording {file}: {error}", fix="save it as PCM") from error
    options = {"rate": rate, "seconds": (length or rate) / rate}
    return options | ({"channels": "keep"} if len(specs[0].shape) == 3 else {})


def listed(folder: Path) -> Iterator[Path]:
    """The files in the subfolders, which are the classes."""
    for each in sorted(folder.iterdir()):
        if each.is_dir() and not each.name.startswith("."):
            yield from sorted(file for file in each.iterdir() if not file.name.startswith("."))


def suffixes_in(folder: Path) -> set[str]:
    return {file.suffix.lower() for file in listed(folder)}


def files_in(folder: Path) -> int:
    return sum(1 for _ in listed(folder))
