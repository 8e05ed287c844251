"""The framework-independent parts of fine-tuning: data, augmentation, schedule, loop, checkpoints."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages._training import Finetune, are_probabilities, softmax
from edgeopt.stages._training_data import TrainingData, augment, check_augmentation, one_cycle, order, split
from edgeopt.stages._training_loop import Outcome, train

SPEC = TensorSpec(name="x", shape=(1, 6))
MODEL = Model(format="toy", path=Path(), inputs=(SPEC,))
IMAGE = TensorSpec(name="image", shape=(1, 8, 10, 3), layout="NHWC")


class Points(Dataset):
    """Points in six dimensions; ``labels`` contains their classes."""

    count: int = 200
    labels: str = "mixed"
    spread: float = 1.0

    def samples(self) -> Iterator[Sample]:
        rng = np.random.default_rng(1)
        for _ in range(self.count):
            values = rng.normal(size=6).astype(np.float32) * self.spread
            label = {"mixed": int(values[0] > 0), "one": 2, "none": None}[self.labels]
            yield Sample((values,), label)

    def digest(self) -> str:
        return "points"


class Toy(Finetune):
    accepts: ClassVar[frozenset[str]] = frozenset({"toy"})
    produces: ClassVar[str] = "toy"

    def run(self, model: Model, context: Context) -> Model:
        train(self, Linear(), model, context)
        return model


class Linear:
    """Softmax regression in NumPy, the smallest possible trainee."""

    def __init__(self, stop_before: int = 0) -> None:
        rng = np.random.default_rng(2)
        self.truth = (rng.normal(size=(6, 3)) * 2).astype(np.float32)
        self.weights = np.zeros((6, 3), np.float32)
        self.speed = np.zeros_like(self.weights)
        self.stop_before = stop_before
        self.rates: list[float] = []
        self.slope = 1.0

    def begin(self, epoch: int) -> bool:
        if epoch and epoch == self.stop_before:
            raise KeyboardInterrupt
        return True

    def step(
        self, inputs: tuple[NDArray[np.float32], ...], target: NDArray[np.float32], rate: float
    ) -> float:
        self.rates.append(rate)
        shares = softmax(inputs[0] @ self.weights)
        slope = inputs[0].T @ (shares - target) / len(target)
        self.speed = np.float32(0.9) * self.speed - np.float32(rate * self.slope) * slope
        self.weights = self.weights + self.speed
        return float(-(target * np.log(shares + 1e-9)).sum(axis=1).mean())

    def outputs(self, inputs: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
        return inputs[0] @ self.weights

    def teacher(self, inputs: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
        return inputs[0] @ self.truth

    def save(self, folder: Path) -> None:
        np.savez(folder / "state.npz", weights=self.weights, speed=self.speed)

    def load(self, folder: Path) -> None:
        state = np.load(folder / "state.npz")
        self.weights, self.speed = state["weights"], state["speed"]


def go(
    trainee: Linear, checkpoints: Path | None = None, dataset: Dataset | None = None, **options: Any
) -> tuple[Outcome, list[str], list[str]]:
    said: list[str] = []
    noted: list[str] = []
    parts: dict[str, Any] = {"epochs": 12, "learning_rate": 0.5, "batch_size": 32, "temperature": 1.0}
    calibration = options.pop("calibration", None)
    context = Context(
        Path(),
        calibration and Feed(calibration, Preprocessing()),
        said.append,
        training=Feed(dataset or Points(), Preprocessing()),
        checkpoints=checkpoints,
        note=noted.append,
    )
    return train(Toy(**(parts | options)), trainee, MODEL, context), said, noted


def test_split_is_the_same_every_time_and_parts_are_apart() -> None:
    first, again, other = split(1000, 0.1, 0), split(1000, 0.1, 0), split(1000, 0.1, 1)
    assert np.array_equal(first.held_out, again.held_out) and not np.array_equal(first.train, other.train)
    assert len(first.held_out) == 100
    assert sorted([*first.train, *first.held_out]) == list(range(1000))
    assert len(split(10, 0.0, 0).held_out) == 0
    with pytest.raises(StageError, match="2 training samples, 1 of them held out"):
        split(2, 0.1, 0)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = np.arange(100)
    first = order(rows, 32, seed=0, epoch=3)
    assert [len(batch) for batch in first] == [32, 32, 32]
    assert all(np.array_equal(a, b) for a, b in zip(first, order(rows, 32, 0, 3), strict=True))
    assert not np.array_equal(first[0], order(rows, 32, 0, 4)[0])
    assert [len(batch) for batch in order(rows[:5], 32, 0, 1)] == [5]


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [one_cycle(step, 100, 0.2) for step in range(100)]
    assert max(rates) == pytest.approx(0.2) and rates.index(max(rates)) == 30
    assert rates[0] == pytest.approx(0.008) and rates[-1] < 0.001
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)


def test_augmentation_is_the_same_in_both_layouts() -> None:
    images = np.random.default_rng(0).normal(size=(16, 8, 10, 3)).astype(np.float32)
    first = IMAGE.model_copy(update={"layout": "NCHW", "shape": (1, 3, 8, 10)})
    (last_out,), _ = augment((images,), (IMAGE,), ("flip", "shift"), np.random.default_rng(3))
    turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    (first_out,), _ = augment((turned,), (first,), ("flip", "shift"), np.random.default_rng(3))
    assert np.array_equal(first_out, last_out.transpose(0, 3, 1, 2))
    assert last_out.shape == images.shape and not np.array_equal(last_out, images)


def test_flips_shifts_and_mixes_are_what_they_are_called() -> None:
    images = np.random.default_rng(0).normal(size=(64, 8, 10, 3)).astype(np.float32)
    (flipped,), mix = augment((images,), (IMAGE,), ("flip",), np.random.default_rng(1))
    same = [np.array_equal(a, b) for a, b in zip(images, flipped, strict=True)]
    turned = [np.array_equal(a[:, ::-1], b) for a, b in zip(images, flipped, strict=True)]
    assert mix is None and all(a != b for a, b in zip(same, turned, strict=True)) and 15 < sum(turned) < 50
    (shifted,), _ = augment((images,), (IMAGE,), ("shift",), np.random.default_rng(1))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
    places = [
        [(y, x) for y in range(9) for x in range(9) if np.array_equal(p[y : y + 8, x : x + 10], s)]
        for p, s in zip(padded, shifted, strict=True)
    ]
    assert all(places) and len({found[0] for found in places}) > 20
    mixes = [augment((images,), (IMAGE,), ("mixup",), np.random.default_rng(seed)) for seed in range(100)]
    assert 15 < sum(mix is not None for _, mix in mixes) < 45
    (values,), mix = next(found for found in mixes if found[1] is not None)
    assert mix is not None
    wanted = mix.weight * images[5] + (1 - mix.weight) * images[mix.partner[5]]
    assert np.abs(values[5] - wanted).max() < 1e-6


def test_images_only_are_flipped() -> None:
    check_augmentation(("mixup",), (SPEC,))
    with pytest.raises(StageError, match=r"flip requires images, but the inputs are x \[1, 6\]"):
        check_augmentation(("flip",), (SPEC,))


def test_raw_samples_are_held_as_they_come_and_prepared_in_batches() -> None:
    class Pixels(Dataset):
        def samples(self) -> Iterator[Sample]:
            for value in range(10):
                yield Sample((np.full((8, 10, 3), value, np.uint8),), value)

        def digest(self) -> str:
            return "pixels"

    spec = IMAGE.model_copy(update={"layout": "NCHW", "shape": (1, 3, 8, 10)})
    model = MODEL.model_copy(update={"inputs": (spec,)})
    feed = Feed(Pixels(), Preprocessing(scale=0.5, mean=(1.0, 2.0, 3.0), layout="NHWC"))
    data = TrainingData.read(feed, model)
    assert (
        data.raw[0].dtype == np.uint8 and data.labels is not None and data.labels.tolist() == list(range(10))
    )
    (batch,) = data.batch(np.array([4, 9]))
    assert batch.shape == (2, 3, 8, 10) and batch.dtype == np.float32
    assert batch[1, :, 0, 0].tolist() == [3.5, 2.5, 1.5]
    assert len(TrainingData.read(feed, model, limit=3)) == 3


def test_it_learns_what_the_teacher_knows_and_says_so() -> None:
    trainee = Linear()
    outcome, said, noted = go(trainee)
    assert outcome.best.score >= 0.95 and outcome.best.loss < 0.1 * outcome.start.loss and noted == []
    assert "epoch 12/12: loss" in said[-1] and "agreement" in said[-1] and "left" in said[-1]
    assert max(trainee.rates) == pytest.approx(0.5, rel=0.01)


def test_it_learns_labels_when_told_to() -> None:
    outcome, said, _ = go(Linear(), distill=False, epochs=20)
    assert outcome.best.score >= 0.9 and "accuracy" in said[-1]
    # With mixup the labels are mixed as well.
    assert go(Linear(), distill=False, epochs=20, augment=("mixup",))[0].best.score >= 0.9


def test_the_best_epoch_is_kept_and_patience_ends(tmp_path: Path) -> None:
    class Ruined(Linear):
        def begin(self, epoch: int) -> bool:
            self.slope = -1.0 if epoch > 3 else 1.0  # from then on, it rises
            return True

    trainee = Ruined()
    outcome, _, _ = go(trainee, tmp_path / "c", epochs=50, patience=4)
    assert outcome.best.epoch in (3, 4) and outcome.epochs == outcome.best.epoch + 4
    rows = TrainingData.read(Feed(Points(), Preprocessing()), MODEL)
    held = rows.batch(split(200, 0.1, 0).held_out)
    agreement = (trainee.outputs(held).argmax(1) == trainee.teacher(held).argmax(1)).mean()
    assert agreement == pytest.approx(outcome.best.score)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = Linear()
    go(whole, tmp_path / "whole", augment=("mixup",))
    with pytest.raises(KeyboardInterrupt):
        go(Linear(stop_before=8), tmp_path / "c", augment=("mixup",))
    (tmp_path / "c" / "unfinished").mkdir()  # as left by a process killed while writing
    resumed = Linear()
    _, said, _ = go(resumed, tmp_path / "c", augment=("mixup",))
    assert said[0] == "resuming after epoch 7"
    assert np.array_equal(resumed.weights, whole.weights)
    # With other options, it starts again.
    _, said, _ = go(Linear(), tmp_path / "c", epochs=2)
    assert said[0].startswith("before training")


def test_weights_that_may_not_be_kept_are_not(tmp_path: Path) -> None:
    class Late(Linear):
        def begin(self, epoch: int) -> bool:
            return epoch >= 11

    outcome, _, _ = go(Late(), tmp_path)
    assert outcome.best.epoch >= 11


def test_a_loss_that_is_not_finite_names_epoch_and_rate() -> None:
    class Exploding(Linear):
        def step(self, inputs: Any, target: Any, rate: float) -> float:
            return super().step(inputs, target, rate) if len(self.rates) < 10 else math.nan

    with pytest.raises(StageError, match=r"loss is nan in epoch 3, at a learning rate of 0\.\d+") as caught:
        go(Exploding())
    assert "learning_rate, such as 0.05" in str(caught.value)


def test_labels_of_one_class_or_none() -> None:
    with pytest.raises(StageError, match="all 200 training samples have the label 2"):
        go(Linear(), dataset=Points(labels="one"), distill=False)
    _, _, noted = go(Linear(), dataset=Points(labels="one"), epochs=1)
    assert "all 200 training samples have the label 2" in noted[0]
    with pytest.raises(StageError, match="have no class labels"):
        go(Linear(), dataset=Points(labels="none"), distill=False)
    go(Linear(), dataset=Points(labels="none"), epochs=1)


def test_training_data_of_another_distribution_are_remarked() -> None:
    _, _, noted = go(Linear(), dataset=Points(spread=0.05), calibration=Points(), epochs=1)
    assert len(noted) == 1
    assert "differ from the calibration data" in noted[0] and "% on them (entropy" in noted[0]
    assert go(Linear(), calibration=Points(count=100), epochs=1)[2] == []


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="loss: mse is for distillation"):
        Toy(loss="mse", distill=False)
    refused: list[Callable[[], Toy]] = [
        lambda: Toy(epochs=0),
        lambda: Toy(learning_rate=0),
        lambda: Toy(augment=("rotate",)),
        lambda: Toy(held_out=1.0),
    ]
    for make in refused:
        with pytest.raises(ValueError):
            make()
    with pytest.raises(StageError, match="needs training data"):
        train(Toy(), Linear(), MODEL, Context(Path(), None, print))


def test_outputs_of_a_softmax_are_known() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert are_probabilities(softmax(scores)) and not are_probabilities(scores)
    assert not are_probabilities(softmax(scores)[:, :1])
