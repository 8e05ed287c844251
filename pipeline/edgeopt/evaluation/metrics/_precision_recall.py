"""Precision against recall of detections, for any weights of the images.

From the matches of the detections with objects alone, so resampled sets of images need no new matching.
"""

from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.plugin import Contributions

Floats: TypeAlias = NDArray[np.float64]


@cache
def recalls() -> Floats:
    """The recalls at which the precision is sampled."""
    return np.linspace(0.0, 1.0, 101)


class ClassEvidence(NamedTuple):
    """The matched detections of one class in ``n`` images, by decreasing score."""

    category: int
    scores: Floats
    """``[d]``"""
    images: NDArray[np.int64]
    """The image of each detection ``[d]``."""
    correct: NDArray[np.bool_]
    """Whether it matches an object, for each IoU threshold ``[t, d]``."""
    ignored: NDArray[np.bool_]
    """Whether it is in a region that does not count ``[t, d]``."""
    truths: NDArray[np.int64]
    """Number of objects in each image ``[n]``, without crowds."""


class Curves(NamedTuple):
    """Precision against recall of one class at all thresholds, at the ``p`` correct detections.

    Precision only falls between two of them, so only these matter.
    """

    thresholds: NDArray[np.intp]
    """The threshold of each, in order ``[p]``."""
    places: NDArray[np.intp]
    """Their places among all detections, increasing at each threshold ``[p]``."""
    counted: Floats
    """The weight of the detections that count, from the best to this one ``[p]``."""
    recall: Floats
    precision: Floats
    envelope: Floats
    """The best precision at this recall or a higher one, at this threshold."""

    def steps(self, values: Floats) -> Floats:
        """The first value of each threshold, and the differences of the others from the one before."""
        steps = values.copy()
        steps[1:] -= np.where(self.thresholds[1:] == self.thresholds[:-1], values[:-1], 0.0)
        return steps

    def area(self) -> float:
        """The sum over thresholds of the mean envelope at the recalls; it is 0 where they are not reached."""
        # As many of the recalls end at a detection, and not at an earlier one.
        ends = np.searchsorted(recalls(), self.recall, side="right").astype(np.float64)
        return float(self.steps(ends) @ self.envelope) / len(recalls())


def curves(evidence: ClassEvidence, weights: Floats) -> Curves | None:
    """The curves of a class; None if no image of positive weight has an object of it."""
    objects = float(weights @ evidence.truths)
    if objects <= 0:
        return None
    weight = weights[evidence.images]
    thresholds, places = np.nonzero(evidence.correct)
    if evidence.ignored.any():
        counted = np.cumsum(weight * ~evidence.ignored, axis=1)[thresholds, places]
    else:
        counted = np.cumsum(weight)[places]
    hits = np.cumsum(weight[places])
    starts = np.searchsorted(thresholds, np.arange(len(evidence.correct)))
    hits -= np.append(0.0, hits)[starts][thresholds]
    precision = hits / (counted + np.spacing(1))
    # Larger for each threshold before, so that the maxima from the end on begin anew.
    base = 2.0 * (len(evidence.correct) - thresholds)
    envelope = np.maximum.accumulate((precision + base)[::-1])[::-1] - base
    return Curves(thresholds, places, counted, hits / objects, precision, envelope)


def average_precision(evidence: tuple[ClassEvidence, ...], weights: Floats) -> float:
    """The mean over classes with objects, image ``i`` counted ``weights[i]`` times; NaN without objects."""
    weights = np.asarray(weights, np.float64)
    every = [curves(one, weights) for one in evidence]
    areas = [each.area() for each in every if each is not None]
    return float(np.mean(areas)) / len(evidence[0].correct) if areas else float("nan")


def image_contributions(evidence: tuple[ClassEvidence, ...]) -> Contributions:
    """The contributions of the images to the average precision.

    They are derivatives of the area below the envelope. Its values at 101 recalls are a step function, which
    has no useful ones. The steps add to the reach: a quarter of one, which is their mean error, per curve.
    """
    images, thresholds = evidence[0].truths.shape[0], len(evidence[0].correct)
    ones, gains, shares, areas, ends = np.ones(images), np.zeros(images), np.zeros(images), 0.0, set()
    for one in evidence:
        each = curves(one, ones)
        assert each is not None  # classes have objects
        areas += each.area()
        gains += _derivatives(one, each)
        shares += one.truths / one.truths.sum()
        ends |= {(one.category, int(hits)) for hits in np.bincount(each.thresholds, minlength=thresholds)}
    step = 0.25 / (len(recalls()) - 1) / np.sqrt(len(ends))
    values = (areas + images * gains) / (len(evidence) * thresholds)
    return Contributions(values, images * float(shares.max() / len(evidence) + step))


def _derivatives(evidence: ClassEvidence, each: Curves) -> Floats:
    """The derivative of the sum of the areas below the envelopes by the weight of each image ``[n]``."""
    objects, count = float(evidence.truths.sum()), len(each.places)
    found = each.steps(each.recall)
    # The envelope at a detection is the precision at a later one.
    best = np.where(each.precision >= each.envelope - 1e-12, np.arange(count), count)
    best = np.minimum.accumulate(best[::-1])[::-1]
    rests_on = np.bincount(best, found, minlength=count) / each.counted
    at = each.thresholds, each.places
    # Every detection counts in the precision at the correct ones from its place on.
    gains = -_from_here(evidence, at, rests_on * each.precision) * ~evidence.ignored
    gains[at] += _from_here(evidence, at, rests_on)[at] + each.envelope / objects
    of_images = np.bincount(evidence.images, gains.sum(axis=0), minlength=len(evidence.truths))
    return of_images - evidence.truths * float(found @ each.envelope) / objects


def _from_here(
    evidence: ClassEvidence, at: tuple[NDArray[np.intp], NDArray[np.intp]], values: Floats
) -> Floats:
    """The sums of values at correct detections from each detection to the last ``[t, d]``."""
    sums = np.zeros(evidence.correct.shape)
    sums[at] = values
    return np.cumsum(sums[:, ::-1], axis=1)[:, ::-1]


def precision(evidence: ClassEvidence, weights: Floats) -> Floats | None:
    """A class's interpolated precision at each threshold and recall ``[t, 101]``; None without objects."""
    objects = float(weights @ evidence.truths)
    sampled = np.zeros((len(evidence.correct), len(recalls())))
    if objects <= 0:
        return None
    if not len(evidence.scores):
        return sampled
    weight = weights[evidence.images]
    correct = np.cumsum(evidence.correct * weight, axis=1)
    counted = np.cumsum(~evidence.ignored * weight, axis=1)
    measured = correct / (counted + np.spacing(1))
    # The envelope: the best precision at this recall or a higher one.
    measured = np.maximum.accumulate(measured[:, ::-1], axis=1)[:, ::-1]
    for row, recall in enumerate(correct / objects):
        places = np.searchsorted(recall, recalls(), side="left")
        reached = places < len(recall)
        sampled[row, reached] = measured[row, places[reached]]
    return sampled
