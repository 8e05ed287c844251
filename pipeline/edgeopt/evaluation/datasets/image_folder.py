"""Image files in one subfolder per class."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt

from edgeopt.config.files import file_digest
from edgeopt.evaluation.datasets._class_folders import class_names, labelled_files
from edgeopt.evaluation.datasets._sample_files import IMAGES, Color, read_image
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
        return digest_of(["image_folder", IMAGES, files, self.size, self.color])

    def classes(self) -> list[str]:
        """Class names, in the order of their labels.

        Raises:
            UsageError: the path is not a folder, or has no subfolders.
        """
        return class_names(self.path, "images")

    def _files(self) -> Iterator[tuple[int, Path]]:
        return labelled_files(self.path, SUFFIXES, "images", self.limit)
