"""Images with boxes from an annotation file in COCO's format."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar

from pydantic import Field, PositiveInt

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError, shortened
from edgeopt.evaluation.datasets._labelled_images import box_label, check_box, image_size
from edgeopt.evaluation.datasets._sample_files import Color, read_image
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

T = TypeVar("T")


class _Box(NamedTuple):
    annotation: int
    corners: tuple[float, float, float, float]
    category: int
    crowd: int


class _Image(NamedTuple):
    id: int
    file: str
    size: tuple[int, int] | None
    """Height and width, if given."""
    boxes: list[_Box]


class Coco(Dataset):
    """Objects of an ``instances_*.json`` file (Lin et al. 2014): boxes, categories, and crowds.

    Samples are uint8 ``[height, width, channels]``, by increasing image id. Labels are float32 ``[k, 6]``:
    x1, y1, x2, y2 in pixels, class index, and ``iscrowd``. Class indices count the categories by increasing
    id. With ``size``, images are stretched, and boxes with them. Segmentations and areas are not read.
    """

    requires: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str | None] = "data"

    annotations: ExistingPath = Field(description="the .json file")
    images: ExistingPath | None = Field(
        None, description="folder of the images; default: that of the annotations"
    )
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="height and width to resize to")
    color: Color = Field("rgb", description="three channels or one")
    limit: int | None = Field(None, gt=0, description="read only the first images")

    def samples(self) -> Iterator[Sample]:
        for image in self._images():
            path = self._file(image)
            where = f"{self.annotations}: image {image.id}"
            size = image_size(path, where)
            if image.size is not None and image.size != size:
                raise UsageError(
                    f"{where}: {path} is {size[1]} × {size[0]}, but the annotations are of an image of "
                    f"{image.size[1]} × {image.size[0]}",
                    fix="use the image that was annotated: it may have been resized or rotated since",
                )
            for box in image.boxes:
                check_box(box.corners, size, f"{self.annotations}: annotation {box.annotation}")
            rows = [(*box.corners, box.category, box.crowd) for box in image.boxes]
            pixels = read_image(path, where, self.color, self.size)
            yield Sample((pixels,), box_label(rows, size, self.size))

    def digest(self) -> str:
        files = [file_digest(self._file(image)) for image in self._images()]
        return digest_of(["coco", file_digest(self.annotations), files, self.size, self.color])

    def classes(self) -> list[str]:
        """Class names, in the order of their indices.

        Raises:
            UsageError: the annotations are malformed.
        """
        return _read(self.annotations)[1]

    def _images(self) -> list[_Image]:
        return _read(self.annotations)[0][: self.limit]

    def _file(self, image: _Image) -> Path:
        """The file of an image, which must be inside the folder of the images."""
        folder = (self.images or self.annotations.parent).resolve()
        where = f"{self.annotations}: image {image.id}"
        name = shortened(image.file, 200)
        try:
            path = (folder / image.file).resolve()
            inside = ".." not in Path(image.file).parts and path.is_relative_to(folder)
            present = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a null byte, or a loop of symbolic links
            raise UsageError(f"{where}: the file name {name!r} is not a path: {error}") from error
        if not inside:
            raise UsageError(
                f"{where}: the file {name!r} is outside the folder of the images, {folder}",
                fix="give file names relative to the folder, without '..' or links that leave it",
            )
        if not present:
            raise UsageError(f"{where}: no such file: {path}", fix="set 'images' to the folder of the images")
        return path


def _read(path: Path) -> tuple[list[_Image], list[str]]:
    """All images by increasing id, and the class names.

    Raises:
        UsageError: the file is not JSON, or not in COCO's format; the message names the entry.
    """
    try:
        content = json.loads(path.read_bytes(), parse_constant=_not_finite)
        if not isinstance(content, dict):
            raise ValueError("it is not an object with 'images', 'annotations' and 'categories'")
        names = _categories(content)
        indices = {category: index for index, category in enumerate(names)}
        images = _listed(content, "images", _image)
        for box_of, box in _listed(content, "annotations", lambda item: _box(item, indices)).values():
            if box_of not in images:
                raise ValueError(f"annotation {box.annotation}: no image has the id {box_of}")
            images[box_of].boxes.append(box)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not annotations in COCO's format: {error}",
            fix="provide an 'instances' file: https://cocodataset.org/#format-data",
        ) from error
    return [images[key] for key in sorted(images)], list(names.values())


def _categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Class names by increasing category id."""
    names = _listed(content, "categories", lambda item: _text(item, "name"))
    if not names:
        raise ValueError("'categories' is empty")
    return dict(sorted(names.items()))


def _listed(content: Mapping[str, Any], key: str, parse: Callable[[Mapping[str, Any]], T]) -> dict[int, T]:
    """The entries of a list by their ids; errors name the entry by its id, or by its position."""
    items = content.get(key)
    if not isinstance(items, list):
        raise ValueError(f"{key!r} is not a list" if key in content else f"it has no {key!r}")
    what = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    parsed: dict[int, T] = {}
    for position, item in enumerate(items):
        name = f"entry {position} of {key!r}"
        try:
            if not isinstance(item, dict):
                raise ValueError("it is not an object")
            identity = _integer(item, "id")
            name = f"{what} {identity}"
            if identity in parsed:
                raise ValueError("the id occurs twice")
            parsed[identity] = parse(item)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return parsed


def _image(item: Mapping[str, Any]) -> _Image:
    size = None
    if "height" in item or "width" in item:
        size = _integer(item, "height"), _integer(item, "width")
    return _Image(_integer(item, "id"), _text(item, "file_name"), size, [])


def _box(item: Mapping[str, Any], indices: Mapping[int, int]) -> tuple[int, _Box]:
    """The id of the image, and the box."""
    image, category = _integer(item, "image_id"), _integer(item, "category_id")
    if category not in indices:
        raise ValueError(f"no category has the id {category}")
    box = _value(item, "bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"'bbox' is {_shown(box)}, not [x, y, width, height]")
    x, y, width, height = (_finite(value) for value in box)
    if width <= 0 or height <= 0:
        raise ValueError(f"the box is empty: its width is {width:g} and its height {height:g}")
    crowd = _integer(item, "iscrowd") if "iscrowd" in item else 0
    if crowd not in (0, 1):
        raise ValueError(f"'iscrowd' is {crowd}, not 0 or 1")
    return image, _Box(_integer(item, "id"), (x, y, x + width, y + height), indices[category], crowd)


def _value(item: Mapping[str, Any], key: str) -> Any:
    if key not in item:
        raise ValueError(f"it has no {key!r}")
    return item[key]


def _integer(item: Mapping[str, Any], key: str) -> int:
    value = _value(item, key)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise ValueError(f"{key!r} is {_shown(value)}, not an integer")
    return value


def _text(item: Mapping[str, Any], key: str) -> str:
    value = _value(item, key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key!r} is {_shown(value)}, not a text")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'bbox' contains {_shown(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("'bbox' contains a number that is not finite")
    return number


def _shown(value: Any) -> str:
    return shortened(json.dumps(value), 60)


def _not_finite(constant: str) -> NoReturn:
    raise ValueError(f"it contains {constant}, which JSON does not allow")
