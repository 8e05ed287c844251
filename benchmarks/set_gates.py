"""Simulated gates on metrics of the whole set, such as mAP; ``benchmarks/gates.py --only sets`` runs them.

A population of samples is simulated once, and scored by the shipped metric: boxes are matched, pixels are
counted. Its drop is the true one. An evaluation set is a random sample of the population, with repetitions,
and the gate is judged as in a run. The second model is worse in all samples, or only in a few images or in
one class: such losses are easily missed.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from gates import Cell, score_rates
from numpy.typing import NDArray

from edgeopt.evaluation.confidence.paired import Paired, common_reach
from edgeopt.evaluation.metrics._coco import match
from edgeopt.evaluation.metrics._counts import Counts
from edgeopt.evaluation.metrics._masks import class_counts
from edgeopt.evaluation.metrics._precision_recall import ClassEvidence, image_contributions
from edgeopt.evaluation.metrics.average_precision import AveragePrecision
from edgeopt.evaluation.metrics.equal_error_rate import EqualErrorRate
from edgeopt.evaluation.metrics.f1 import F1
from edgeopt.evaluation.metrics.miou import Miou
from edgeopt.evaluation.metrics.roc_auc import RocAuc
from edgeopt.evaluation.metrics.wer import Wer
from edgeopt.plugin import Contributions, Metric

Random = np.random.Generator
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
POPULATION = 4000
SIZES = (20, 50, 100, 400)
CHANGES = ((0.0, 0.05), (0.95, 0.01), (0.95, 0.05))
"""Fraction of the samples for which both models give the same answer, but for what the second one loses, and
the fraction that it loses."""
PITCH = 40
"""Distance of the objects of an image, in pixels."""
SIDE = 20
WIDTH = 16
"""Pixels of a mask along each side."""


class Population(NamedTuple):
    """The results of two models on a population."""

    drop: float
    drawn: Callable[[Indices], tuple[Contributions, Contributions]]
    """The contributions of both models on a set of samples, by their indices."""


def rates(population: Population, size: int, limit: float, runs: int) -> tuple[float, float]:
    """Fractions of simulated gates that fail and that pass, as ``verdict`` does for one."""
    random = np.random.default_rng(size)
    drops, ranges = np.zeros((runs, size)), np.zeros(runs)
    for run in range(runs):
        (before, reach), (after, its_reach) = population.drawn(random.integers(0, POPULATION, size))
        pair = Paired(before, after, reach=common_reach(reach, its_reach))
        drops[run], ranges[run] = pair.drops, pair.range
    return score_rates(drops, ranges, limit)


# Detection


class Detector(NamedTuple):
    """What a model finds of the objects of one image."""

    found: NDArray[np.bool_]
    scores: Floats
    shifts: Floats
    """Error of the boxes in pixels."""
    classes: Indices
    """Of boxes without an object, as are their scores."""
    wrong: Floats

    @classmethod
    def of(cls, random: Random, objects: int, shares: Floats) -> "Detector":
        extra = random.poisson(1.0)
        return cls(
            random.random(objects) < 0.9,
            random.beta(5, 2, objects),
            np.abs(random.normal(0, 2.2, objects)),
            random.choice(len(shares), extra, p=shares),
            random.beta(2, 4, extra),
        )

    def boxes(self, classes: Indices) -> Floats:
        """Detections ``[m, 6]``."""
        real = np.column_stack([_boxes(len(classes), 0, self.shifts), self.scores, classes])[self.found]
        return np.concatenate(
            [real, np.column_stack([_boxes(len(self.wrong), 500), self.wrong, self.classes])]
        )


def _boxes(count: int, row: int, shift: Floats | float = 0.0) -> Floats:
    left = PITCH * np.arange(count) + shift
    top = np.full(count, row)
    return np.stack([left, top, left + SIDE, top + SIDE], axis=1)


def _worse(
    random: Random, model: Detector, classes: Indices, change: str, amount: float, rare: int
) -> Detector:
    hit = random.random() < amount
    each = random.random(len(classes)) < amount
    if change == "objects missed":
        return model._replace(found=model.found & ~each)
    if change == "one class missed":
        return model._replace(
            found=model.found & ~((classes == rare) & (random.random(len(classes)) < 4 * amount))
        )
    if change == "lower scores":
        return model._replace(scores=model.scores * random.uniform(1 - 10 * amount, 1, len(classes)))
    if change == "images lost" and hit:
        return model._replace(found=np.zeros_like(model.found))
    if change == "images displaced" and hit:
        return model._replace(shifts=model.shifts + SIDE)
    if change == "images with ten false boxes" and hit:
        return model._replace(
            wrong=np.concatenate([model.wrong, random.beta(5, 3, 10)]),
            classes=np.concatenate([model.classes, random.integers(0, rare + 1, 10)]),
        )
    return model


def detectors(
    seed: int,
    change: str,
    correlation: float,
    amount: float,
    *,
    shares: Floats,
    crowded: bool = False,
    thresholds: tuple[float, ...] = (0.5,),
) -> Population:
    """Two detectors; the second one is worse. ``shares`` are the frequencies of the classes."""
    random = np.random.default_rng(seed)
    truths, before, after = [], [], []
    for _ in range(POPULATION):
        objects = 1 + int(random.poisson(1.0))
        if crowded and random.random() < 0.05:
            objects *= 8
        classes = random.choice(len(shares), objects, p=shares)
        one, other = Detector.of(random, objects, shares), Detector.of(random, objects, shares)
        if random.random() < correlation:
            other = one
        other = _worse(random, other, classes, change, amount, len(shares) - 1)
        truths.append(np.column_stack([_boxes(objects, 0), classes, np.zeros(objects)]))
        before.append(one.boxes(classes))
        after.append(other.boxes(classes))
    both = match(before, truths, thresholds), match(after, truths, thresholds)
    drop = image_contributions(both[0]).values.mean() - image_contributions(both[1]).values.mean()

    def drawn(images: Indices) -> tuple[Contributions, Contributions]:
        one, other = (
            image_contributions(
                tuple(each for each in (_part(of, images) for of in model) if each.truths.any())
            )
            for model in both
        )
        return one, other

    return Population(float(drop), drawn)


def _part(evidence: ClassEvidence, images: Indices) -> ClassEvidence:
    """The evidence of a set of images, which may repeat."""
    images = np.sort(images)
    times = np.bincount(images, minlength=len(evidence.truths))[evidence.images]
    which = np.repeat(np.arange(len(times)), times)
    copy = np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times)
    return ClassEvidence(
        evidence.category,
        evidence.scores[which],
        np.searchsorted(images, evidence.images[which]) + copy,
        evidence.correct[:, which],
        evidence.ignored[:, which],
        evidence.truths[images],
    )


DETECTION = (
    "objects missed",
    "one class missed",
    "lower scores",
    "images lost",
    "images displaced",
    "images with ten false boxes",
)


def detection_cells(runs: int) -> Iterator[Cell]:
    kinds = {
        "1 class": (np.ones(1), False, (0.5,)),
        "6 classes, each half as frequent as the one before, few crowded images": (
            0.5 ** np.arange(6),
            True,
            (0.5,),
        ),
        "5 classes, three thresholds": (np.full(5, 0.2), False, (0.5, 0.7, 0.9)),
    }
    for (name, (shares, crowded, thresholds)), change, (correlation, amount) in itertools.product(
        kinds.items(), DETECTION, CHANGES
    ):
        if change == "one class missed" and len(shares) == 1:
            continue
        population = detectors(
            len(change),
            change,
            correlation,
            amount,
            shares=shares / shares.sum(),
            crowded=crowded,
            thresholds=thresholds,
        )
        # Of one class, average precision is coarse: its 101 recalls matter if there are many images.
        sizes = (*SIZES, 2000) if len(shares) == 1 and change == "objects missed" else SIZES
        for size in sizes:
            text = f"n = {size:,}, {name}, {change}, correlation {correlation:g}, drop {population.drop:.1%}"
            yield *rates(population, size, population.drop, runs), text


# Segmentation


SEGMENTATION = ("pixels", "images lost", "images of one class", "one class missed")


def segmenters(seed: int, change: str, correlation: float, amount: float, *, shares: Floats) -> Population:
    """Two segmenters of rectangles on a background, which is class 0."""
    random, classes = np.random.default_rng(seed), len(shares)
    masks = np.zeros((POPULATION, WIDTH, WIDTH), np.int64)
    for mask in masks:
        for _ in range(1 + random.poisson(1.0)):
            (top, left), (high, wide) = random.integers(0, WIDTH - 4, 2), random.integers(3, 9, 2)
            mask[top : top + high, left : left + wide] = 1 + random.choice(classes, p=shares)

    def model() -> Indices:
        noise = random.random(masks.shape) < 0.05
        answers = np.where(noise, random.integers(0, classes + 1, masks.shape), masks)
        answers[random.random(POPULATION) < 0.05] = 0
        return answers

    before, fresh = model(), model()
    after = np.where((random.random(POPULATION) < correlation)[:, None, None], before, fresh)
    hit = random.random(POPULATION) < amount
    if change == "pixels":
        wrong = random.random(masks.shape) < amount
        after = np.where(wrong, random.integers(0, classes + 1, masks.shape), after)
    elif change == "images lost":
        after[hit] = 0
    elif change == "images of one class":
        after[hit] = classes
    else:
        after[(after == classes) & (random.random(POPULATION) < 3 * amount)[:, None, None]] = 0
    # All classes occur in every count, so that the counts of a set are rows of a table.
    whole = [class_counts(list(answers), list(masks), None) for answers in (before, after)]
    tables = [_table(counts) for counts in whole]
    metric = Miou()
    drop = np.subtract(*(metric.weighted(counts, np.ones(POPULATION)) for counts in whole))

    def drawn(images: Indices) -> tuple[Contributions, Contributions]:
        one, other = (metric.contributions(_counts(table[images]), len(images)) for table in tables)
        return one, other

    return Population(float(drop), drawn)


def _table(counts: Counts) -> Floats:
    table = np.zeros((POPULATION, 3 * counts.classes))
    np.add.at(table, (counts.sample, counts.cell), counts.number)
    return table


def _counts(table: Floats) -> Counts:
    sample, cell = np.nonzero(table)
    return Counts(sample, cell, table[sample, cell], table.shape[1] // 3)


def segmentation_cells(runs: int) -> Iterator[Cell]:
    kinds = {"3": np.full(2, 0.5), "8": np.full(7, 1 / 7), "5 uneven": 0.5 ** np.arange(4)}
    for (name, shares), change, (correlation, amount) in itertools.product(
        kinds.items(), SEGMENTATION, CHANGES
    ):
        population = segmenters(len(change), change, correlation, amount, shares=shares / shares.sum())
        for size in SIZES:
            where = f"n = {size}, {name} classes, {change}, correlation {correlation:g}"
            text = f"{where}, drop {population.drop:.1%}"
            yield *rates(population, size, population.drop, runs), text


# Scores of samples


def scored(
    metric: Metric, before: Floats | list[Indices], after: Floats | list[Indices], labels: object
) -> Population:
    """Two models with these answers; contributions are negated if lower is better."""
    sign = 1.0 if metric.higher_is_better else -1.0

    def taken(values: object, samples: Indices) -> object:
        return values[samples] if isinstance(values, np.ndarray) else [values[index] for index in samples]

    def drawn(samples: Indices) -> tuple[Contributions, Contributions]:
        found = []
        for answers in (before, after):
            score = metric.scored(taken(answers, samples), taken(labels, samples))
            assert score.contributions is not None
            found.append(score.contributions._replace(values=sign * score.contributions.values))
        return found[0], found[1]

    drop = metric.score(before, labels).value - metric.score(after, labels).value
    return Population(sign * drop, drawn)


def other_populations(seed: int, correlation: float, amount: float) -> Iterator[tuple[str, Population]]:
    """F1, average precision, ROC AUC, equal error rate and word error rate."""
    random = np.random.default_rng(seed)
    keep = random.random(POPULATION) < correlation
    labels = random.choice(4, POPULATION, p=[0.4, 0.3, 0.2, 0.1])

    def answers(wrong: float) -> Indices:
        return np.where(random.random(POPULATION) < wrong, random.integers(0, 4, POPULATION), labels)

    before, fresh = answers(0.1), answers(0.1)
    after = np.where(
        random.random(POPULATION) < amount, random.integers(0, 4, POPULATION), np.where(keep, before, fresh)
    )
    yield "f1", scored(F1(), before, after, labels)
    positive = (random.random(POPULATION) < 0.3).astype(np.int64)
    one, other = (random.normal(2.0 * positive, 1.0) for _ in range(2))
    worse = np.where(keep, one, other) + np.where(
        random.random(POPULATION) < 2 * amount, -4.0 * positive, 0.0
    )
    pairs = [np.stack([-values, values], axis=1) for values in (one, worse)]
    for metric in (AveragePrecision(), RocAuc(), EqualErrorRate()):
        yield type(metric).__name__, scored(metric, pairs[0], pairs[1], positive)
    words = [random.integers(0, 50, size) for size in 1 + random.poisson(6, POPULATION)]

    def heard() -> list[Indices]:
        return [np.where(random.random(len(each)) < 0.05, 99, each) for each in words]

    first, second = heard(), heard()
    lost = random.random(POPULATION) < amount
    after_words = [
        np.zeros(0, np.int64) if gone else (a if same else b)
        for gone, same, a, b in zip(lost, keep, first, second, strict=True)
    ]
    yield "wer", scored(Wer(), first, after_words, words)


def other_cells(runs: int) -> Iterator[Cell]:
    for correlation, amount in CHANGES:
        for name, population in other_populations(1, correlation, amount):
            for size in SIZES[1:]:
                text = f"{name}, n = {size}, correlation {correlation:g}, drop {population.drop:.1%}"
                yield *rates(population, size, population.drop, runs), text


def power_cells(runs: int) -> Iterator[Cell]:
    """How often a gate fails at a drop this far above its limit, and passes at one this far below."""
    shares = np.full(5, 0.2)
    for name, population in (
        ("mAP50", detectors(1, "objects missed", 0.95, 0.01, shares=shares)),
        ("mIoU", segmenters(1, "pixels", 0.95, 0.01, shares=shares)),
    ):
        for size, distance in itertools.product((100, 400, 1600), (0.01, 0.02, 0.05)):
            failed, _ = rates(population, size, population.drop - distance, runs)
            _, passed = rates(population, size, population.drop + distance, runs)
            yield failed, passed, f"{name}, n = {size:,}, {distance * 100:g} points from the limit"
