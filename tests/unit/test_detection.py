"""The detection task and mean average precision, on numbers by hand and of pycocotools."""

import copy

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.evaluation.boxes import corners, iou
from edgeopt.evaluation.metrics.map50 import Map50
from edgeopt.evaluation.metrics.map50_95 import Map5095
from edgeopt.evaluation.tasks.detection import Detection
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions

NAN = np.nan
BOX = [10.0, 20.0, 30.0, 60.0]


def truth(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


def found(*rows) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)


def named(**arrays) -> Outputs:
    return Outputs([np.asarray(each, np.float32) for each in arrays.values()], tuple(arrays))


def one(outputs: Outputs, **options) -> list[list[float]]:
    """The boxes of the only sample."""
    decisions = Detection(**options).decide(outputs)
    assert decisions.scores is None
    (boxes,) = decisions.values
    assert boxes.dtype == np.float64
    return boxes.tolist()


# boxes


def test_corners():
    expected = [[10.0, 20.0, 30.0, 60.0]]
    assert corners(np.array([[10.0, 20.0, 30.0, 60.0]]), "xyxy").tolist() == expected
    assert corners(np.array([[10.0, 20.0, 20.0, 40.0]]), "xywh").tolist() == expected
    assert corners(np.array([[20.0, 40.0, 20.0, 40.0]]), "cxcywh").tolist() == expected
    assert corners(np.array([[20.0, 10.0, 60.0, 30.0]]), "yxyx").tolist() == expected


def test_iou_by_hand():
    boxes = np.array(
        [[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [10, 0, 0, 10], [0, 0, 1e300, 1e300]]
    )
    ratios = iou(boxes, boxes[:2])
    assert ratios[:, 0] == pytest.approx([1, 25 / 175, 0, 0, 0])
    assert ratios[1] == pytest.approx([25 / 175, 1])
    # Of a crowd, the area of the box is the denominator.
    assert iou(boxes[:2], np.array([[0.0, 0, 100, 10]]), np.array([True]))[:, 0] == pytest.approx([1, 0.5])
    assert iou(boxes[:0], boxes).shape == (0, 5)


# task


def test_boxes_scores_and_classes():
    outputs = named(
        boxes=[[[0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 6, 6]]], scores=[[0.25, 0.75, 0.5]], classes=[[0, 2, 1]]
    )
    assert one(outputs) == [[1, 1, 5, 5, 0.75, 2], [2, 2, 6, 6, 0.5, 1], [0, 0, 4, 4, 0.25, 0]]
    assert one(outputs, threshold=0.5) == [[1, 1, 5, 5, 0.75, 2], [2, 2, 6, 6, 0.5, 1]]
    assert one(outputs, limit=1) == [[1, 1, 5, 5, 0.75, 2]]
    other = Outputs(outputs.arrays, ("a", "b", "c"))
    assert one(other, boxes="a", scores="b", classes="c") == one(outputs)
    assert Detection(boxes="c", scores="a", classes="b").reads(("a", "b", "c", "d")) == (0, 1, 2)
    assert Detection().reads(("labels", "x", "num_detections", "boxes", "scores")) == (0, 2, 3, 4)
    assert Detection().reads(("x",)) == (0,)


def test_equal_scores_keep_their_order():
    boxes = np.arange(40).reshape(1, 10, 4)
    outputs = named(boxes=boxes, scores=np.full((1, 10), 0.5), classes=np.zeros((1, 10)))
    assert [row[0] for row in one(outputs, limit=3)] == [0, 4, 8]


def test_scores_per_class():
    outputs = named(boxes=[[BOX, [0, 0, 1, 1]]], scores=[[[0.25, 0.5, 0.125], [0.75, 0.0, 0.25]]])
    assert one(outputs) == [[0, 0, 1, 1, 0.75, 0], [*BOX, 0.5, 1]]


def test_one_output_of_six_columns():
    outputs = Outputs([np.array([[[*BOX, 0.5, 3], [0, 0, 1, 1, 0.0, 0]]], np.float32)], ("out",))
    assert one(outputs) == [[*BOX, 0.5, 3]]
    assert Detection().decide(Outputs([np.zeros((2, 0, 6))])).values[1].shape == (0, 6)


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("xyxy", [10, 20, 30, 60]),
        ("xywh", [10, 20, 20, 40]),
        ("cxcywh", [20, 40, 20, 40]),
        ("yxyx", [20, 10, 60, 30]),
    ],
)
def test_formats_and_relative_coordinates(box_format, box):
    rows = named(boxes=[[box]], scores=[[1]], classes=[[0]])
    assert one(rows, format=box_format) == [[*BOX, 1, 0]]
    height_first = box_format == "yxyx"
    scale = np.tile([200, 100] if height_first else [100, 200], 2)
    relative = named(boxes=[[box / scale]], scores=[[1]], classes=[[0]])
    assert one(relative, format=box_format, size=(200, 100)) == pytest.approx(np.array([[*BOX, 1, 0]]))


def test_count_limits_the_boxes():
    arrays = {"boxes": np.tile(BOX, (3, 2, 1)), "scores": np.ones((3, 2)), "classes": np.zeros((3, 2))}
    for counts in ([1, 5, NAN], [[1], [5], [NAN]]):
        decided = Detection().decide(named(**arrays, num_detections=counts)).values
        assert [len(boxes) for boxes in decided] == [1, 2, 0]
    with pytest.raises(UsageError, match=r"number of boxes has shape \[2\], not \[3\]"):
        Detection().decide(named(**arrays, count=[1, 2]))


def test_boxes_that_are_not_finite_or_padding_are_dropped():
    outputs = named(
        boxes=[[BOX, [NAN, 0, 1, 1], [0, 0, np.inf, 1], BOX, BOX, BOX]],
        scores=[[0.5, 1, 1, NAN, 0.25, 1]],
        classes=[[1.02, 0, 0, 0, NAN, -1]],
    )
    assert one(outputs) == [[*BOX, 0.5, 1]]
    best = named(boxes=[[BOX, BOX]], scores=[[[NAN, 0.5], [0.25, 0.5]]])
    assert one(best) == [[*BOX, 0.5, 1]]
    huge = Outputs([np.array([[[1e308, 0, 1e308, 1e308]]]), np.ones((1, 1, 1))], ("boxes", "scores"))
    assert one(huge, format="xywh") == []


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (named(boxes=np.zeros((1, 4)), scores=[[1]]), r"boxes has shape \[1, 4\], not \[n, k, 4\]"),
        (
            named(boxes=[[BOX]], scores=[[1, 2]]),
            r"scores has shape \[1, 2\].*must be \[1, 1\] or \[1, 1, clas",
        ),
        (named(boxes=[[BOX]], scores=np.zeros((1, 1, 0))), r"scores has shape \[1, 1, 0\]"),
        (named(boxes=[[BOX]], scores=[[1]]), r"scores of shape \[1, 1\] do not say the class of a box"),
        (named(boxes=[[BOX]], scores=[[1]], labels=[[1, 2]]), r"classes has shape \[1, 2\], the scores have"),
        (named(raw=np.zeros((1, 84, 100))), r"boxes has shape \[1, 84, 100\]; without an output of scores"),
        (named(boxes=[[BOX]], masks=[[1]]), r"boxes has shape \[1, 1, 4\]; without an output of scores"),
        (
            named(boxes=[[BOX]], labels=[[1]]),
            "no output is called 'scores': the outputs are 'boxes', 'labels'",
        ),
        (named(a=[[BOX]], b=[[1]]), "no output is called 'boxes' or 'scores': the outputs are 'a', 'b'"),
    ],
)
def test_outputs_that_are_no_detections(outputs, message):
    with pytest.raises(UsageError, match=message) as error:
        Detection().decide(outputs)
    assert error.value.fix
    assert not Detection.fits(outputs, [truth([*BOX, 0, 0])])


def test_an_option_that_names_no_output():
    with pytest.raises(UsageError, match=r"reads the output 'skores', which .*; did you mean 'scores'"):
        Detection(scores="skores").decide(named(boxes=[[BOX]], scores=[[1]]))
    with pytest.raises(ValidationError, match="format"):
        Detection(format="xy")
    with pytest.raises(ValidationError, match="greater than 0"):
        Detection(size=(0, 1))


def test_fits():
    rows = named(boxes=[[BOX]] * 2, scores=[[1]] * 2, classes=[[0]] * 2)
    labels = [truth([*BOX, 0, 0]), truth()]
    assert Detection.fits(rows, labels)
    assert Detection.fits(rows, np.zeros((2, 3, 6)))
    assert Detection.fits(Outputs([np.zeros((2, 10, 6))]), labels)
    assert not Detection.fits(rows, None)
    assert not Detection.fits(rows, np.array([0, 1]))
    assert not Detection.fits(rows, [])
    assert not Detection.fits(rows, [np.zeros((2, 5))])
    assert not Detection.fits(Outputs([np.zeros((2, 10))]), labels)
    assert not Detection.fits(Outputs([np.zeros(())]), labels)
    assert not Detection.fits(Outputs([np.zeros((2, 8, 8, 84)), np.zeros((2, 4, 4, 84))]), labels)


def test_agreement_by_hand():
    boxes = [found([0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 1], [50, 50, 60, 60, 0.1, 1]), found()]
    source = [
        # Matched; of another class; matched by no box; not confident.
        found(
            [0, 0, 10, 8, 0.9, 0], [20, 20, 30, 30, 0.8, 2], [70, 70, 80, 80, 0.5, 1], [0, 0, 9, 9, 0.2, 0]
        ),
        found(),
    ]
    agree = Detection().agreement
    assert agree(Decisions(boxes), Decisions(source)).tolist() == [2 * 1 / 5, 1.0]
    assert agree(Decisions(source), Decisions(boxes)).tolist() == [2 * 1 / 5, 1.0]
    assert agree(Decisions(boxes), Decisions(boxes)).tolist() == [1.0, 1.0]
    assert agree(Decisions(boxes), Decisions(boxes[::-1])).tolist() == [0.0, 0.0]
    assert agree(Decisions([]), Decisions([])).tolist() == []
    every = Detection(confident=0).agreement(Decisions(boxes), Decisions(source))
    assert every.tolist() == [2 * 1 / 7, 1.0]


def test_agreement_is_one_to_one():
    twice = found([0, 0, 10, 10, 0.9, 0], [0, 0, 10, 9, 0.9, 0])
    single = found([0, 0, 10, 10, 0.9, 0])
    assert Detection().agreement(Decisions([twice]), Decisions([single])).tolist() == [2 / 3]
    # IoU of exactly one half is a match, less is none.
    half, less = found([0, 0, 10, 5, 0.9, 0]), found([0, 0, 10, 4.9, 0.9, 0])
    assert Detection().agreement(Decisions([half]), Decisions([single])).tolist() == [1.0]
    assert Detection().agreement(Decisions([less]), Decisions([single])).tolist() == [0.0]


# metrics


def test_map_by_hand():
    labels = [truth([0, 0, 10, 10, 0, 0]), truth([0, 0, 10, 10, 0, 0])]
    detections = [found([0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0]), found([0, 0, 10, 7.2, 0.7, 0])]
    # Precision 1 up to a recall of 0.5 (51 of 101 values), then 2/3.
    half, full = 51 / 101, (51 + 50 * 2 / 3) / 101
    assert Map50().score(detections, labels).value == pytest.approx(full, abs=1e-12)
    # The IoU of the third is 0.72: up to 0.7 it matches.
    assert Map5095().score(detections, labels).value == pytest.approx((5 * full + 5 * half) / 10, abs=1e-12)
    assert Map50().score([found(), found()], labels).value == 0.0
    score = Map50().score(detections, labels)
    assert score.per_sample is None
    (evidence,) = score.evidence
    assert evidence.scores.tolist() == [0.9, 0.8, 0.7]
    assert evidence.images.tolist() == [0, 0, 1]
    assert evidence.correct.tolist() == [[True, False, True]]
    assert evidence.truths.tolist() == [1, 1]
    assert Map50().weighted(score.evidence, np.array([2.0, 0.0])) == pytest.approx(1.0)
    assert Map50().weighted(score.evidence, np.array([0.0, 0.5])) == pytest.approx(1.0)


def test_classes_without_objects_are_left_out():
    labels = [truth([0, 0, 10, 10, 3, 0], [50, 50, 90, 90, 1, 1])]
    detections = [found([0, 0, 10, 10, 0.5, 3], [0, 0, 5, 5, 0.9, 0], [0, 0, 5, 5, 0.9, 1])]
    assert Map50().score(detections, labels).value == pytest.approx(1.0)
    both = [labels[0], truth([0, 0, 10, 10, 4, 0])]
    score = Map50().score([*detections, found()], both)
    assert score.value == pytest.approx(0.5)
    assert Map50().weighted(score.evidence, np.array([3.0, 0.0])) == pytest.approx(1.0)
    assert np.isnan(Map50().weighted(score.evidence, np.zeros(2)))


def test_a_crowd_takes_any_number_of_boxes():
    labels = [truth([0, 0, 10, 10, 0, 0], [40, 40, 80, 80, 0, 1])]
    crowded = [[40, 40, 50, 50, 0.9, 0], [41, 40, 50, 50, 0.9, 0]]
    detections = [found(*crowded, [0, 0, 10, 10, 0.5, 0])]
    assert Map50().score(detections, labels).value == pytest.approx(1.0)
    outside = [found(*crowded, [10, 10, 50, 50, 0.8, 0], [0, 0, 10, 10, 0.5, 0])]
    assert Map50().score(outside, labels).value == pytest.approx(0.5)


def test_detections_that_are_not_finite_do_not_count():
    labels = [truth([0, 0, 10, 10, 0, 0])]
    detections = [found([0, 0, NAN, 10, 0.9, 0], [0, 0, 10, 10, NAN, 0], [0, 0, 10, 10, 0.5, 0])]
    assert Map50().score(detections, labels).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no sample has an object"),
        ([truth()], "no sample has an object"),
        ([truth([*BOX, 0, 1])], "no sample has an object"),
        (np.array([1, 2]), r"labels of shape \[2\] are not boxes"),
        (np.zeros((1, 3, 5)), r"labels of shape \[1, 3, 5\] are not boxes"),
        ([np.zeros((3, 5))], r"label of sample 0 has shape \[3, 5\], not \[k, 6\]"),
        ([np.zeros(6)], r"label of sample 0 has shape \[6\], not \[k, 6\]"),
        ([np.full((1, 6), "a")], r"shape \[1, 6\] and dtype <U1"),
        ([truth([*BOX, 0, 0]), truth()], "1 outputs but 2 labels"),
        ([truth([*BOX, 0, 0], [*BOX, 0.5, 0])], "box 1 of sample 0 is not x1, y1"),
        ([truth([*BOX, -1, 0])], "box 0 of sample 0 is not x1, y1"),
        ([truth([*BOX, 0, 2])], "box 0 of sample 0 is not x1, y1"),
        ([truth([NAN, 0, 1, 1, 0, 0])], "box 0 of sample 0 is not x1, y1.*nan"),
        ([truth([0, 0, 5, 0, 0, 0])], "box 0 of sample 0 is empty: x1, y1, x2, y2 = 0, 0, 5, 0"),
        ([truth([5, 0, 0, 5, 0, 0])], "box 0 of sample 0 is empty"),
    ],
)
@pytest.mark.parametrize("metric", [Map50(), Map5095()])
def test_labels_that_are_not_boxes(metric, labels, message):
    with pytest.raises(UsageError, match=message) as error:
        metric.score([found([*BOX, 0.5, 0])][: len(labels)], labels)
    if "outputs but" not in message:
        assert error.value.fix


def test_decisions_that_are_not_boxes():
    with pytest.raises(UsageError, match=r"detections of sample 0 have shape \[3\], not \[m, 6\]"):
        Map50().score([np.zeros(3)], [truth([*BOX, 0, 0])])


# pycocotools


def pycocotools_stats(detections, labels) -> tuple[float, float]:
    """AP50 and AP of pycocotools."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    categories = sorted({int(row[-2]) for each in labels for row in each})
    annotations, results = [], []
    for image, (boxes, objects) in enumerate(zip(detections, labels, strict=True), 1):
        for x1, y1, x2, y2, category, crowd in np.asarray(objects, float):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        for x1, y1, x2, y2, score, category in boxes:
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image, "category_id": int(category), "bbox": box, "score": score})
    truths = coco.COCO()
    truths.dataset = {
        "info": {},
        "images": [{"id": image + 1} for image in range(len(labels))],
        "annotations": annotations,
        "categories": [{"id": category} for category in categories],
    }
    truths.createIndex()
    evaluation = cocoeval.COCOeval(truths, truths.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[1], evaluation.stats[0]


def random_set(seed: int, *, images: int = 12, classes: int = 4, distinct: bool = False):
    """Detections near random objects and elsewhere; scores and overlaps with many ties."""
    rng = np.random.default_rng(seed)
    detections, labels = [], []
    for _ in range(images):
        count = int(rng.integers(0, 7))
        first = rng.integers(0, 60, (count, 2))
        boxes = np.concatenate([first, first + rng.integers(4, 30, (count, 2))], axis=1)
        category, crowd = rng.integers(0, classes, (count, 1)), rng.random((count, 1)) < 0.2
        labels.append(np.concatenate([boxes, category, crowd], axis=1).astype(np.float32))
        near = boxes.repeat(2, axis=0) + rng.integers(-3, 4, (2 * count, 4))
        near_class = np.where(rng.random((2 * count, 1)) < 0.85, category.repeat(2, axis=0), 0)
        corner = rng.integers(0, 80, (int(rng.integers(0, 6)), 2))
        far = np.concatenate([corner, corner + rng.integers(1, 40, corner.shape)], axis=1)
        far_class = rng.integers(0, classes + 1, (len(far), 1))
        place, of = np.concatenate([near, far]), np.concatenate([near_class, far_class])
        scores = rng.integers(1, 9, (len(place), 1)) / 8
        if distinct:
            # Ties between images only.
            scores = rng.permutation(np.arange(1, 33))[: len(place), None] / 32
        rows = np.concatenate([place, scores, of], axis=1).astype(np.float64)
        detections.append(rows[np.argsort(-rows[:, 4], kind="stable")])
    return detections, labels


@pytest.mark.parametrize("seed", range(12))
def test_map_equals_pycocotools(seed):
    detections, labels = random_set(seed, images=3 + 2 * seed, classes=1 + seed % 5)
    ap50, ap = pycocotools_stats(detections, labels)
    assert 0 < ap < ap50 < 1
    assert abs(Map50().score(detections, labels).value - ap50) < 1e-9
    assert abs(Map5095().score(detections, labels).value - ap) < 1e-9


def test_map_equals_pycocotools_with_many_detections():
    rng = np.random.default_rng(0)
    labels = [truth(*[[8 * k, 0, 8 * k + 8, 8, 0, k % 7 == 3] for k in range(150)]) for _ in range(2)]
    detections = [
        found(*[[8 * k + rng.integers(0, 3), 0, 8 * k + 8, 8, rng.integers(1, 5) / 4, 0] for k in range(150)])
        for _ in range(2)
    ]
    detections[1][3, 2:4] = -40  # inverted
    ap50, ap = pycocotools_stats(detections, labels)
    assert abs(Map50().score(detections, labels).value - ap50) < 1e-9
    assert abs(Map5095().score(detections, labels).value - ap) < 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_weights_equal_repeated_images(seed):
    detections, labels = random_set(100 + seed, images=9, distinct=True)
    weights = np.random.default_rng(seed).integers(0, 4, len(labels))
    repeated = np.repeat(np.arange(len(labels)), weights)
    ap50, ap = pycocotools_stats([detections[at] for at in repeated], [labels[at] for at in repeated])
    for metric, expected in ((Map50(), ap50), (Map5095(), ap)):
        score = metric.score(detections, labels)
        assert abs(metric.weighted(score.evidence, weights.astype(float)) - expected) < 1e-9
        assert metric.weighted(score.evidence, np.ones(len(labels))) == score.value


def area(evidence, weights):
    """The area below the envelope of precision against recall, of all recalls instead of 101."""
    areas = []
    for one in evidence:
        for correct, ignored in zip(one.correct, one.ignored, strict=True):
            points, hits, counted = [], 0.0, 0.0
            for image, is_hit, skipped in zip(one.images, correct, ignored, strict=True):
                hits, counted = hits + weights[image] * is_hit, counted + weights[image] * (not skipped)
                points.append((hits / (weights @ one.truths), hits / counted if counted else 0.0))
            best, last = 0.0, None
            total = 0.0
            for recall, precision in reversed(points):
                total += best * (last - recall) if last is not None else 0.0
                best, last = max(best, precision), recall
            areas.append(total + best * (last or 0.0))
    return float(np.mean(areas))


@pytest.mark.parametrize("seed", range(4))
def test_contributions_are_derivatives_of_the_area(seed):
    detections, labels = random_set(200 + seed, images=14, distinct=True)
    for metric in (Map50(), Map5095()):
        score = metric.scored(detections, labels)
        values, reach = score.contributions
        assert abs(area(score.evidence, np.ones(14)) - score.value) < 0.01
        # Where two precisions are equal, the envelope has a kink: any slope between both sides is one.
        below, above = (
            [
                (area(score.evidence, 1 + step * one) - area(score.evidence, np.ones(14))) / step
                for one in np.eye(14)
            ]
            for step in (-1e-6, 1e-6)
        )
        slopes = (values - score.value) / 14
        assert (np.array(below) - 1e-6 <= slopes).all() and (slopes <= np.array(above) + 1e-6).all()
        # The image with the largest share of the objects, averaged over classes, and the steps of recall.
        truths = np.array([one.truths / one.truths.sum() for one in score.evidence])
        assert 0 < reach / 14 - truths.mean(axis=0).max() <= 0.25 / 100


def test_a_model_that_finds_nothing_has_contributions():
    labels = [truth([0, 0, 10, 10, 0, 0]), truth([0, 0, 10, 10, 0, 0])]
    found_nothing = Map50().scored([found(), found()], labels)
    assert found_nothing.contributions.values.tolist() == [0, 0]
    wrong = Map50().scored([found([50, 50, 60, 60, 0.8, 0]), found()], labels)
    assert wrong.contributions.values.tolist() == [0, 0]


def test_of_equal_overlaps_the_last_object_is_taken():
    upper, lower = [0, 0, 10, 10, 0, 0], [0, 4, 10, 14, 0, 0]
    # The first overlaps both by the same, the second only one of them enough.
    detections = [found([0, 2, 10, 12, 0.9, 0], [0, 0, 10, 10, 0.5, 0])]
    for labels, expected in (([truth(upper, lower)], 1.0), ([truth(lower, upper)], 51 / 101)):
        assert Map50().score(detections, labels).value == pytest.approx(expected)
        assert pycocotools_stats(detections, labels)[0] == pytest.approx(expected)


def test_images_may_be_in_any_order():
    detections, labels = random_set(0, distinct=True)
    for index, boxes in enumerate(detections):
        boxes[:, 4] += index / 1000  # no ties
    value = Map5095().score(detections, labels).value
    assert Map5095().score(detections[::-1], labels[::-1]).value == pytest.approx(value, abs=1e-12)
