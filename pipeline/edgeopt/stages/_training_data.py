"""Training data: raw samples in memory, preprocessed and augmented batch by batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.evaluation.samples import checked
from edgeopt.model import Array, InputPreprocessing, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Feed

Augmentation: TypeAlias = Literal["flip", "shift", "mixup", "cutmix"]
Batch: TypeAlias = tuple[NDArray[np.float32], ...]
"""One array per input of the model, each with the batch axis first."""

SHIFT = 4
"""Maximum shift in pixels, as in He et al. 2015 (arXiv:1512.03385), section 4.2."""

MIXED = 0.3
"""Fraction of the batches to which mixup is applied."""


class Split(NamedTuple):
    """Indices of the training samples and of those held out for early stopping."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split(count: int, share: float, seed: int) -> Split:
    """Hold out the fraction ``share`` of ``count`` samples, deterministic for each seed.

    Raises:
        StageError: fewer than two samples would be left to train on.
    """
    order = np.random.default_rng(seed).permutation(count)
    held_out = max(1, round(share * count)) if share > 0 else 0
    if count - held_out < 2:
        raise StageError(
            f"{count} training samples, {held_out} of them held out, leave nothing to train on",
            fix="provide more samples in 'data.train'",
        )
    return Split(np.sort(order[held_out:]), np.sort(order[:held_out]))


@dataclass(frozen=True)
class TrainingData:
    """Raw samples, and the input format of a model."""

    raw: tuple[Array, ...]
    """One array per input, in the dataset's dtype, with samples along the first axis."""
    labels: NDArray[np.int64] | None
    preprocessing: Preprocessing | InputPreprocessing
    specs: tuple[TensorSpec, ...]

    @classmethod
    def read(cls, feed: Feed, model: Model, limit: int | None = None) -> "TrainingData":
        """Read the first ``limit`` samples of ``feed``, or all. Labels other than class indices are dropped.

        Raises:
            UsageError: the data are empty, or a sample is not finite or differs in shape from the others.
        """
        names = feed.preprocessing.names(model.inputs)
        rows: list[tuple[Array, ...]] = []
        labels: list[int] = []
        for sample in checked(feed.dataset):
            rows.append(sample.in_order(names))
            if isinstance(sample.label, int | np.integer):
                labels.append(int(sample.label))
            if limit is not None and len(rows) == limit:
                break
        return cls(
            raw=tuple(np.stack(values) for values in zip(*rows, strict=True)),
            labels=np.asarray(labels, np.int64) if len(labels) == len(rows) else None,
            preprocessing=feed.preprocessing,
            specs=model.inputs,
        )

    def __len__(self) -> int:
        return len(self.raw[0])

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """These samples in the order, layout and dtype of the model's inputs."""
        batch = []
        for position, (values, spec) in enumerate(zip(self.raw, self.specs, strict=True)):
            steps = self.preprocessing.of(position, spec)
            real = np.issubdtype(np.dtype(spec.dtype), np.floating)
            rows = np.concatenate([steps.apply(values[i], spec) for i in indices])
            batch.append(rows.astype(np.float32 if real else spec.dtype))
        return tuple(batch)

    def batches(self, indices: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """These samples in the given order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(indices), size):
            yield self.batch(indices[start : start + size])


def order(indices: NDArray[np.int64], size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of one epoch. They depend on seed and epoch only, so that a resumed run is identical.

    An incomplete last batch is dropped: small batches harm batch norm, and the next epoch drops other
    samples.
    """
    shuffled = np.random.default_rng([seed, epoch]).permutation(indices)
    full = max(1, len(shuffled) // size)
    return [shuffled[i * size : (i + 1) * size] for i in range(full)]


class Mix(NamedTuple):
    """How a batch was mixed: ``weight * batch + (1 - weight) * batch[partner]``; for cutmix, by area."""

    partner: NDArray[np.int64]
    weight: NDArray[np.float64]
    """One weight for the whole batch, shape [1], or one per sample."""

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mix an array whose first axis is the batch."""
        weight = self.weight.reshape(-1, *[1] * (values.ndim - 1))
        own, other = weight.astype(np.float32), (1 - weight).astype(np.float32)
        return (values * own + values[self.partner] * other).astype(np.float32)


class _Cuts(NamedTuple):
    """One rectangle per sample, in coordinates relative to the image."""

    centre: NDArray[np.float64]
    side: NDArray[np.float64]

    @classmethod
    def draw(cls, count: int, rng: np.random.Generator) -> "_Cuts":
        """Draw rectangles for half of the samples, of uniform area in [0, 1) before clipping to the image."""
        area = np.where(rng.random(count) < 0.5, rng.random(count), 0)
        return cls(rng.random((count, 2)), np.sqrt(area))

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        half = self.side[:, None] / 2
        return np.clip(self.centre - half, 0, 1), np.clip(self.centre + half, 0, 1)

    @property
    def kept(self) -> NDArray[np.float64]:
        # After clipping, so that the labels are mixed by the area that is really replaced.
        low, high = self.bounds
        return np.asarray(1 - np.prod(high - low, axis=1))

    def apply(
        self, images: NDArray[np.float32], channels_first: bool, partner: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Replace each rectangle by that of the partner image."""
        size = np.array(images.shape[2:4] if channels_first else images.shape[1:3])
        corners = [np.rint(bound * size).astype(int) for bound in self.bounds]
        changed = images.copy()
        for into, source, (top, left), (bottom, right) in zip(
            changed, images[partner], *corners, strict=True
        ):
            place = np.s_[..., top:bottom, left:right] if channels_first else np.s_[top:bottom, left:right]
            into[place] = source[place]
        return changed


def check_augmentation(names: tuple[Augmentation, ...], specs: tuple[TensorSpec, ...]) -> None:
    """Check that spatial augmentation has an image input.

    Raises:
        StageError: no input has rank 4 and a known layout.
    """
    spatial = [name for name in names if name != "mixup"]
    if spatial and not any(_is_image(spec) for spec in specs):
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        raise StageError(
            f"augment: {', '.join(spatial)} requires images, but the inputs are {shapes}",
            fix="remove it, or declare the layout (NHWC or NCHW) of the input in the recipe",
        )


def augment(
    batch: Batch,
    specs: tuple[TensorSpec, ...],
    names: tuple[Augmentation, ...],
    rng: np.random.Generator,
) -> tuple[Batch, Mix | None]:
    """Augment a batch: flip images left to right, shift them, and mix every input with another sample's.

    Shifts pad by reflection. Mixup: Zhang et al. 2017 (arXiv:1710.09412), with a weight uniform in [0, 1).
    Cutmix: Yun et al. 2019 (arXiv:1905.04899), which pastes a rectangle of another image into half of the
    images; with both, a batch gets only one of them.

    Returns:
        The batch, and how it was mixed: the caller applies the same mix to the targets.
    """
    count = len(batch[0])
    flips = rng.random(count) < 0.5
    shifts = rng.integers(-SHIFT, SHIFT + 1, (count, 2))
    augmented = [
        _augment_images(values, spec.layout == "NCHW", names, flips, shifts) if _is_image(spec) else values
        for values, spec in zip(batch, specs, strict=True)
    ]
    # Drawn even if unused, so that an option does not change the random numbers of the others.
    partner, weight, mixed = rng.permutation(count), np.array([rng.random()]), rng.random() < MIXED
    if "mixup" in names and mixed:
        mix = Mix(partner, weight)
        return tuple(mix.apply(v) if np.issubdtype(v.dtype, np.floating) else v for v in augmented), mix
    if "cutmix" in names:
        cuts = _Cuts.draw(count, rng)
        changed = [
            cuts.apply(values, spec.layout == "NCHW", partner) if _is_image(spec) else values
            for values, spec in zip(augmented, specs, strict=True)
        ]
        return tuple(changed), Mix(partner, cuts.kept)
    return tuple(augmented), None


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate at one of ``steps`` steps: up to ``peak`` in the first 30 %, then down to almost zero.

    Smith 2018 (arXiv:1803.09820), with cosine annealing in both phases.
    """
    rise = max(1, int(0.3 * steps))
    if step < rise:
        return peak * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise)))
    return peak * (0.0001 + 0.9999 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def _is_image(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and spec.layout is not None


def _augment_images(
    values: NDArray[np.float32],
    channels_first: bool,
    names: tuple[Augmentation, ...],
    flips: NDArray[np.bool_],
    shifts: NDArray[np.int64],
) -> NDArray[np.float32]:
    images = values.transpose(0, 2, 3, 1) if channels_first else values
    if "flip" in names:
        images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
    if "shift" in names:
        height, width = images.shape[1:3]
        limit = min(SHIFT, height - 1, width - 1)
        padded = np.pad(images, ((0, 0), (limit, limit), (limit, limit), (0, 0)), "reflect")
        corners = limit + np.clip(shifts, -limit, limit)
        images = np.stack(
            [
                image[top : top + height, left : left + width]
                for image, (top, left) in zip(padded, corners, strict=True)
            ]
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if channels_first else images)
