"""The fine-tuning loop: epochs, early stopping, and checkpoints that survive a killed process."""

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
from edgeopt.stages._training import Scores, Trainee, Training, softmax, target_of
from edgeopt.stages._training_data import (
    Split,
    TrainingData,
    augment,
    check_augmentation,
    one_cycle,
    order,
    split,
)

COMPARED_SAMPLES = 512
"""Number of samples on which training and calibration data are compared."""

MISMATCH = 0.15
"""Difference in mean confidence, or in mean entropy relative to its maximum, that causes a warning."""


@dataclass(frozen=True)
class Epoch:
    """State of the training after an epoch, saved with the weights. Epoch 0 is before training."""

    epoch: int
    loss: float
    """Loss of the held-out samples; of training samples if none are held out."""
    score: float
    """Fraction of held-out samples predicted as by the source model, or as labelled."""
    best: int
    """The epoch with the best weights so far; -1 if no epoch qualifies yet."""
    best_loss: float
    setting: str = ""


class Outcome(NamedTuple):
    """Result of the training. The trainee has the weights of ``best``."""

    start: Epoch
    best: Epoch
    epochs: int


def train(options: Training, trainee: Trainee, model: Model, context: Context) -> Outcome:
    """Train for ``options.epochs``, or until the held-out loss stops falling; keep the best epoch.

    An interrupted training resumes after the last completed epoch and ends with the same weights.

    Raises:
        StageError: the training data are missing, their labels are missing or of one class, or the loss is
            not finite.
        UsageError: the training data are empty, not finite, or of different shapes.
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
        options: Training,
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
        self.held_out = parts.held_out if len(parts.held_out) else parts.train[: COMPARED_SAMPLES // 2]
        self.expected = self._targets(self.held_out)
        # Without augmentation the teacher's outputs are the same in every epoch.
        self.targets = None if options.augment else self._targets(parts.train)
        self.setting = json.dumps([options.options(), len(data)], sort_keys=True)

    def run(self) -> Outcome:
        state = self._resume()
        if state is None:
            keep = self.trainee.begin(0)
            loss, score = self._evaluate()
            if not math.isfinite(loss):
                raise StageError(
                    "the model's outputs are not finite before training has begun",
                    fix="check the model's weights and the preceding stages",
                )
            state = Epoch(0, loss, score, 0 if keep else -1, loss if keep else math.inf, self.setting)
            self._write(state)
            self.context.progress(f"before training: loss {loss:.4f}, {self.options.score_name} {score:.1%}")
        else:
            self.context.progress(f"resuming after epoch {state.epoch}")
        start = self._read(0) or state
        started_at, first = time.monotonic(), state.epoch
        while state.epoch < self.options.epochs and not self._exhausted(state):
            state = self._run_epoch(state, started_at, first)
        if state.best != state.epoch and state.best >= 0:
            self.trainee.load(self._epoch_folder(state.best))
        best = (self._read(state.best) if state.best >= 0 else None) or state
        return Outcome(start, best, state.epoch)

    def _exhausted(self, state: Epoch) -> bool:
        return (
            len(self.parts.held_out) > 0
            and state.best >= 0
            and state.epoch - state.best >= self.options.patience
        )

    def _run_epoch(self, before: Epoch, started_at: float, first: int) -> Epoch:
        number = before.epoch + 1
        keep = self.trainee.begin(number)
        training_loss = self._train_epoch(number)
        loss, score = self._evaluate()
        # Without held-out samples there is no selection: the last epoch counts.
        best = keep and (not len(self.parts.held_out) or loss < before.best_loss)
        state = Epoch(
            number,
            loss,
            score,
            number if best else before.best,
            loss if best else before.best_loss,
            self.setting,
        )
        self._write(state)
        seconds_per_epoch = (time.monotonic() - started_at) / (number - first)
        remaining = seconds_per_epoch * (self.options.epochs - number)
        self.context.progress(
            f"epoch {number}/{self.options.epochs}: loss {training_loss:.4f}, held out {loss:.4f}, "
            f"{self.options.score_name} {score:.1%}, {_duration(remaining)} left"
        )
        return state

    def _train_epoch(self, epoch: int) -> float:
        """Train one epoch; return the mean loss of its batches."""
        options, total = self.options, 0.0
        # Seeded per epoch, so that a resumed run draws the same augmentation.
        rng = np.random.default_rng([options.seed, epoch, 1])
        batches = order(np.arange(len(self.parts.train)), self.size, options.seed, epoch)
        for number, positions in enumerate(batches):
            rate = one_cycle(
                (epoch - 1) * self.steps + number, options.epochs * self.steps, options.learning_rate
            )
            rows = self.parts.train[positions]
            inputs, target = self.data.batch(rows), None
            if options.augment:
                inputs, mix = augment(inputs, self.data.specs, options.augment, rng)
                if options.from_labels:
                    target = self._labels(rows)
                    target = mix.apply(target) if mix else target
                else:
                    target = target_of(options, self.trainee.teacher(inputs))
            elif self.targets is not None:
                target = self.targets[positions]
            assert target is not None
            loss = self.trainee.step(inputs, target, rate)
            if not math.isfinite(loss):
                raise StageError(
                    f"the loss is {loss} in epoch {epoch}, at a learning rate of {rate:.2g}",
                    fix=f"set a lower learning_rate, such as {options.learning_rate / 10:g}",
                )
            total += loss
        return total / len(batches)

    def _evaluate(self) -> tuple[float, float]:
        """Loss and score of the held-out samples."""
        outputs = np.concatenate(
            [self.trainee.outputs(batch) for batch in self.data.batches(self.held_out, self.size)]
        )
        if self.options.loss == "mse":
            error = float(np.mean((outputs - self.expected) ** 2, dtype=np.float64))
            return error, 1 - error / max(1e-12, float(np.var(self.expected, dtype=np.float64)))
        temperature = 1.0 if self.options.from_labels else self.options.temperature
        log_predicted = np.log(np.maximum(softmax(np.asarray(outputs / temperature, np.float32)), 1e-12))
        targets = np.maximum(self.expected, 1e-12)
        loss = float((self.expected * (np.log(targets) - log_predicted)).sum(axis=1).mean(dtype=np.float64))
        # Gradients of the softened loss scale with 1 / T^2 (Hinton et al. 2015, section 2).
        return loss * temperature**2, float(np.mean(outputs.argmax(axis=1) == self.expected.argmax(axis=1)))

    def _targets(self, rows: NDArray[np.int64]) -> Scores:
        if self.options.from_labels:
            return self._labels(rows)
        return np.concatenate(
            [
                target_of(self.options, self.trainee.teacher(batch))
                for batch in self.data.batches(rows, self.size)
            ]
        )

    def _labels(self, rows: NDArray[np.int64]) -> Scores:
        assert self.data.labels is not None  # ensured by _check_labels
        # Any two samples reveal the number of classes.
        scores = self.trainee.outputs(self.data.batch(self.parts.train[:2]))
        if scores.ndim != 2:
            raise StageError(
                f"the output, of shape {list(scores.shape)}, is not a row of class scores",
                fix="leave distill on, with loss: mse",
            )
        classes = scores.shape[1]
        highest = int(self.data.labels.max())
        if highest >= classes:
            raise StageError(
                f"the training data contain the label {highest}, but the model has {classes} classes",
                fix="correct the labels of 'data.train'",
            )
        return np.eye(classes, dtype=np.float32)[self.data.labels[rows]]

    def _epoch_folder(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}"

    def _write(self, state: Epoch) -> None:
        """Save atomically, by renaming a complete folder; keep only the first, best and last epoch."""
        scratch = self.folder / "unfinished"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        self.trainee.save(scratch)
        (scratch / "record.json").write_text(json.dumps(asdict(state)))
        shutil.rmtree(self._epoch_folder(state.epoch), ignore_errors=True)
        # A rename is atomic: a killed process leaves the previous epoch or this one, never half of it.
        os.replace(scratch, self._epoch_folder(state.epoch))
        needed = {self._epoch_folder(epoch) for epoch in (0, state.best, state.epoch)}
        for old in self.folder.glob("epoch-*"):
            if old not in needed:
                shutil.rmtree(old)

    def _read(self, epoch: int) -> Epoch | None:
        record = self._epoch_folder(epoch) / "record.json"
        return Epoch(**json.loads(record.read_text())) if record.is_file() else None

    def _resume(self) -> Epoch | None:
        """Load the last completed epoch of an interrupted run with the same options and data."""
        folders = sorted(self.folder.glob("epoch-*"))
        if not folders:
            return None
        last = self._read(int(folders[-1].name.removeprefix("epoch-")))
        if last is None or last.setting != self.setting:
            for old in folders:
                shutil.rmtree(old)
            return None
        self.trainee.begin(last.epoch)
        self.trainee.load(folders[-1])
        return last


@contextmanager
def _checkpoints(context: Context) -> Iterator[Path]:
    if context.checkpoints is not None:
        context.checkpoints.mkdir(parents=True, exist_ok=True)
        yield context.checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="edgeopt-training-") as folder:
        yield Path(folder)


def _check_labels(options: Training, data: TrainingData, context: Context) -> None:
    if data.labels is None:
        if options.from_labels:
            raise StageError(
                "finetune has distill: false, but the training data have no class labels",
                fix="provide labels in 'data.train', or leave distill on, which needs none",
            )
        return
    if len(classes := np.unique(data.labels)) == 1:
        message = f"all {len(data)} training samples have the label {classes[0]}"
        if options.from_labels:
            raise StageError(
                f"{message}: the model would learn to predict nothing else",
                fix="provide samples of every class in 'data.train'",
            )
        context.note(f"{message}: the source model is distilled on one class only")


def _compare_data(
    options: Training, trainee: Trainee, data: TrainingData, model: Model, context: Context
) -> None:
    """Warn if the source model's confidence differs between training and calibration data.

    The usual cause is different preprocessing, which no shape reveals.
    """
    other = context.calibration or context.validation
    if other is None or options.loss != "kl":
        return

    def confidence(samples: TrainingData) -> tuple[float, float]:
        rows = np.linspace(0, len(samples) - 1, min(COMPARED_SAMPLES, len(samples))).astype(np.int64)
        scores = np.concatenate([trainee.teacher(b) for b in samples.batches(rows, options.batch_size)])
        if scores.ndim != 2 or scores.shape[1] < 2:
            return 0.0, 0.0
        shares = softmax(scores).astype(np.float64)
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1) / math.log(shares.shape[1])
        return float(shares.max(axis=1).mean()), float(entropy.mean())

    ours, theirs = confidence(data), confidence(TrainingData.read(other, model, limit=COMPARED_SAMPLES))
    if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > MISMATCH:
        name = "calibration" if context.calibration is not None else "validation"
        context.note(
            f"the training data differ from the {name} data: the source model has a mean confidence of "
            f"{ours[0]:.1%} on them (entropy {ours[1]:.1%} of the maximum), against {theirs[0]:.1%} "
            f"({theirs[1]:.1%}); check that both have the same preprocessing"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
