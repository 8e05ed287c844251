"""Synthetic reports for every task: a source model, and artifacts that are worse than it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.findings import Reader
from edgeopt.evaluation.hops import output_changes
from edgeopt.evaluation.interpreter import Interpreter
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.evaluation.tasks.detection import Detection
from edgeopt.evaluation.tasks.embedding import Embedding
from edgeopt.evaluation.tasks.multilabel import Multilabel
from edgeopt.evaluation.tasks.regression import Regression
from edgeopt.evaluation.tasks.segmentation import Segmentation
from edgeopt.evaluation.tasks.sequence import Sequence as SequenceTask
from edgeopt.evaluation.tasks.tensors import Tensors
from edgeopt.model import Outputs
from edgeopt.plugin import PerSample, Sample, Task
from edgeopt.reports.thumbnails import room_for, thumbnails, worst_samples
from edgeopt.results import MetricInfo, Report, Result, SourceResult
from large_report import RUN

Floats = NDArray[np.float64]
SIDE = 64


class Case(NamedTuple):
    """A task, the outputs of a model, labels, and what a worse model makes of the outputs."""

    task: Task
    outputs: Outputs
    targets: PerSample | None
    worsen: Callable[[Outputs, float, np.random.Generator], Outputs]
    images: NDArray[np.uint8] | None = None
    labels: tuple[str, ...] = ()


def noisy(outputs: Outputs, amount: float, random: np.random.Generator) -> Outputs:
    """Noise on every output, relative to its range."""
    arrays = [
        array + random.normal(0, amount * float(np.ptp(array)) + 1e-12, array.shape)
        for array in outputs.arrays
    ]
    return Outputs(arrays, outputs.names)


def scenes(n: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], list[Floats]]:
    """Images with rectangles of a shade per class, and their boxes ``[k, 6]``."""
    images = random.integers(0, 60, (n, SIDE, SIDE, 3)).astype(np.uint8)
    labels = []
    for image in images:
        boxes = []
        for _ in range(random.integers(0, 5)):
            (x, y), (width, height) = random.integers(0, 40, 2), random.integers(9, 24, 2)
            category = int(random.integers(0, 4))
            image[y : y + height, x : x + width] = np.roll([230, 150, 70], category)
            boxes.append([x, y, x + width, y + height, category, 0])
        labels.append(np.array(boxes, np.float64).reshape(-1, 6))
    return images, labels


def detection(n: int = 60) -> Case:
    """Boxes of a model that finds nearly everything."""
    random = np.random.default_rng(1)
    images, labels = scenes(n, random)
    boxes, scores, classes = np.zeros((n, 8, 4)), np.zeros((n, 8)), np.full((n, 8), -1.0)
    for index, rows in enumerate(labels):
        k = len(rows)
        boxes[index, :k] = rows[:, :4] + random.normal(0, 0.6, (k, 4))
        scores[index, :k] = random.uniform(0.55, 0.99, k)
        classes[index, :k] = rows[:, 4]

    def worsen(outputs: Outputs, amount: float, random: np.random.Generator) -> Outputs:
        boxes, scores, classes = (np.array(array) for array in outputs.arrays)
        boxes += random.normal(0, 30 * amount, boxes.shape)
        scores = np.clip(scores + random.normal(0, amount, scores.shape), 0, 1)
        other = random.random(classes.shape) < amount
        classes = np.where(other & (classes >= 0), (classes + 1) % 4, classes)
        return Outputs([boxes, scores, classes], outputs.names)

    outputs = Outputs([boxes, scores, classes], ("boxes", "scores", "classes"))
    return Case(Detection(), outputs, labels, worsen, images, ("car", "bicycle", "person", "traffic light"))


def segmentation(n: int = 24) -> Case:
    """Scores of each pixel of such images."""
    random = np.random.default_rng(2)
    images, labels = scenes(n, random)
    masks = np.zeros((n, SIDE, SIDE), np.int64)
    for mask, rows in zip(masks, labels, strict=True):
        for x1, y1, x2, y2, category in rows[:, :5].astype(int):
            mask[y1:y2, x1:x2] = category + 1
    scores = np.eye(5)[masks] * 4 + random.normal(0, 0.4, (n, SIDE, SIDE, 5))
    names = ("background", "car", "bicycle", "person", "traffic light")
    masks[0, :4] = 255
    return Case(Segmentation(), Outputs([scores], ["pixels"]), masks, noisy, images, names)


def sequence(n: int = 60) -> Case:
    """Transcripts by CTC: the class 0 is the blank."""
    random = np.random.default_rng(3)
    labels = [random.integers(1, 11, random.integers(3, 7)) for _ in range(n)]
    scores = random.normal(0, 0.3, (n, 16, 11))
    scores[:, :, 0] += 2
    for index, tokens in enumerate(labels):
        scores[index, 1 : 1 + 2 * len(tokens) : 2, 0] = 0
        scores[index, np.arange(1, 1 + 2 * len(tokens), 2), tokens] += 3
    images = random.integers(0, 255, (n, 16, SIDE, 1)).astype(np.uint8)
    names = ("_", *"0123456789")
    return Case(SequenceTask(decode="ctc"), Outputs([scores], ["steps"]), labels, noisy, images, names)


def classification(n: int = 120) -> Case:
    """Scores of five classes."""
    random = np.random.default_rng(4)
    labels = random.integers(0, 5, n)
    scores = np.eye(5)[labels] + random.normal(0, 0.2, (n, 5))
    images = random.integers(0, 255, (n, 32, 32, 3)).astype(np.uint8)
    names = ("cat", "dog", "horse", "ship", "truck")
    return Case(Classification(), Outputs([scores], ["scores"]), labels, noisy, images, names)


def multilabel(n: int = 120) -> Case:
    """Probabilities of six tags, without images."""
    random = np.random.default_rng(5)
    labels = (random.random((n, 6)) < 0.35).astype(np.int64)
    scores = np.clip(0.15 + 0.7 * labels + random.normal(0, 0.12, (n, 6)), 0, 1)

    def worsen(outputs: Outputs, amount: float, random: np.random.Generator) -> Outputs:
        return Outputs([np.clip(noisy(outputs, amount, random).arrays[0], 0, 1)], outputs.names)

    names = ("music", "speech", "traffic", "dog", "rain", "silence")
    return Case(Multilabel(), Outputs([scores], ["tags"]), labels, worsen, None, names)


def regression(n: int = 150) -> Case:
    """One number per sample."""
    random = np.random.default_rng(6)
    labels = random.uniform(0, 10, (n, 1))
    return Case(Regression(), Outputs([labels + random.normal(0, 0.3, (n, 1))], ["age"]), labels, noisy)


def keypoints(n: int = 40) -> Case:
    """Five places in an image."""
    random = np.random.default_rng(7)
    labels = random.uniform(5, 60, (n, 5, 2))
    images, _ = scenes(n, random)
    return Case(
        Regression(), Outputs([labels + random.normal(0, 0.5, labels.shape)], ["at"]), labels, noisy, images
    )


def pictures(n: int = 20) -> Case:
    """Images from images, such as denoising."""
    random = np.random.default_rng(8)
    images, _ = scenes(n, random)
    labels = images / 255
    outputs = np.clip(labels + random.normal(0, 0.02, labels.shape), 0, 1)
    return Case(Regression(), Outputs([outputs], ["image"]), labels, noisy, images)


def embedding(n: int = 80) -> Case:
    """Vectors of twelve identities."""
    random = np.random.default_rng(9)
    labels = random.integers(0, 12, n)
    vectors = random.normal(0, 1, (12, 16))[labels] + random.normal(0, 0.3, (n, 16))
    images = random.integers(0, 255, (n, 32, 32, 1)).astype(np.uint8)
    return Case(Embedding(), Outputs([vectors], ["vector"]), labels, noisy, images)


def tensors(n: int = 30) -> Case:
    """Two outputs without a meaning, of which a worse model loses a part."""
    random = np.random.default_rng(10)
    boxes = np.concatenate([random.uniform(0, 640, (n, 4, 6)), random.uniform(-2, 2, (n, 3, 6))], axis=1)

    def worsen(outputs: Outputs, amount: float, random: np.random.Generator) -> Outputs:
        worse = noisy(outputs, amount, random)
        if amount > 0.03:
            worse.arrays[0][:, 5:] = 0
        return worse

    return Case(Tensors(), Outputs([boxes, random.normal(0, 1, (n, 9))], ["raw", "state"]), None, worsen)


CASES: dict[str, Callable[[], Case]] = {
    each.__name__: each
    for each in (
        classification,
        detection,
        segmentation,
        sequence,
        multilabel,
        regression,
        keypoints,
        pictures,
        embedding,
        tensors,
    )
}


def task_report(
    case: Case, variants: Sequence[tuple[str, float]] = (("float", 0.0), ("int8", 0.06))
) -> Report:
    """The report of a run on such a model. A variant is a name, and how much worse than the source it is."""
    settled = case.task.settled(case.outputs)
    reader = Reader(settled, settled.decide(case.outputs), case.targets)
    random = np.random.default_rng(0)
    results = []
    for variant, amount in variants:
        outputs = case.worsen(case.outputs, amount, random) if amount else case.outputs
        decisions = settled.decide(outputs)
        agreement = settled.agreement(decisions, reader.source)
        values: dict[str, Any] = {"size_bytes": {"value": 40_000.0}, "fidelity_snr_db": {"value": 31.0}}
        if agreement is not None:
            values["agreement"] = {"value": float(agreement.mean()), "n": len(agreement)}
        results.append(
            Result(
                variant=variant,
                format="onnx",
                device="host",
                status="ok",
                measurements=values,
                output_changes=output_changes(case.outputs, outputs, (Interpreter(settled),)),
                findings=(reader.findings(decisions),),
            )
        )
    changed = sorted({one.sample for row in results for found in row.findings for one in found.samples})
    references = reader.references(changed)
    samples = [Sample((image,)) for image in case.images] if case.images is not None else []
    room = room_for(references)
    shown = thumbnails(samples, worst_samples(results, room.samples), "NHWC", room)
    return Report(
        recipe=type(case.task).__name__.lower(),
        run=RUN.model_copy(update={"samples": len(case.outputs.arrays[0])}),
        source=SourceResult(format="onnx", path="model.onnx", size_bytes=100_000, runtime="onnxruntime"),
        metrics=(
            MetricInfo(
                name="agreement", kind="fraction", title="agreement", better="higher", against="source"
            ),
        ),
        results=tuple(results),
        labels=case.labels,
        thumbnails=shown.pictures,
        image_size=shown.size,
        references=references,
    )
