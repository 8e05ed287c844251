"""Metrics of segmentation, keypoints, images, labels and embeddings, against independent implementations."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics.average_precision import AveragePrecision
from edgeopt.evaluation.metrics.dice import Dice
from edgeopt.evaluation.metrics.equal_error_rate import EqualErrorRate
from edgeopt.evaluation.metrics.f1 import F1
from edgeopt.evaluation.metrics.mae import Mae
from edgeopt.evaluation.metrics.miou import Miou
from edgeopt.evaluation.metrics.pck import Pck
from edgeopt.evaluation.metrics.pixel_accuracy import PixelAccuracy
from edgeopt.evaluation.metrics.psnr import Psnr
from edgeopt.evaluation.metrics.recall_at_k import RecallAtK
from edgeopt.evaluation.metrics.rmse import Rmse
from edgeopt.evaluation.metrics.roc_auc import RocAuc
from edgeopt.evaluation.metrics.ssim import Ssim
from edgeopt.plugin import Metric

NAN = np.nan
EXACT = {"rtol": 0, "atol": 1e-9}


def close(one: float, other: float) -> bool:
    return bool(np.isclose(one, other, **EXACT))


def masks(seed: int = 0, classes: int = 5, ignored: bool = True):
    """Label maps and masks of which two in three pixels are equal, with ignored ones."""
    random = np.random.default_rng(seed)
    mask = random.integers(0, classes, (7, 9, 8))
    labels = np.where(random.random(mask.shape) < 0.67, mask, random.integers(0, classes + 1, mask.shape))
    if ignored:
        mask[random.random(mask.shape) < 0.1] = 255
    return labels, mask


def binary(seed: int = 0, count: int = 60):
    """Scores with ties and labels of two classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    positive = (random.random(count) * 0.7 + 0.3 * labels).round(1)
    return np.stack([1 - positive, positive], axis=1), labels


def multilabel(seed: int = 0, count: int = 60, labels: int = 5):
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, (count, labels))
    return (random.random((count, labels)) * 0.7 + 0.3 * target).round(2), target


def vectors(seed: int = 0, count: int = 40):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 12, count)
    values = random.normal(size=(12, 6))[labels] + random.normal(size=(count, 6))
    return values / np.linalg.norm(values, axis=1, keepdims=True), labels


def vectors_of_classes():
    """Scores with ties of three classes."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 40)
    return (random.random((40, 3)) + 0.5 * np.eye(3)[labels]).round(1), labels


# --- every metric of the whole set

WHOLE = [
    pytest.param(Miou(), *masks(), id="miou"),
    pytest.param(Dice(), *masks(), id="dice"),
    pytest.param(PixelAccuracy(), *masks(), id="pixel_accuracy"),
    pytest.param(Rmse(), *(np.random.default_rng(1).normal(size=(2, 20, 3))), id="rmse"),
    pytest.param(F1(), multilabel()[0].round().astype(int), multilabel()[1], id="f1-labels"),
    pytest.param(F1(), masks()[0][:, 0, 0], masks(ignored=False)[1][:, 0, 0], id="f1-classes"),
    pytest.param(F1(average="micro"), masks()[0][0, 0], masks(ignored=False)[1][0, 0], id="f1-micro"),
    pytest.param(AveragePrecision(), *binary(), id="average_precision-binary"),
    pytest.param(AveragePrecision(), *multilabel(), id="average_precision-labels"),
    pytest.param(EqualErrorRate(), *binary(), id="equal_error_rate"),
    pytest.param(RocAuc(), *binary(), id="roc_auc"),
    pytest.param(RocAuc(), *vectors_of_classes(), id="roc_auc-classes"),
]


@pytest.mark.parametrize(("metric", "outputs", "target"), WHOLE)
def test_weights_are_repeated_samples(metric, outputs, target):
    score = metric.score(outputs, target)
    count = len(outputs)
    assert score.per_sample is None
    assert metric.weighted(score.evidence, np.ones(count)) == score.value
    for seed in range(5):
        repeats = np.random.default_rng(seed).integers(0, 4, count)
        repeated = metric.score(np.repeat(outputs, repeats, axis=0), np.repeat(target, repeats, axis=0))
        assert close(metric.weighted(score.evidence, repeats.astype(float)), repeated.value)
        assert close(metric.weighted(score.evidence, 0.3 * repeats), repeated.value)
    assert np.isnan(metric.weighted(score.evidence, np.zeros(count)))


@pytest.mark.parametrize(("metric", "outputs", "target"), WHOLE)
def test_contributions_are_derivatives(metric, outputs, target):
    count, score = len(outputs), metric.scored(outputs, target)
    values, reach = score.contributions
    assert close(values.mean(), score.value)
    assert metric.contributions(score.evidence, count).values.tolist() == values.tolist()
    # What a value would be without the sample, and with it twice, halfway.
    step = 1e-6
    slopes = np.array([
        metric.weighted(score.evidence, 1 + step * one) - metric.weighted(score.evidence, 1 - step * one)
        for one in np.eye(count)
    ]) / (2 * step)  # fmt: skip
    if isinstance(metric, EqualErrorRate):
        # Its own slope is that between two samples; the contributions take more of them.
        assert np.corrcoef(values, slopes)[0, 1] > 0.6
    else:
        assert np.allclose(values - score.value, count * slopes, atol=1e-6)
    assert (reach == 0) == isinstance(metric, Rmse)
    # At least that of an average sample; less if a class is only predicted, for no sample can lose it.
    assert reach == 0 or reach > 0.9


@pytest.mark.parametrize(("metric", "outputs", "target"), WHOLE)
def test_the_jackknife_is_the_default(metric, outputs, target):
    score = metric.score(outputs, target)
    values, reach = Metric.contributions(metric, score.evidence, len(outputs))
    assert close(values.mean(), score.value) and reach == 0
    assert np.corrcoef(values, metric.contributions(score.evidence, len(outputs)).values)[0, 1] > 0.6


@pytest.mark.parametrize(("metric", "outputs", "target"), WHOLE)
def test_targets_of_another_number(metric, outputs, target):
    with pytest.raises(UsageError, match=rf"{len(outputs)} outputs but {len(target) - 1} (labels|masks)"):
        metric.score(outputs, target[:-1])


# --- segmentation


@pytest.mark.parametrize("ignore", [255, 2, None])
def test_segmentation_metrics_equal_scikit_learn(ignore):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, mask = masks(ignored=ignore is not None)
    counted = mask != (-1 if ignore is None else ignore)
    one, other = mask[counted], labels[counted]
    classes = [each for each in np.union1d(one, other) if each != ignore]
    iou = metrics.jaccard_score(one, other, labels=classes, average="macro")
    assert close(Miou(ignore=ignore).score(labels, mask).value, iou)
    dice = metrics.f1_score(one, other, labels=classes, average="macro")
    assert close(Dice(ignore=ignore).score(labels, mask).value, dice)
    accuracy = metrics.accuracy_score(one, other)
    assert close(PixelAccuracy(ignore=ignore).score(labels, mask).value, accuracy)


def test_segmentation_metrics_by_hand():
    labels, mask = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 1, 1, 255]]])
    assert Miou().score(labels, mask).value == 0.5  # 1 / 2 of both classes
    assert close(Dice().score(labels, mask).value, 2 / 3)
    assert close(PixelAccuracy().score(labels, mask).value, 2 / 3)


@pytest.mark.parametrize("metric", [Miou(), Dice(), PixelAccuracy()])
def test_masks_of_other_layouts_and_sizes(metric):
    labels, mask = masks()
    value = metric.score(labels, mask).value
    assert metric.score(labels, mask[..., None].astype(np.uint8)).value == value
    assert metric.score(labels, mask[:, None]).value == value
    assert metric.score(list(labels), list(mask)).value == value
    sizes = [(slice(index + 1), slice(index + 2)) for index in range(len(mask))]
    parts = [(one[size], other[size]) for one, other, size in zip(labels, mask, sizes, strict=True)]
    flat = [np.concatenate([pair[at].reshape(-1) for pair in parts])[None, None] for at in (0, 1)]
    assert close(metric.score(*zip(*parts, strict=True)).value, metric.score(*flat).value)


@pytest.mark.parametrize("metric", [Miou(), Dice(), PixelAccuracy()])
def test_a_pixel_without_a_class_is_wrong(metric):
    _, mask = masks()
    broken = mask.copy()
    broken[2] = -1
    assert metric.score(mask, mask).value == 1.0
    assert metric.score(broken, mask).value < 0.95
    assert metric.score(np.full_like(mask, -1), mask).value == 0.0
    ignored = mask.copy()
    ignored[mask == 255] = -1
    assert metric.score(ignored, mask).value == 1.0


@pytest.mark.parametrize("metric", [Miou(), Dice(), PixelAccuracy()])
def test_masks_that_do_not_fit(metric):
    labels, mask = masks()
    with pytest.raises(UsageError, match=r"mask 0 has the shape \[9, 7\], but the output \[9, 8\]") as error:
        metric.score(labels, mask[:, :, :7])
    assert "classes_axis" in error.value.fix
    with pytest.raises(UsageError, match=r"mask 0 has the shape \[9, 8, 5\]") as error:
        metric.score(labels, np.zeros((7, 9, 8, 5), int))
    assert "argmax" in error.value.fix
    with pytest.raises(UsageError, match="masks are float64, not integers"):
        metric.score(labels, mask.astype(float))
    with pytest.raises(UsageError, match="mask 3 has the class -1") as error:
        metric.score(labels, np.where(np.arange(7)[:, None, None] == 3, -1, mask))
    assert "ignore: -1" in error.value.fix
    renamed = type(metric)(ignore=-1).score(labels, np.where(mask == 255, -1, mask))
    assert renamed.value == metric.score(labels, mask).value
    with pytest.raises(UsageError, match="no pixel of a class other than 255"):
        metric.score(labels, np.full_like(mask, 255))


# --- numbers, images and keypoints


def test_mae_and_rmse_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, target = np.random.default_rng(0).normal(size=(2, 30, 4))
    score = Mae().score(outputs.reshape(30, 2, 1, 2), target.reshape(30, 2, 2))
    assert close(score.value, metrics.mean_absolute_error(target, outputs))
    assert np.allclose(score.per_sample, np.abs(outputs - target).mean(axis=1), **EXACT)
    assert close(Rmse().score(outputs, target).value, np.sqrt(metrics.mean_squared_error(target, outputs)))
    assert not Mae().higher_is_better
    assert not Rmse().higher_is_better


@pytest.mark.parametrize("metric", [Mae(), Rmse()])
def test_errors_of_outputs_that_are_not_finite(metric):
    outputs, target = np.random.default_rng(0).normal(size=(2, 6, 4))
    outputs[2, 1], outputs[4, 0] = NAN, np.inf
    score = metric.score(outputs, target)
    assert score.value == np.inf
    if score.evidence is not None:
        finite = np.isfinite(outputs).all(axis=1)
        rest = metric.score(outputs[finite], target[finite])
        assert close(metric.weighted(score.evidence, finite.astype(float)), rest.value)


@pytest.mark.parametrize("metric", [Mae(), Rmse(), Psnr(data_range=1), Ssim(data_range=1)])
def test_numbers_that_do_not_fit(metric):
    outputs = np.zeros((3, 12, 13))
    with pytest.raises(
        UsageError, match=r"\[3, 12, 13\] cannot be compared with labels of shape \[3, 13, 12\]"
    ):
        metric.score(outputs, np.zeros((3, 13, 12)))
    with pytest.raises(UsageError, match="3 outputs but 2 labels"):
        metric.score(outputs, outputs[:2])
    with pytest.raises(UsageError, match="differ between samples"):
        metric.score(outputs, [np.zeros((12, 13)), np.zeros((1, 2)), np.zeros((12, 13))])


@pytest.mark.parametrize("metric", [Psnr, Ssim])
def test_images_need_a_range(metric):
    for options in ({}, {"data_range": 0}, {"data_range": -1}):
        with pytest.raises(ValidationError, match="data_range"):
            metric(**options)


@pytest.mark.parametrize("shape", [(4, 17, 14), (4, 17, 14, 3)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_and_ssim_equal_scikit_image(shape, data_range):
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    target = random.random(shape) * data_range
    outputs = target + random.normal(size=shape) * 0.1 * data_range
    pairs = list(zip(target, outputs, strict=True))
    wanted = [metrics.peak_signal_noise_ratio(*pair, data_range=data_range) for pair in pairs]
    score = Psnr(data_range=data_range).score(outputs, target)
    assert np.allclose(score.per_sample, wanted, **EXACT)
    assert close(score.value, np.mean(wanted))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    axis = -1 if len(shape) == 4 else None
    wanted = [
        metrics.structural_similarity(*pair, data_range=data_range, channel_axis=axis, **options)
        for pair in pairs
    ]
    score = Ssim(data_range=data_range).score(outputs, target)
    assert np.allclose(score.per_sample, wanted, **EXACT)
    assert close(score.value, np.mean(wanted))
    if axis is not None:
        first = Ssim(data_range=data_range, channel_axis=1)
        moved = first.score(np.moveaxis(outputs, -1, 1), np.moveaxis(target, -1, 1))
        assert np.allclose(moved.per_sample, wanted, **EXACT)


def test_limits_of_psnr_and_ssim():
    images = np.random.default_rng(0).random((4, 12, 12))
    broken = images.copy()
    broken[1, 3, 4], broken[2, 0, 0] = NAN, np.inf
    assert Psnr(data_range=1).score(broken, images).per_sample.tolist() == [100, -100, -100, 100]
    assert np.allclose(Ssim(data_range=1).score(broken, images).per_sample, [1, -1, -1, 1], **EXACT)
    assert Psnr(data_range=1).score(images, images).value == 100


def test_ssim_needs_images():
    with pytest.raises(UsageError, match="smaller than the window") as error:
        Ssim(data_range=1).score(np.zeros((2, 3, 20, 20)), np.zeros((2, 3, 20, 20)))
    assert "channel_axis" in error.value.fix
    with pytest.raises(UsageError, match=r"\[2, 20\] are not images"):
        Ssim(data_range=1).score(np.zeros((2, 20)), np.zeros((2, 20)))
    with pytest.raises(UsageError, match="axis 0"):
        Ssim(data_range=1, channel_axis=0).score(np.zeros((2, 20, 20, 3)), np.zeros((2, 20, 20, 3)))


def naive_pck(points, expected, limit):
    fractions = []
    for one, other in zip(points, expected, strict=True):
        hits = [
            (x - u) ** 2 + (y - v) ** 2 <= limit**2
            for (x, y), (u, v) in zip(one, other, strict=True)
            if u >= 0 and v >= 0
        ]
        fractions.append(sum(hits) / len(hits) if hits else None)
    return fractions


@pytest.mark.parametrize("hidden", [False, True])
def test_pck_equals_the_naive_one(hidden):
    random = np.random.default_rng(0)
    expected = random.random((20, 5, 2)) * 100
    points = expected + random.normal(size=expected.shape) * 8
    expected[random.random((20, 5)) < 0.2] = -1
    expected[:, 0] = 50
    if hidden:
        expected[[3, 8]] = -1
    metric = Pck(reference=40, alpha=0.25)
    fractions = naive_pck(points, expected, 10)
    counted = [each for each in fractions if each is not None]
    for shape in ((20, 5, 2), (20, 10)):
        score = metric.score(points.reshape(shape), expected)
        assert close(score.value, np.mean(counted))
        assert (score.per_sample is None) == hidden
        if not hidden:
            assert np.allclose(score.per_sample, fractions, **EXACT)
            continue
        assert metric.weighted(score.evidence, np.ones(20)) == score.value
        repeats = random.integers(0, 4, 20)
        repeated = metric.score(np.repeat(points, repeats, axis=0), np.repeat(expected, repeats, axis=0))
        assert close(metric.weighted(score.evidence, repeats.astype(float)), repeated.value)


def test_pck_at_the_limit_and_of_broken_points():
    expected = np.zeros((1, 4, 2))
    points = np.array([[[3.0, 4.0], [3.0, 4.01], [NAN, 0.0], [np.inf, 0.0]]])
    assert Pck(reference=25).score(points, expected).value == 0.25


def test_keypoints_that_do_not_fit():
    metric, points = Pck(reference=10), np.ones((3, 4, 2))
    with pytest.raises(ValidationError, match="reference"):
        Pck()
    with pytest.raises(UsageError, match=r"outputs of shape \[3, 4, 3\] are not keypoints"):
        metric.score(np.zeros((3, 4, 3)), points)
    with pytest.raises(UsageError, match=r"labels of shape \[3, 7\] are not keypoints"):
        metric.score(points, np.zeros((3, 7)))
    with pytest.raises(UsageError, match="outputs have 4 keypoints, but the labels 5"):
        metric.score(points, np.zeros((3, 5, 2)))
    with pytest.raises(UsageError, match="3 outputs but 2 labels"):
        metric.score(points, points[:2])
    with pytest.raises(UsageError, match="no label is a visible keypoint"):
        metric.score(points, -points)


# --- labels


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_equals_scikit_learn(average):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 80)
    decided = np.where(random.random(80) < 0.6, labels, random.integers(0, 8, 80))
    decided[random.random(80) < 0.1] = -1
    present = [each for each in np.union1d(labels, decided) if each >= 0]
    wanted = metrics.f1_score(labels, decided, labels=present, average=average, zero_division=0)
    assert close(F1(average=average).score(decided, labels).value, wanted)
    assert close(F1(average=average).score(decided, labels[:, None]).value, wanted)

    scores, target = multilabel(labels=7)
    decided = (scores > 0.6).astype(int)
    decided[:, 3] = target[:, 3] = 0
    target[:, 4] = 0
    present = np.flatnonzero((decided | target).any(axis=0))
    assert len(present) == 6
    wanted = metrics.f1_score(target, decided, labels=present, average=average, zero_division=0)
    for dtype in (int, bool, np.float32):
        assert close(F1(average=average).score(decided, target.astype(dtype)).value, wanted)


def test_f1_of_values_that_are_not_finite():
    target = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
    wrong, broken = target.copy(), target.copy()
    wrong[2:], broken[2:] = 1 - target[2:], -1
    assert F1().score(broken, target).value == F1().score(wrong, target).value
    assert F1().score(np.array([0, -1, 1]), np.array([0, 0, 1])).value == pytest.approx((2 / 3 + 1) / 2)
    assert F1().score(np.array([-1, -1]), np.array([0, 1])).value == 0


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    weights = np.random.default_rng(3).random(60) * 3
    weights[:10] = 0
    scores, labels = binary()
    score = AveragePrecision().score(scores, labels)
    assert close(score.value, metrics.average_precision_score(labels, scores[:, 1]))
    wanted = metrics.average_precision_score(labels, scores[:, 1], sample_weight=weights)
    assert close(AveragePrecision().weighted(score.evidence, weights), wanted)
    logits = np.log(scores + 0.01)
    wanted = metrics.average_precision_score(labels, logits[:, 1] - logits[:, 0])
    assert close(AveragePrecision().score(logits, labels).value, wanted)

    scores, target = multilabel()
    scores, target = scores.round(1), target.copy()
    target[:, 2] = 0  # has no positives, and does not count
    kept = [0, 1, 3, 4]
    score = AveragePrecision().score(scores, target)
    assert close(score.value, metrics.average_precision_score(target[:, kept], scores[:, kept]))
    wanted = metrics.average_precision_score(target[:, kept], scores[:, kept], sample_weight=weights)
    assert close(AveragePrecision().weighted(score.evidence, weights), wanted)

    labels = np.arange(60) % 5
    wanted = metrics.average_precision_score(labels, scores)
    assert close(AveragePrecision().score(scores, labels).value, wanted)


def test_average_precision_of_scores_that_are_not_finite():
    scores, target = np.array([[0.9], [0.8], [0.3], [0.1]]), np.array([[1], [1], [0], [0]])
    assert AveragePrecision().score(scores, target).value == 1
    missed = np.array([[0.9], [NAN], [0.3], [0.1]])
    assert close(AveragePrecision().score(missed, target).value, (1 + 2 / 4) / 2)
    first = np.array([[0.9], [0.8], [NAN], [0.1]])
    assert close(AveragePrecision().score(first, target).value, (1 / 2 + 2 / 3) / 2)
    both = np.array([[0.1, 0.9], [NAN, 0.8], [0.7, 0.3], [0.9, 0.1]])
    assert close(AveragePrecision().score(both, target[:, 0]).value, (1 + 2 / 4) / 2)


@pytest.mark.parametrize("metric", [F1(), AveragePrecision()])
def test_labels_that_do_not_fit(metric):
    scores, target = multilabel()
    outputs = scores if metric.reads == "scores" else scores.round().astype(int)
    with pytest.raises(
        UsageError, match=r"labels of shape \[60, 4\] do not match outputs of shape \[60, 5\]"
    ):
        metric.score(outputs, target[:, :4])
    with pytest.raises(UsageError, match="label 1 of sample 7 is 2"):
        metric.score(outputs, np.where(np.arange(300).reshape(60, 5) == 36, 2, target))
    with pytest.raises(UsageError, match=r"label 0 of sample 0 is 0\.5"):
        metric.score(outputs, target * 0 + 0.5)
    with pytest.raises(UsageError, match=r"average_precision needs positive|no label applies"):
        metric.score(0 * outputs, 0 * target)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, -2]), "label -2 of sample 2 is negative"),
        (np.array([0.0, 1.0, 2.0]), "labels are float64, not integers"),
        (np.eye(3, dtype=int), r"labels of shape \[3, 3\] are not one class index"),
    ],
)
def test_classes_that_do_not_fit(labels, message):
    with pytest.raises(UsageError, match=message):
        F1().score(np.array([0, 1, 2]), labels)
    with pytest.raises(UsageError, match=message):
        RecallAtK().score(np.eye(3), labels)


# --- equal error rate


def naive_equal_error_rate(positive, labels):
    """Both error rates at each threshold, and the crossing of the lines between neighbouring thresholds."""
    points = [(0.0, 1.0)]
    for threshold in sorted(set(positive), reverse=True):
        accepted = [score >= threshold for score in positive]
        false = sum(yes for yes, label in zip(accepted, labels, strict=True) if not label)
        missed = sum(not yes for yes, label in zip(accepted, labels, strict=True) if label)
        points.append((false / sum(labels == 0), missed / sum(labels == 1)))
    for (x, y), (u, v) in pairwise(points):
        if x <= y and u >= v:  # x + t (u - x) = y + t (v - y)
            return x + (y - x) / ((y - x) + (u - v)) * (u - x)
    raise AssertionError("the rates cross")


@pytest.mark.parametrize("seed", range(8))
def test_equal_error_rate_equals_the_naive_one(seed):
    scores, labels = binary(seed, 41)
    wanted = naive_equal_error_rate(scores[:, 1], labels)
    assert 0 < wanted < 0.5
    assert close(EqualErrorRate().score(scores, labels).value, wanted)
    assert close(
        EqualErrorRate().score(1 - scores, 1 - labels).value, naive_equal_error_rate(*swapped(scores, labels))
    )


def swapped(scores, labels):
    return 1 - scores[:, 1], 1 - labels


def two(positive):
    return np.stack([1 - positive, positive], axis=1)


def test_limits_of_the_equal_error_rate():
    labels = np.array([0, 0, 1, 1])
    metric = EqualErrorRate()
    assert metric.score(two(np.array([0.1, 0.2, 0.8, 0.9])), labels).value == 0
    assert metric.score(two(np.array([0.9, 0.8, 0.2, 0.1])), labels).value == 1
    assert metric.score(two(np.full(4, 0.5)), labels).value == 0.5
    assert metric.score(two(np.array([0.1, 0.6, 0.4, 0.9])), labels).value == 0.5
    assert metric.score(two(np.full(4, NAN)), labels).value == 1
    assert metric.score(two(np.array([0.1, 0.2, NAN, 0.9])), labels).value == pytest.approx(0.5)
    assert not metric.higher_is_better


def test_equal_error_rate_needs_two_classes():
    with pytest.raises(UsageError, match="two classes, this one has 3"):
        EqualErrorRate().score(np.zeros((4, 3)), np.array([0, 1, 2, 0]))
    with pytest.raises(UsageError, match="all labels are 1"):
        EqualErrorRate().score(np.zeros((3, 2)), np.ones(3, int))


# --- retrieval


def naive_recall(values, labels, k):
    hits = []
    for query, (vector, label) in enumerate(zip(values, labels, strict=True)):
        others = [
            (-float(np.dot(vector, other)), labels[index])
            for index, other in enumerate(values)
            if index != query
        ]
        if label in [other for _, other in others]:
            hits.append(label in [other for _, other in sorted(others)[:k]])
        else:
            hits.append(None)
    return hits


@pytest.mark.parametrize("k", [1, 3, 100])
def test_recall_equals_the_naive_one(k, monkeypatch):
    values, labels = vectors()
    labels[0] = 99  # occurs once
    hits = naive_recall(values, labels, k)
    counted = [hit for hit in hits if hit is not None]
    assert len(counted) < len(hits)
    metric = RecallAtK(k=k)
    score = metric.score(values, labels)
    assert close(score.value, np.mean(counted))
    assert k == 100 or 0 < score.value < 1
    assert score.evidence.tolist() == [[bool(hit), hit is not None] for hit in hits]
    monkeypatch.setattr("edgeopt.evaluation.metrics.recall_at_k.BLOCK", 7 * len(values))
    assert metric.score(values, labels).value == score.value
    # Weights are of the searches, among the same samples.
    assert metric.weighted(score.evidence, np.ones(len(labels))) == score.value
    weights = np.random.default_rng(0).integers(0, 4, len(labels)).astype(float)
    pairs = [(weight, hit) for weight, hit in zip(weights, hits, strict=True) if hit is not None]
    wanted = sum(weight * hit for weight, hit in pairs) / sum(weight for weight, _ in pairs)
    assert close(metric.weighted(score.evidence, weights), wanted)


def test_recall_of_equal_and_of_broken_vectors():
    labels = np.array([0, 0, 1, 1])
    assert RecallAtK().score(np.ones((4, 3)) / np.sqrt(3), labels).value == 0
    assert RecallAtK(k=3).score(np.ones((4, 3)) / np.sqrt(3), labels).value == 1
    values = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert RecallAtK().score(values, labels).value == 1
    values[2] = NAN
    assert RecallAtK().score(values, labels).evidence[:, 0].tolist() == [1, 1, 0, 0]


def test_vectors_and_identities_that_do_not_fit():
    values, labels = vectors()
    with pytest.raises(UsageError, match="40 outputs but 39 labels"):
        RecallAtK().score(values, labels[:-1])
    with pytest.raises(UsageError, match="each label occurs once"):
        RecallAtK().score(values, np.arange(40))
    with pytest.raises(UsageError, match=r"\[4, 2, 2\] are not one vector per sample"):
        RecallAtK().score(np.zeros((4, 2, 2)), labels[:4])
