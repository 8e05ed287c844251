"""Image files in one subfolder per class."""

from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets._sample_files import Color, read_image
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(Dataset):
    """``folder/<class>/<image>``: labels are the indices of the sorted subfolder names.

    Samples are uint8 ``[height, width, channels]``. The classes alternate, so that the first few samples
    cover all of them. Files without an image suffix are ignored.
    """

    requires: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str | None] = "data"

    path: ExistingPath = Field(description="folder with one subfolder per class")
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="height and width to resize to")
    color: Color = Field("rgb", description="three channels or one")
    limit: int | None = Field(None, gt=0, description="read only the first samples")

    def samples(self) -> Iterator[Sample]:
        for label, file in self._files():
            yield Sample((read_image(file, str(self.path), self.color, self.size),), label)

    def digest(self) -> str:
        files = [[label, file.name, file_digest(file)] for label, file in self._files()]
        return digest_of(["image_folder", files, self.size, self.color])

    def classes(self) -> list[str]:
        """Class names, in the order of their labels.

        Raises:
            UsageError: the path is not a folder, or has no subfolders.
        """
        if not self.path.is_dir():
            raise UsageError(
                f"{self.path} is not a folder", fix="set 'path' to the folder with one subfolder per class"
            )
        names = sorted(p.name for p in self.path.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not names:
            raise UsageError(
                f"{self.path}: no subfolders", fix="put the images of each class in its own subfolder"
            )
        return names

    def _files(self) -> Iterator[tuple[int, Path]]:
        columns = [
            [
                (label, file)
                for file in sorted((self.path / name).iterdir())
                if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
            ]
            for label, name in enumerate(self.classes())
        ]
        in_turn = (entry for row in zip_longest(*columns) for entry in row if entry is not None)
        return islice(in_turn, self.limit)
