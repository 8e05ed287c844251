"""Decoders of raw heads, on numbers by hand, and non-maximum suppression compared with a naive one."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.evaluation.decoders._nms import sigmoid, suppress
from edgeopt.evaluation.decoders.grid import Grid
from edgeopt.evaluation.decoders.ssd import Ssd
from edgeopt.evaluation.tasks.detection import Detection
from edgeopt.model import Outputs

NAN = np.nan


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def named(**arrays) -> Outputs:
    return Outputs([np.asarray(each, np.float32) for each in arrays.values()], tuple(arrays))


def rows(outputs: Outputs, sample: int = 0) -> list[list[float]]:
    """The boxes of one sample with score and class, without the padding."""
    assert outputs.all_names() == ("boxes", "scores", "classes")
    boxes, scores, classes = (array[sample] for array in outputs.arrays)
    assert (np.diff(scores) <= 0).all()
    filled = int(np.count_nonzero(scores))
    assert not boxes[filled:].any()
    assert not classes[filled:].any()
    table = np.concatenate([boxes, scores[:, None], classes[:, None]], axis=1)
    return table[:filled].tolist()


# non-maximum suppression


def naive(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """All pairs, one by one."""
    kept: list[int] = []
    for at in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        for other in kept:
            x1, y1 = max(boxes[at, 0], boxes[other, 0]), max(boxes[at, 1], boxes[other, 1])
            x2, y2 = min(boxes[at, 2], boxes[other, 2]), min(boxes[at, 3], boxes[other, 3])
            shared = max(0, x2 - x1) * max(0, y2 - y1)
            one, two = (np.prod(boxes[index, 2:] - boxes[index, :2]) for index in (at, other))
            if shared / (one + two - shared) > overlap:
                break
        else:
            kept.append(at)
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_suppression_equals_a_naive_one(seed, overlap):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 9, (60, 2))
    boxes = np.concatenate([first, first + rng.integers(9, 16, (60, 2))], axis=1).astype(float)
    scores = rng.integers(1, 9, 60) / 8  # with ties
    expected = naive(boxes, scores, overlap)
    assert suppress(boxes, scores, overlap, 100).tolist() == expected
    assert suppress(boxes, scores, overlap, 3).tolist() == expected[:3]
    assert 1 <= len(expected) < 60


def test_suppression_of_equal_and_of_no_boxes():
    boxes = np.array([[0.0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert suppress(boxes, np.array([0.5, 0.5, 0.5]), 0.5, 9).tolist() == [0, 1]  # IoU of exactly 0.5
    assert suppress(boxes[:0], np.zeros(0), 0.5, 9).tolist() == []


def test_sigmoid():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0, 0.5, 1]
    assert sigmoid(np.array([logit(0.9)])) == pytest.approx([0.9])


# ssd

ANCHORS = np.array([[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.5, 0.5]])


@pytest.fixture
def anchors(tmp_path):
    np.save(tmp_path / "anchors.npy", ANCHORS)
    return tmp_path / "anchors.npy"


def heads(offsets, scores) -> Outputs:
    return named(scores=[scores], boxes=[offsets])


def test_ssd_by_hand(anchors):
    # The first moves by half an anchor down and a quarter to the right, and doubles its height.
    offsets = [[5.0, 2.5, 5 * math.log(2), 0], [0, 0, 0, 0]]
    scores = [[9, logit(0.75), -9], [9, -9, logit(0.5)]]
    decoder = Ssd(anchors=anchors, size=(100, 200))
    result = decoder.apply(heads(offsets, scores))
    # The centre of the first is y = 0.5 + 0.1, x = 0.5 + 0.1, its size 0.4 and 0.4.
    expected = [[80, 40, 160, 80, 0.75, 0], [100, 0, 200, 50, 0.5, 1]]
    assert np.array(rows(result)) == pytest.approx(np.array(expected), abs=1e-4)
    swapped = [[2.5, 5.0, 0, 5 * math.log(2)], [0, 0, 0, 0]]
    other = decoder.model_copy(update={"offsets": "xywh"}).apply(heads(swapped, scores))
    assert rows(other) == rows(result)
    halved = decoder.model_copy(update={"variances": (20.0, 20.0, 10.0, 10.0)})
    twice = halved.apply(heads(2 * np.array(offsets), scores))
    assert np.array(rows(twice)) == pytest.approx(np.array(rows(result)))


def test_ssd_activations(anchors):
    offsets = np.zeros((2, 4))
    scores = np.log([[0.1, 0.3, 0.6], [0.7, 0.2, 0.1]])
    decoder = Ssd(anchors=anchors, size=(100, 200), activation="softmax", threshold=0.15)
    assert [row[4:] for row in rows(decoder.apply(heads(offsets, scores)))] == [
        pytest.approx([0.6, 1]),
        pytest.approx([0.3, 0]),
        pytest.approx([0.2, 0]),
    ]
    whole = decoder.model_copy(update={"background": False, "threshold": 0.5})
    assert [row[4:] for row in rows(whole.apply(heads(offsets, scores)))] == [
        pytest.approx([0.7, 0]),
        pytest.approx([0.6, 2]),
    ]
    none = decoder.model_copy(update={"activation": "none"})
    same = rows(none.apply(heads(offsets, np.exp(scores))))
    assert np.array(same) == pytest.approx(np.array(rows(decoder.apply(heads(offsets, scores)))))


def test_ssd_generates_anchors():
    decoder = Ssd(size=(100, 200), strides=(50, 100), scales=(0.2, 0.5), ratios=(1.0, 4.0), interpolated=True)
    made = decoder._anchors()
    # Two rows of four cells, one row of two; each with two ratios and a square in between.
    assert made.shape == ((8 + 2) * 3, 4)
    assert made[:3] == pytest.approx(
        np.array(
            [[0.25, 0.125, 0.2, 0.2], [0.25, 0.125, 0.1, 0.4], [0.25, 0.125, math.sqrt(0.1), math.sqrt(0.1)]]
        )
    )
    assert made[3, :2].tolist() == [0.25, 0.375]  # columns before rows
    assert made[12, :2].tolist() == [0.75, 0.125]
    assert made[-1] == pytest.approx(np.array([0.5, 0.75, math.sqrt(0.5), math.sqrt(0.5)]))
    assert len(Ssd(size=(101, 200), strides=(50,), scales=(0.2,))._anchors()) == 3 * 4


def test_ssd_suppresses_within_a_class(anchors):
    np.save(anchors, np.tile(ANCHORS[0], (3, 1)))
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.01, 0.7]])
    decoder = Ssd(anchors=anchors, size=(100, 200), activation="none", background=False)
    result = decoder.apply(heads(np.zeros((3, 4)), scores))
    assert [row[4:] for row in rows(result)] == [pytest.approx([0.9, 0]), pytest.approx([0.7, 1])]
    assert result.arrays[0].shape == (1, 100, 4)
    one = decoder.model_copy(update={"limit": 1}).apply(heads(np.zeros((3, 4)), scores))
    assert [array.shape for array in one.arrays] == [(1, 1, 4), (1, 1), (1, 1)]
    low = decoder.model_copy(update={"iou": 1.0, "threshold": 0.2})
    assert [row[5] for row in rows(low.apply(heads(np.zeros((3, 4)), scores)))] == [0, 0, 1, 1]


def test_boxes_that_are_not_finite_are_dropped(anchors):
    decoder = Ssd(anchors=anchors, size=(100, 200), background=False)
    scores = np.full((2, 1), 3.0)
    for broken in (NAN, np.inf, -np.inf, 1e30):
        result = decoder.apply(heads([[0, 0, broken, 0], [0, 0, 0, 0]], scores))
        boxes = rows(result)
        assert all(np.isfinite(boxes).ravel())
        assert boxes[-1][:4] == [100, 0, 200, 50]
        # An infinitely small box is empty, but finite.
        assert len(boxes) == (2 if broken == -np.inf else 1)
    for activation in ("sigmoid", "softmax", "none"):
        softmax = decoder.model_copy(update={"activation": activation})
        assert len(rows(softmax.apply(heads(np.zeros((2, 4)), [[NAN], [1.0]])))) == 1
    huge = Outputs([np.zeros((1, 2, 4)), np.full((1, 2, 1), 1e300)], ("boxes", "scores"))
    assert rows(decoder.model_copy(update={"activation": "none"}).apply(huge)) == []


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            named(box=[[[0] * 4] * 2], scores=[[[0] * 3] * 2]),
            "'boxes', which .* not have; did you mean 'box'",
        ),
        (
            named(boxes=np.zeros((1, 8)), scores=[[[0] * 3] * 2]),
            r"'boxes' has shape \[1, 8\], not \[n, k, 4\]",
        ),
        (heads(np.zeros((2, 4)), np.zeros((3, 3))), r"'scores' has shape \[1, 3, 3\], not \[1, 2, classes\]"),
        (
            heads(np.zeros((2, 4)), np.zeros((2, 1))),
            r"\[1, 2, 1\].* with a background and at least one class",
        ),
        (
            named(boxes=[[[0] * 4] * 2], scores=[[0] * 2]),
            r"'scores' has shape \[1, 2\], not \[1, 2, classes\]",
        ),
        (
            heads(np.zeros((3, 4)), np.zeros((3, 3))),
            r"\[1, 3, 4\] has 3 boxes per sample, but there are 2 anch",
        ),
    ],
)
def test_ssd_outputs_of_the_wrong_shape(anchors, outputs, message):
    with pytest.raises(UsageError, match=message) as error:
        Ssd(anchors=anchors, size=(100, 200)).apply(outputs)
    assert error.value.fix


def test_ssd_anchors_that_are_wrong(anchors):
    decoder = Ssd(anchors=anchors, size=(100, 200))
    outputs = heads(np.zeros((2, 4)), np.zeros((2, 3)))
    for array, message in (
        (np.zeros((4, 2)), r"shape \[4, 2\] and dtype float64, not numbers \[k, 4\]"),
        (np.array([["a"] * 4]), "dtype <U1, not numbers"),
        (np.array([[0.5, 0.5, 0, 1]]), "sizes that are not positive"),
        (np.array([[NAN, 0.5, 1, 1]]), "not finite"),
        (np.array([{}]), "cannot read the anchors"),
    ):
        np.save(anchors, array)
        with pytest.raises(UsageError, match=message):
            decoder.apply(outputs)
    anchors.write_bytes(b"damaged")
    with pytest.raises(UsageError, match="cannot read the anchors"):
        decoder.apply(outputs)
    with anchors.open("wb") as file:
        np.savez(file, a=ANCHORS)
    with pytest.raises(UsageError, match="it is an archive of several arrays"):
        decoder.apply(outputs)


def test_ssd_options(anchors):
    with pytest.raises(ValidationError, match="set either 'anchors', or 'strides'"):
        Ssd(size=(10, 10))
    with pytest.raises(ValidationError, match="set either 'anchors', or 'strides'"):
        Ssd(size=(10, 10), anchors=anchors, strides=(8,), scales=(0.1,))
    with pytest.raises(ValidationError, match="2 strides but 1 scales"):
        Ssd(size=(10, 10), strides=(8, 16), scales=(0.1,))
    with pytest.raises(ValidationError, match="no such file"):
        Ssd(size=(10, 10), anchors="none.npy")
    decoder = Ssd(size=(10, 10), anchors=anchors)
    assert Ssd.model_validate(decoder.options()) == decoder


# grid


def cells(classes: int = 2, height: int = 2, width: int = 3) -> np.ndarray:
    """An empty grid ``[1, 4 + classes, h, w]``."""
    grid = np.zeros((1, 4 + classes, height, width))
    grid[:, 4:] = -20
    return grid


def test_grid_by_hand():
    fine, coarse = cells(height=4, width=6), cells()
    # Row 1, column 2: from its centre 1 to the left, 0.5 up, 2 to the right, 3 down.
    fine[0, :, 1, 2] = [1, 0.5, 2, 3, logit(0.9), -20]
    coarse[0, :, 0, 1] = [0.5, 0.5, 0.5, 0.5, -20, logit(0.6)]
    decoder = Grid(strides=(8, 16))
    result = decoder.apply(named(a=fine, b=coarse))
    expected = [[12, 8, 36, 36, 0.9, 0], [16, 0, 32, 16, 0.6, 1]]
    assert np.array(rows(result)) == pytest.approx(np.array(expected), abs=1e-5)
    last = named(b=coarse.transpose(0, 2, 3, 1), x=np.zeros(3), a=fine.transpose(0, 2, 3, 1))
    other = Grid(strides=(8, 16), outputs=("a", "b"), layout="NHWC").apply(last)
    assert rows(other) == rows(result)


def test_grid_of_centres_and_sizes():
    grid = cells(classes=1)
    grid[0, :, 1, 2] = [0.5, 0.25, math.log(2), math.log(0.5), logit(0.9)]
    result = Grid(strides=(8,), box="cxcywh").apply(named(a=grid))
    # The centre is x = 2.5, y = 1.25 cells; the size 2 and 0.5.
    assert np.array(rows(result)) == pytest.approx(np.array([[12, 8, 28, 12, 0.9, 0]]), abs=1e-5)


def test_grid_of_several_samples_suppresses_within_a_class():
    grid = np.concatenate([cells(), cells(), cells()])
    # Two cells with the same box, of the same class in sample 0, of different ones in sample 1.
    for sample, category in ((0, 4), (1, 5)):
        grid[sample, :4, 0, 0] = [0.5, 0.5, 1.5, 0.5]
        grid[sample, :4, 0, 1] = [1.5, 0.5, 0.5, 0.5]
        grid[sample, 4, 0, 0] = logit(0.6)
        grid[sample, category, 0, 1] = logit(0.7)
    result = Grid(strides=(10,)).apply(named(a=grid))
    assert np.array(rows(result, 0)) == pytest.approx(np.array([[0, 0, 20, 10, 0.7, 0]]), abs=1e-5)
    assert np.array(rows(result, 1)) == pytest.approx(
        np.array([[0, 0, 20, 10, 0.7, 1], [0, 0, 20, 10, 0.6, 0]]), abs=1e-5
    )
    assert rows(result, 2) == []
    decided = Detection().decide(result).values
    assert [len(boxes) for boxes in decided] == [1, 2, 0]
    assert decided[1].tolist() == rows(result, 1)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (named(a=cells()), {"strides": (8, 16)}, "there are 2 strides and 1 outputs: 'a'"),
        (named(a=cells(), b=cells()), {"strides": (8,)}, "there are 1 strides and 2 outputs: 'a', 'b'"),
        (named(aa=cells()), {"strides": (8,), "outputs": ("ab",)}, "'ab', which the model does not have"),
        (
            named(a=np.zeros((1, 84, 9))),
            {"strides": (8,)},
            r"'a' has shape \[1, 84, 9\], not \[n, 4 \+ classes",
        ),
        (named(a=np.zeros((1, 4, 9, 9))), {"strides": (8,)}, r"'a' has shape \[1, 4, 9, 9\], not \[n, 4 \+"),
        (
            named(a=cells()),
            {"strides": (8,), "layout": "NHWC"},
            r"\[1, 6, 2, 3\], not \[n, h, w, 4 \+ classes\]",
        ),
        (
            named(a=cells(), b=cells(classes=3)),
            {"strides": (8, 16)},
            "'b' has 1 samples of 7 values per cell, but 'a' has 1 of 6",
        ),
    ],
)
def test_grid_outputs_of_the_wrong_shape(outputs, options, message):
    with pytest.raises(UsageError, match=message) as error:
        Grid(**options).apply(outputs)
    assert error.value.fix


def flat(*grids: np.ndarray) -> np.ndarray:
    """Grids ``[1, 4 + classes, h, w]`` as one head ``[1, 4 + classes, cells]``."""
    return np.concatenate([grid.reshape(*grid.shape[:2], -1) for grid in grids], axis=2)


def test_grid_of_one_output_by_hand():
    # An input of 16 x 24 pixels: 2 x 3 cells of stride 8, then 1 x 2 of stride 16, the last one overhanging.
    head = np.zeros((1, 6, 8))
    head[:, 4:] = -20
    head[0, :, 5] = [1, 0.5, 2, 3, logit(0.9), -20]  # stride 8, row 1, column 2
    head[0, :, 7] = [0.25, 0.5, 0.25, 0.5, -20, logit(0.6)]  # stride 16, row 0, column 1
    decoder = Grid(strides=(8, 16), size=(16, 24))
    result = decoder.apply(named(a=head))
    expected = [[12, 8, 36, 36, 0.9, 0], [20, 0, 28, 16, 0.6, 1]]
    assert np.array(rows(result)) == pytest.approx(np.array(expected), abs=1e-5)
    other = Grid(strides=(8, 16), size=(16, 24), layout="NHWC", outputs=("b",))
    assert rows(other.apply(named(a=np.zeros(3), b=head.transpose(0, 2, 1)))) == rows(result)


@pytest.mark.parametrize("box", ["ltrb", "cxcywh"])
def test_grid_of_one_output_equals_one_per_stride(box):
    rng = np.random.default_rng(0)
    # The coarse grid first, of other numbers of rows and columns.
    coarse, fine = (rng.normal(size=(1, 7, *shape)) for shape in ((2, 3), (4, 6)))
    scaled = Grid(strides=(16, 8), box=box).apply(named(a=coarse, b=fine))
    whole = Grid(strides=(16, 8), size=(32, 48), box=box).apply(named(a=flat(coarse, fine)))
    assert len(rows(scaled)) > 20
    assert rows(whole) == rows(scaled)


@pytest.mark.parametrize(
    ("outputs", "options", "message", "fix"),
    [
        (
            named(head=np.zeros((1, 6, 31))),
            {},
            r"'head' has shape \[1, 6, 31\], not \[n, 4 \+ classes, 30\], the cells of an input of 32 × 48 "
            "pixels: 4 × 6 of stride 8, 2 × 3 of stride 16",
            "set 'strides' and 'size'",
        ),
        (
            named(head=np.zeros((1, 30, 6))),
            {},
            r"\[1, 30, 6\], not \[n, 4 \+ classes, 30\]",
            "'layout: NHWC'",
        ),
        (
            named(head=np.zeros((1, 6, 30))),
            {"layout": "NHWC"},
            r"\[1, 6, 30\], not \[n, 30, 4 \+ classes\]",
            "'layout: NCHW'",
        ),
        (named(head=np.zeros((1, 4, 30))), {}, r"\[1, 4, 30\], not \[n, 4 \+ classes, 30\]", "'strides'"),
        (named(head=np.zeros((1, 6, 4, 6))), {}, r"\[1, 6, 4, 6\], not", "leave 'size' out"),
        (
            named(a=np.zeros((1, 6, 24)), b=np.zeros((1, 6, 6))),
            {},
            "one output with the cells of all grids, but there are 2: 'a', 'b'",
            "set 'outputs' to its name",
        ),
        (
            named(heads=np.zeros((1, 6, 30))),
            {"outputs": ("head",)},
            "'head', which the model does not",
            "'heads'",
        ),
    ],
)
def test_one_output_of_all_grids_of_the_wrong_shape(outputs, options, message, fix):
    with pytest.raises(UsageError, match=message) as error:
        Grid(strides=(8, 16), size=(32, 48), **options).apply(outputs)
    assert fix in error.value.fix


def test_one_output_of_all_grids_needs_the_size_of_the_input():
    for strides in ((8,), (8, 16)):
        with pytest.raises(UsageError) as error:
            Grid(strides=strides).apply(named(head=np.zeros((1, 6, 30))))
        assert "'size'" in error.value.fix


def test_grid_options():
    with pytest.raises(ValidationError, match="1 outputs but 2 strides"):
        Grid(strides=(8, 16), outputs=("a",))
    with pytest.raises(ValidationError, match="at least 1 item"):
        Grid(strides=())
    with pytest.raises(ValidationError, match="2 outputs, but with 'size' one contains all grids"):
        Grid(strides=(8, 16), outputs=("a", "b"), size=(32, 32))
    decoder = Grid(strides=(8, 16), outputs=("a", "b"))
    assert Grid.model_validate(decoder.options()) == decoder
    whole = Grid(strides=(8, 16), outputs=("a",), size=(32, 48))
    assert Grid.model_validate(whole.options()) == whole
