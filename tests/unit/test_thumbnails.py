"""Thumbnails of samples: which inputs become one, their content, and limits of number and size."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeopt.plugin import Sample
from edgeopt.reports.thumbnails import (
    OVERLAID,
    PLAIN,
    PREFIX,
    image_of,
    png,
    room_for,
    thumbnails,
    worst_samples,
)
from edgeopt.results import Boxes, Classes, Findings, Reference, Result, SampleChange

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith(PREFIX)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX)))) as image:
        return np.asarray(image)


def samples(*values: Any) -> Iterator[Sample]:
    return (Sample((np.asarray(value),)) for value in values)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (48, 48, 3), (31, 48, 1), (9, 8, 4)])
def test_a_png_holds_the_pixels_it_was_given(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.load()  # checks every checksum
        np.testing.assert_array_equal(np.asarray(image).reshape(shape), pixels)


def test_small_images_are_kept_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found, size = thumbnails(samples(image), [0], "NHWC")
    assert size == (32, 32)
    np.testing.assert_array_equal(decoded(found[0]), image)
    other = thumbnails(samples(image.transpose(2, 0, 1)), [0], "NCHW")
    assert other == (found, size) == thumbnails(samples(image), [0], None)
    alpha = np.concatenate([image, image[..., :1]], axis=2)
    assert thumbnails(samples(alpha), [0], "NHWC").pictures == found


def test_large_images_are_averaged() -> None:
    image = np.zeros((96, 192, 1), np.uint8)
    image[:, ::2] = 200
    found = thumbnails(samples(image), [0], "NHWC")
    assert found.size == (96, 192)
    shown = decoded(found.pictures[0])
    assert shown.shape == (24, 48)
    assert set(shown.ravel().tolist()) == {100}
    tall = thumbnails(samples(np.zeros((49, 13, 1), np.uint8)), [0], None)
    assert decoded(tall.pictures[0]).shape == (48, 13)
    wide = thumbnails(samples(image), [0], "NHWC", OVERLAID)
    assert decoded(wide.pictures[0]).shape == (48, 96)


def test_real_numbers_share_one_range() -> None:
    dark, bright = np.full((8, 8, 1), -1.0), np.full((8, 8, 1), 3.0)
    dark[0, 0] = 1.0
    found = thumbnails(samples(dark, bright), [0, 1], None).pictures
    assert decoded(found[0])[0, 0] == 128
    assert decoded(found[0])[1, 1] == 0
    assert (decoded(found[1]) == 255).all()
    assert (decoded(thumbnails(samples(np.zeros((8, 8, 1))), [0], None).pictures[0]) == 0).all()


@pytest.mark.parametrize(
    "value",
    [np.zeros(shape) for shape in ((640,), (128, 9), (20, 20, 5), (4, 12, 3), (49, 10, 1), (3, 8, 8, 3))],
    ids=lambda value: str(value.shape),
)
def test_what_is_no_image_has_no_picture(value: np.ndarray) -> None:
    assert image_of(value, None) is None
    assert thumbnails(samples(value), [0], None) == ({}, None)


def test_no_more_samples_are_read_than_are_needed() -> None:
    def endless() -> Iterator[Sample]:
        for number in range(10):
            assert number < 4, "the last one asked for is number 3"
            yield Sample((np.full((8, 8, 1), number, np.uint8),))

    found = thumbnails(endless(), [3, 1], None).pictures
    assert list(found) == [3, 1]
    assert [int(decoded(found[index])[0, 0]) for index in found] == [3, 1]
    assert thumbnails(endless(), [], None) == ({}, None)


def test_pictures_never_take_more_than_their_room() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), np.uint8)
    found = thumbnails(samples(*noise), list(range(40)), "NHWC").pictures
    assert 15 < len(found) < 30
    assert sum(map(len, found.values())) <= PLAIN.characters < 200_000


def test_every_artifact_has_its_worst_sample_shown_first() -> None:
    def changed(*indices: int) -> Result:
        found = Findings(changed=9, samples=tuple(SampleChange(sample=index) for index in indices))
        return Result(variant="v", format="f", device="d", status="ok", findings=(found,))

    rows = [changed(5, 1, 2), changed(), changed(7, 5, 9)]
    assert worst_samples(rows) == [5, 7, 1, 2, 9]
    assert worst_samples(rows, limit=3) == [5, 7, 1]


def test_pictures_are_larger_if_something_is_drawn_over_them() -> None:
    text = Reference(sample=0, label=Classes.of([1], [None]))
    assert room_for([text]) == PLAIN
    assert room_for([text, Reference(sample=0, source=Boxes(boxes=(), count=0))]) == OVERLAID
