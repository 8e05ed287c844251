"""The search for the fewest layers in higher precision, on a model whose errors are known."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.evaluation.metrics.mean_squared_error import MeanSquaredError
from edgeopt.evaluation.metrics.top5 import Top5
from edgeopt.model import Model, Outputs, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Judging, NamedMetric, Sample, Trial
from edgeopt.stages._judging import search_samples
from edgeopt.stages._search import Budget, search

SAMPLES, CLASSES = 400, 10


class Noisy:
    """Each layer adds noise of its own size to the outputs unless it is raised, which costs its bytes."""

    def __init__(self, folder: Path, noise: Mapping[str, float], cost: Mapping[str, int]) -> None:
        random = np.random.default_rng(0)
        self.clean = random.standard_normal((SAMPLES, CLASSES)).astype(np.float32)
        self.labels = self.clean.argmax(axis=1)
        self.noise = {
            name: size * random.standard_normal((SAMPLES, CLASSES)).astype(np.float32)
            for name, size in noise.items()
        }
        self.layers = dict(cost)
        self.folder = folder
        self.made: list[frozenset[str]] = []

    def make(self, raised: frozenset[str]) -> Path:
        self.made.append(raised)
        path = self.folder / "candidate"
        path.write_bytes(b"\0" * (1000 + sum(self.layers[name] for name in raised)))
        self.raised = raised
        return path

    def outputs(self, path: Path | None) -> Outputs:
        left = [noise for name, noise in self.noise.items() if path is not None and name not in self.raised]
        return Outputs([self.clean + sum(left, np.zeros_like(self.clean))])


class Told:
    def __init__(self, folder: Path, checkpoints: Path | None = None) -> None:
        self.notes: list[str] = []
        self.trials: list[Trial] = []
        self.context = Context(
            folder,
            None,
            lambda _: None,
            checkpoints=checkpoints,
            note=self.notes.append,
            trial=self.trials.append,
        )


NOISE = {"first": 2.0, "second": 1e-3, "third": 1e-3, "fourth": 1.0, "fifth": 2e-3, "sixth": 1e-3}
COST = {"first": 30, "second": 100, "third": 500, "fourth": 400, "fifth": 50, "sixth": 10}


def test_it_raises_the_layers_that_hurt_and_no_others(tmp_path: Path) -> None:
    model, told = Noisy(tmp_path, NOISE, COST), Told(tmp_path)
    chosen = search(model, model.labels, max_drop=0.03, budget=Budget(), context=told.context)
    assert chosen == {"first", "fourth"}
    (trial,) = [trial for trial in told.trials if trial.status == "chosen"]
    assert set(trial.raised) == chosen
    assert trial.drop <= 0.03
    assert trial.size_bytes == 1430
    assert len([trial for trial in told.trials if trial.status != "alone"]) <= 20
    alone = {trial.raised: trial.snr_db or 0.0 for trial in told.trials if trial.status == "alone"}
    assert len(alone) == len(NOISE)
    # Most of the error is the first layer's.
    assert max(alone, key=alone.__getitem__) == ("first",)
    assert "holds" in told.notes[0]
    assert "first" in told.notes[0]


def test_nothing_is_raised_where_nothing_hurts(tmp_path: Path) -> None:
    model, told = Noisy(tmp_path, dict.fromkeys(COST, 0.0), COST), Told(tmp_path)
    assert search(model, model.labels, max_drop=0.0, budget=Budget(), context=told.context) == frozenset()
    assert len(told.trials) == 1
    assert model.made == [frozenset()]


def test_the_cheaper_of_two_equal_layers_is_raised(tmp_path: Path) -> None:
    model = Noisy(tmp_path, {"dear": 0.2, "cheap": 0.2}, {"dear": 1000, "cheap": 10})
    told = Told(tmp_path)
    alone = {name: model.clean + model.noise[name] for name in model.layers}
    drops = {name: float((outputs.argmax(axis=1) != model.labels).mean()) for name, outputs in alone.items()}
    limit = max(drops.values())  # raising either is enough
    assert search(model, model.labels, max_drop=limit, budget=Budget(), context=told.context) == {"cheap"}
    assert told.trials[0].drop > limit


def test_the_budget_ends_it_with_the_best_so_far(tmp_path: Path) -> None:
    model = Noisy(tmp_path, {str(n): 1.0 for n in range(16)}, {str(n): 1 for n in range(16)})
    told = Told(tmp_path)
    chosen = search(model, model.labels, max_drop=0.0, budget=Budget(trials=3), context=told.context)
    assert len([trial for trial in told.trials if trial.status != "alone"]) == 3
    (trial,) = [trial for trial in told.trials if trial.status == "chosen"]
    assert set(trial.raised) == chosen
    assert trial.drop == min(trial.drop for trial in told.trials if trial.status != "alone")
    assert "3 trials" in told.notes[0]
    assert "not reached" in told.notes[0]
    assert "best so far" in told.notes[0]


def test_time_ends_it_as_well(tmp_path: Path) -> None:
    model, told = Noisy(tmp_path, NOISE, COST), Told(tmp_path)
    search(model, model.labels, max_drop=0.0, budget=Budget(minutes=1e-9), context=told.context)
    assert "minutes" in told.notes[0]
    assert len(model.made) <= 3


def test_a_budget_of_nothing_is_refused() -> None:
    for wrong in ({"trials": 0}, {"minutes": 0}, {"minutes": -1}):
        with pytest.raises(ValueError, match="greater than"):
            Budget(**wrong)


def test_interrupted_it_goes_on_where_it_was(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()

    class Killed(Noisy):
        def make(self, raised: frozenset[str]) -> Path:
            if len(self.made) == 5:
                raise KeyboardInterrupt
            return super().make(raised)

    killed = Killed(tmp_path, NOISE, COST)
    with pytest.raises(KeyboardInterrupt):
        search(killed, killed.labels, max_drop=0.03, budget=Budget(), context=Told(tmp_path, kept).context)
    model = Noisy(tmp_path, NOISE, COST)
    told = Told(tmp_path, kept)
    assert search(model, model.labels, max_drop=0.03, budget=Budget(), context=told.context) == {
        "first",
        "fourth",
    }
    assert not set(killed.made) & set(model.made)


def test_a_record_cut_off_half_way_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text('{"known": {"tri')
    model, told = Noisy(tmp_path, NOISE, COST), Told(tmp_path, tmp_path)
    assert search(model, model.labels, max_drop=0.03, budget=Budget(), context=told.context) == {
        "first",
        "fourth",
    }


def test_without_labels_it_counts_changed_answers(tmp_path: Path) -> None:
    model, told = Noisy(tmp_path, NOISE, COST), Told(tmp_path)
    search(model, None, max_drop=0.05, budget=Budget(), context=told.context)
    (trial,) = [trial for trial in told.trials if trial.status == "chosen"]
    assert trial.agreement is not None
    assert trial.drop == pytest.approx(1 - trial.agreement)


def test_the_front_is_marked(tmp_path: Path) -> None:
    model, told = Noisy(tmp_path, NOISE, COST), Told(tmp_path)
    search(model, model.labels, max_drop=0.03, budget=Budget(), context=told.context)
    tried = [trial for trial in told.trials if trial.status != "alone"]
    for trial in tried:
        better = [o for o in tried if o.drop <= trial.drop and o.size_bytes < trial.size_bytes]
        assert (trial.status == "dominated") == bool(better) or trial.status == "chosen"


class Numbers(Dataset):
    start: int = 0

    def samples(self):
        for number in range(self.start, self.start + 5):
            yield Sample((np.full((2,), number, np.float32),), number)

    def digest(self) -> str:
        return str(self.start)


def test_it_judges_by_validation_data_where_there_are_some(tmp_path: Path) -> None:
    feed, other = Feed(Numbers(), Preprocessing()), Feed(Numbers(start=100), Preprocessing())
    model = Model(format="onnx", path=tmp_path, inputs=(TensorSpec(name="x", shape=(1, 2)),))
    context = Context(tmp_path, feed, lambda _: None)
    inputs, labels = search_samples(model, context)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert inputs[1][0].tolist() == [[1.0, 1.0]]
    _, labels = search_samples(model, context._replace(validation=other), limit=3)
    assert labels is not None
    assert labels.tolist() == [100, 101, 102]
    with pytest.raises(StageError, match="needs validation or calibration data"):
        search_samples(model, context._replace(calibration=None))


def test_a_candidate_that_cannot_be_made_is_passed_over(tmp_path: Path) -> None:
    class Refusing(Noisy):
        def make(self, raised: frozenset[str]) -> Path:
            if raised in (frozenset({"second"}), frozenset({"sixth"})):
                raise StageError("no such mixture")
            return super().make(raised)

    told = Told(tmp_path)
    noisy = Refusing(tmp_path, NOISE, COST)
    chosen = search(noisy, noisy.labels, max_drop=0.02, budget=Budget(), context=told.context)
    assert chosen == {"first", "fourth"}
    alone = {trial.raised[0]: trial for trial in told.trials if trial.status == "alone"}
    assert alone["second"].drop == 1.0 and "no such mixture" in alone["second"].name
    assert next(trial for trial in told.trials if trial.status == "chosen").size_bytes > 0
    noisy.make = lambda raised: (_ for _ in ()).throw(StageError("none"))  # type: ignore[method-assign]
    with pytest.raises(StageError, match="none"):
        search(noisy, noisy.labels, max_drop=0.02, budget=Budget(), context=Told(tmp_path).context)


class Two(Noisy):
    """A model of two outputs, whose second one is lost unless the layer 'second' is raised."""

    def outputs(self, path: Path | None) -> Outputs:
        scores = super().outputs(path).arrays[0]
        lost = path is not None and "second" not in self.raised
        boxes = self.clean[:, :4] * 0 if lost else self.clean[:, :4]
        return Outputs([scores, boxes], ("scores", "boxes"))


def test_every_output_counts(tmp_path: Path) -> None:
    model, told = Two(tmp_path, dict.fromkeys(COST, 1e-4), COST), Told(tmp_path)
    assert search(model, None, max_drop=0.01, budget=Budget(), context=told.context) == {"second"}
    assert told.trials[0].drop == 1.0


def test_the_metric_of_the_recipe_decides(tmp_path: Path) -> None:
    # The class differs often, but it is always among the five highest.
    model = Noisy(tmp_path, {"first": 0.3, "second": 1e-3}, {"first": 1, "second": 1})
    context = Told(tmp_path).context
    by_top1 = search(model, model.labels, max_drop=0.02, budget=Budget(), context=context)
    assert by_top1 == {"first"}
    judged = context._replace(judging=Judging(NamedMetric.of(Top5())))
    assert search(model, model.labels, max_drop=0.02, budget=Budget(), context=judged) == frozenset()


def test_numbers_are_judged_by_their_error(tmp_path: Path) -> None:
    model, told = Noisy(tmp_path, {"first": 0.3, "second": 1e-3}, {"first": 1, "second": 1}), Told(tmp_path)
    context = told.context._replace(judging=Judging(NamedMetric.of(MeanSquaredError())))
    assert search(model, model.clean, max_drop=0.02, budget=Budget(), context=context) == {"first"}
    assert told.trials[0].drop == pytest.approx(0.09, rel=0.1)  # 0.3 squared, relative to power 1
    assert told.trials[0].agreement is None
