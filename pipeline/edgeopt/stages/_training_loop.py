"""The loop of fine-tuning: epochs, early stopping, and checkpoints that survive a killed process."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages._training import Finetune, Scores, Trainee, softmax, target_of
from edgeopt.stages._training_data import (
    Split,
    TrainingData,
    augment,
    check_augmentation,
    one_cycle,
    order,
    split,
)

EVIDENCE = 512
"""Samples on which training and calibration data are compared."""

UNLIKE = 0.15
"""Difference of mean certainty, or of mean entropy as a share of its maximum, that is worth a warning."""


@dataclass(frozen=True)
class Epoch:
    """How training stands after an epoch; written beside the weights. Epoch 0 is the start."""

    epoch: int
    loss: float
    """Of the held-out samples; of the training samples where none is held out."""
    score: float
    """Share of held-out samples answered as the source model does, or as labelled."""
    best: int
    """The epoch whose weights are kept, -1 if none may be yet."""
    best_loss: float
    setting: str = ""


class Outcome(NamedTuple):
    """What training came to. The trainee holds the weights of ``best``."""

    start: Epoch
    best: Epoch
    epochs: int


def train(options: Finetune, trainee: Trainee, model: Model, context: Context) -> Outcome:
    """Train until ``options.epochs``, or until the held-out loss no longer falls; keep the best epoch.

    Interrupted at any time, it goes on after the last finished epoch and ends with the same weights.

    Raises:
        StageError: no training data, labels missing or of one class, a loss that is not finite.
        UsageError: training data that are empty, not finite, or of several shapes.
    """
    if context.training is None:
        raise StageError(
            "fine-tuning needs training data", fix="add data.train: {uses: npz, with: {path: train.npz}}"
        )
    data = TrainingData.read(context.training, model)
    check_augmentation(options.augment, data.specs)
    _check_labels(options, data, context)
    parts = split(len(data), options.held_out, options.seed)
    _compare_data(options, trainee, data, model, context)
    with _checkpoints(context) as folder:
        return _Loop(options, trainee, data, parts, folder, context).run()


class _Loop:
    def __init__(
        self,
        options: Finetune,
        trainee: Trainee,
        data: TrainingData,
        parts: Split,
        folder: Path,
        context: Context,
    ) -> None:
        self.options, self.trainee, self.data, self.parts = options, trainee, data, parts
        self.folder, self.context = folder, context
        size = min(options.batch_size, len(parts.train))
        self.size = size
        self.steps = max(1, len(parts.train) // size)
        self.watched = parts.held_out if len(parts.held_out) else parts.train[: EVIDENCE // 2]
        self.wanted = self._targets(self.watched)
        # Without augmentation the source model says the same in every epoch.
        self.known = None if options.augment else self._targets(parts.train)
        self.setting = json.dumps([options.options(), len(data)], sort_keys=True)

    def run(self) -> Outcome:
        now = self._resume()
        if now is None:
            keep = self.trainee.begin(0)
            loss, score = self._judge()
            if not math.isfinite(loss):
                raise StageError(
                    "the model's outputs are not finite before training has begun",
                    fix="look at the model's weights, and at what was done to it before",
                )
            now = Epoch(0, loss, score, 0 if keep else -1, loss if keep else math.inf, self.setting)
            self._write(now)
            self.context.progress(f"before training: loss {loss:.4f}, {self._word} {score:.1%}")
        else:
            self.context.progress(f"going on after epoch {now.epoch}")
        start = self._read(0) or now
        begun, first = time.monotonic(), now.epoch
        while now.epoch < self.options.epochs and not self._exhausted(now):
            now = self._epoch(now, begun, first)
        if now.best != now.epoch and now.best >= 0:
            self.trainee.load(self._place(now.best))
        best = (self._read(now.best) if now.best >= 0 else None) or now
        return Outcome(start, best, now.epoch)

    def _exhausted(self, now: Epoch) -> bool:
        return (
            len(self.parts.held_out) > 0 and now.best >= 0 and now.epoch - now.best >= self.options.patience
        )

    def _epoch(self, before: Epoch, begun: float, first: int) -> Epoch:
        number = before.epoch + 1
        keep = self.trainee.begin(number)
        learned = self._learn(number)
        loss, score = self._judge()
        # With nothing to choose by, the last one is it.
        best = keep and (not len(self.parts.held_out) or loss < before.best_loss)
        now = Epoch(
            number,
            loss,
            score,
            number if best else before.best,
            loss if best else before.best_loss,
            self.setting,
        )
        self._write(now)
        each = (time.monotonic() - begun) / (number - first)
        left = each * (self.options.epochs - number)
        self.context.progress(
            f"epoch {number}/{self.options.epochs}: loss {learned:.4f}, held out {loss:.4f}, "
            f"{self._word} {score:.1%}, {_duration(left)} left"
        )
        return now

    def _learn(self, epoch: int) -> float:
        """One epoch; the mean loss of its batches."""
        options, total = self.options, 0.0
        rng = np.random.default_rng([options.seed, epoch, 1])
        chosen = order(np.arange(len(self.parts.train)), self.size, options.seed, epoch)
        for number, positions in enumerate(chosen):
            rate = one_cycle(
                (epoch - 1) * self.steps + number, options.epochs * self.steps, options.learning_rate
            )
            rows = self.parts.train[positions]
            inputs, target = self.data.batch(rows), None
            if options.augment:
                inputs, mix = augment(inputs, self.data.specs, options.augment, rng)
                if not options.distill:
                    target = self._labels(rows)
                    target = mix.apply(target) if mix else target
                else:
                    target = target_of(options, self.trainee.teacher(inputs))
            elif self.known is not None:
                target = self.known[positions]
            assert target is not None
            loss = self.trainee.step(inputs, target, rate)
            if not math.isfinite(loss):
                raise StageError(
                    f"the loss is {loss} in epoch {epoch}, at a learning rate of {rate:.2g}",
                    fix=f"set a lower learning_rate in finetune, such as {options.learning_rate / 10:g}",
                )
            total += loss
        return total / len(chosen)

    def _judge(self) -> tuple[float, float]:
        """Loss and score of the held-out samples."""
        found = np.concatenate(
            [self.trainee.outputs(batch) for batch in self.data.batches(self.watched, self.size)]
        )
        if self.options.loss == "mse" and self.options.distill:
            error = float(np.mean((found - self.wanted) ** 2, dtype=np.float64))
            return error, 1 - error / max(1e-12, float(np.var(self.wanted, dtype=np.float64)))
        heat = self.options.temperature if self.options.distill else 1.0
        got = np.log(np.maximum(softmax(np.asarray(found / heat, np.float32)), 1e-12))
        wanted = np.maximum(self.wanted, 1e-12)
        loss = float((self.wanted * (np.log(wanted) - got)).sum(axis=1).mean(dtype=np.float64))
        return loss * heat**2, float(np.mean(found.argmax(axis=1) == self.wanted.argmax(axis=1)))

    @property
    def _word(self) -> str:
        if not self.options.distill:
            return "accuracy"
        return "agreement" if self.options.loss == "kl" else "explained"

    def _targets(self, rows: NDArray[np.int64]) -> Scores:
        if not self.options.distill:
            return self._labels(rows)
        return np.concatenate(
            [
                target_of(self.options, self.trainee.teacher(batch))
                for batch in self.data.batches(rows, self.size)
            ]
        )

    def _labels(self, rows: NDArray[np.int64]) -> Scores:
        assert self.data.labels is not None  # _check_labels has seen to it
        scores = self.trainee.outputs(self.data.batch(self.parts.train[:2]))
        if scores.ndim != 2:
            raise StageError(
                f"the first output, of shape {list(scores.shape)}, is no row of class scores",
                fix="leave distill on, with loss: mse",
            )
        classes = scores.shape[1]
        highest = int(self.data.labels.max())
        if highest >= classes:
            raise StageError(
                f"the training data have a label {highest}, and the model gives {classes} scores",
                fix="correct the labels of 'data.train'",
            )
        return np.eye(classes, dtype=np.float32)[self.data.labels[rows]]

    def _place(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}"

    def _write(self, now: Epoch) -> None:
        """Complete or absent: written beside, then renamed. Only the best, the first and the last stay."""
        scratch = self.folder / "unfinished"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        self.trainee.save(scratch)
        (scratch / "record.json").write_text(json.dumps(asdict(now)))
        shutil.rmtree(self._place(now.epoch), ignore_errors=True)
        os.replace(scratch, self._place(now.epoch))
        for old in self.folder.glob("epoch-*"):
            if old not in {self._place(0), self._place(now.best), self._place(now.epoch)}:
                shutil.rmtree(old)

    def _read(self, epoch: int) -> Epoch | None:
        record = self._place(epoch) / "record.json"
        return Epoch(**json.loads(record.read_text())) if record.is_file() else None

    def _resume(self) -> Epoch | None:
        """Load the last finished epoch of an interrupted run with the same options and data."""
        found = sorted(self.folder.glob("epoch-*"))
        if not found:
            return None
        last = self._read(int(found[-1].name.removeprefix("epoch-")))
        if last is None or last.setting != self.setting:
            for old in found:
                shutil.rmtree(old)
            return None
        self.trainee.begin(last.epoch)
        self.trainee.load(found[-1])
        return last


@contextmanager
def _checkpoints(context: Context) -> Iterator[Path]:
    if context.checkpoints is not None:
        context.checkpoints.mkdir(parents=True, exist_ok=True)
        yield context.checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="edgeopt-training-") as folder:
        yield Path(folder)


def _check_labels(options: Finetune, data: TrainingData, context: Context) -> None:
    if data.labels is None:
        if not options.distill:
            raise StageError(
                "finetune has distill: false, and the training data have no class labels",
                fix="give labels in 'data.train', or leave distill on: it needs none",
            )
        return
    if len(found := np.unique(data.labels)) == 1:
        told = f"all {len(data)} training samples are labelled {found[0]}"
        if not options.distill:
            raise StageError(
                f"{told}: the model would learn to say nothing else",
                fix="give samples of every class in 'data.train'",
            )
        context.note(f"{told}: the model learns how the source model sees one class only")


def _compare_data(
    options: Finetune, trainee: Trainee, data: TrainingData, model: Model, context: Context
) -> None:
    """Warn when the source model finds the training data unlike the calibration data."""
    other = context.calibration or context.validation
    if other is None or options.loss != "kl":
        return

    def certainty(samples: TrainingData) -> tuple[float, float]:
        rows = np.linspace(0, len(samples) - 1, min(EVIDENCE, len(samples))).astype(np.int64)
        scores = np.concatenate([trainee.teacher(b) for b in samples.batches(rows, options.batch_size)])
        if scores.ndim != 2 or scores.shape[1] < 2:
            return 0.0, 0.0
        shares = softmax(scores).astype(np.float64)
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1) / math.log(shares.shape[1])
        return float(shares.max(axis=1).mean()), float(entropy.mean())

    mine, theirs = certainty(data), certainty(TrainingData.read(other, model, limit=EVIDENCE))
    if max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) > UNLIKE:
        what = "calibration" if context.calibration is not None else "validation"
        context.note(
            f"the training data look unlike the {what} data: on them the source model gives its first "
            f"choice {mine[0]:.1%} on average (entropy {mine[1]:.1%} of the maximum), against "
            f"{theirs[0]:.1%} ({theirs[1]:.1%}); check that both are prepared alike"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
