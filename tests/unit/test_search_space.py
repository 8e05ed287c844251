"""The parts of a search that need no model: space, allocation, front, proposals, journal."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.commands.search import _limit
from edgeopt.errors import MissingPackageError, RecipeError, UsageError
from edgeopt.evaluation.confidence.paired import Paired
from edgeopt.evaluation.judge import Evidence
from edgeopt.plugin import Dataset
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.searching import Search, SearchPart
from edgeopt.results import Gate, Result
from edgeopt.results.search import Tried
from edgeopt.search import proposals, search
from edgeopt.search.allocation import BITS, Sensitivity, allocate
from edgeopt.search.front import hypervolume, nearest_to_limits, placed
from edgeopt.search.halving import Halving
from edgeopt.search.journal import NAME, Journal
from edgeopt.search.measuring import Costs
from edgeopt.search.proposals import Proposals, by_main_effects, opening, require
from edgeopt.search.rows import Row, clearly_over
from edgeopt.search.selection import selection_of
from edgeopt.search.sensitivities import Foreseen, Sensitivities, together
from edgeopt.search.space import Candidate, Dimension, Point, Space, options_of, space_of
from needs import needs

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LIMITS = {"top1 max_drop 0.01": 0.01}


def recipe(search: dict[str, Any], **settings: Any) -> Recipe:
    overrides = [f"optimize.best.search={json.dumps(search)}"]
    overrides += [f"{key}={json.dumps(value)}" for key, value in ({"formats": "tflite"} | settings).items()]
    return load_recipe(RECIPES / "digits-keras.yaml", overrides=overrides)


def tried(number: int, size: float, drop: float, noise: float = 0.0, **more: Any) -> Tried:
    fields: dict[str, Any] = {
        "number": number,
        "format": "tflite",
        "options": {"number": number},
        "point": (number,),
        "status": "complete",
        "objectives": {"size_bytes": size, "top1_drop": drop, "noise": noise},
        "excess": {"top1 max_drop 0.01": drop - 0.01},
    }
    return Tried(**(fields | more))


# --- what a recipe may say


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"budget": {"trials": 0}}, "greater than or equal to 1"),
        ({"budget": {"hours": 0}}, "greater than 0"),
        ({"minimize": "top1"}, "top1 is a metric of accuracy"),
        ({"minimize": "latency_p50_ms"}, "minimize latency_ratio"),
        ({"minimize": "size_byte"}, "did you mean 'size_bytes'"),
        ({"under": [{"metric": "size_bytes", "max": 9}, {"metric": "size_bytes", "min": 10}]}, "contradicts"),
        ({"under": [{"metric": "arena_bytes", "max": 9, "devices": "cortex-m"}]}, "no device 'cortex-m'"),
        ({"under": [{"metric": "top9", "max_drop": 0.1}]}, "no metric 'top9'"),
        ({"limits": []}, "unknown key 'limits'"),
    ],
)
def test_a_search_is_checked_with_the_recipe(search: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        recipe(search)


def test_a_search_without_limits_keeps_the_accuracy() -> None:
    (variant,) = (each for each in recipe({}).variants if each.search is not None)
    assert variant.search is not None
    assert [str(gate) for gate in variant.search.limits] == ["top1 max_drop 0.01"]


def test_a_plan_says_that_a_variant_is_yet_to_be_found() -> None:
    plan = make_plan(recipe({"budget": {"trials": 7}}))
    assert "best is found by searching, with at most 7 trials, before it is built" in plan.notes
    assert "best" not in {branch.variant for branch in plan.branches}


def test_a_search_without_optuna_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="searching needs optuna"):
        require()


def test_a_limit_of_the_command_line() -> None:
    assert _limit("size_bytes max 60 KiB on cortex-m") == {
        "metric": "size_bytes",
        "max": "60 KiB",
        "devices": ["cortex-m"],
    }
    with pytest.raises(UsageError, match="'top1' is not a limit"):
        _limit("top1")


# --- the space


def space(**over: list[Any]) -> Space:
    loaded = recipe({"over": over})
    (found,) = (each for each in loaded.variants if each.search is not None)
    assert found.search is not None
    return space_of(loaded, found.name, found.search)


def test_every_point_is_a_variant() -> None:
    needs("ai_edge_litert", "ai_edge_quantizer", "tensorflow")
    made = space(bits=[4, 8], per_channel=[True, False], calibrator=["mse"])
    assert made.size == 4
    assert made.candidate(made.start).options == {"quantize": {"scheme": "int8", "calibrator": "mse"}}
    layers = {"conv2": "int4"}
    options = made.candidate((0, 1, 0, 0), {("tflite", 4): layers}).options
    assert options == {
        "quantize": {"scheme": "int8", "per_channel": False, "calibrator": "mse", "layers": layers}
    }


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"bit": [4, 8]}, "'bit' does not vary"),
        ({"prune": [1]}, "a fraction of the channels"),
        ({"bits": [8, 2]}, "from 4 to 32"),
        ({"equalize": ["yes"]}, "expected true or false"),
        ({"quantize": ["int9"]}, "no quantize scheme 'int9'"),
    ],
)
def test_a_value_that_is_not_available_is_refused_by_name(over: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        space(**over)


def test_what_a_device_does_not_run_is_left_out() -> None:
    def choices(*devices: str) -> dict[str, tuple[Any, ...]]:
        given = recipe({}, devices=list(devices))
        space = space_of(given, "best", next(each.search for each in given.variants if each.search))
        return {each.name: each.choices for each in space.dimensions}

    assert choices("host")["quantize"] == ("int8", "dynamic_int8", "float16", "int4")
    assert choices("host")["coarsen"] == (False,)
    for devices in (["cortex-m"], ["host", "cortex-m"]):
        assert choices(*devices)["quantize"] == ("int8",)
        assert choices(*devices)["coarsen"] == (False, 5, 4, 3)
    given = recipe({"over": {"quantize": ["int8", "float16"], "bits": [4, 8]}}, devices="cortex-m")
    with pytest.raises(RecipeError, match=r"'float16' is not available: on cortex-m, it cannot dequantize"):
        space_of(given, "best", next(each.search for each in given.variants if each.search))


def test_a_space_of_one_point_is_no_search() -> None:
    needs("ai_edge_litert", "ai_edge_quantizer", "tensorflow")
    with pytest.raises(UsageError, match="nothing to vary"):
        space(bits=[8])


def test_what_has_no_effect_is_left_out() -> None:
    values = {
        "quantize": "float16",
        "prune": 0,
        "finetune": True,
        "equalize": True,
        "rounding": True,
        "bias_correction": True,
        "calibrator": "mse",
        "per_channel": False,
    }
    assert options_of(values, {"conv2": "int4"}) == {"quantize": "float16"}
    repaired = options_of(values | {"quantize": "int8", "prune": 0.5}, {"conv2": "int4"})
    assert list(repaired) == ["prune", "finetune", "equalize", "rounding", "quantize"]
    assert repaired["rounding"] == {"bits": 8, "per_channel": False, "layers": {"conv2": 4}}


def test_selection_and_calibration_share_no_sample() -> None:
    needs("sklearn")
    loaded = recipe({})
    selection = selection_of(loaded)
    assert "data.calibration" in selection.origin
    assert loaded.calibration is not None
    parts = [selection.recipe.evaluation, selection.recipe.calibration]
    seen = [_contents(part) for part in parts if part is not None]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == _contents(loaded.calibration)


def _contents(dataset: Dataset) -> set[bytes]:
    return {sample.inputs[0].tobytes() for sample in dataset.samples()}


# --- bits of layers


def test_the_allocation_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        layers = [
            Sensitivity(
                f"layer{index}",
                int(random.integers(10, 1000)),
                {"int8": 0.0, "int4": float(random.exponential()), "float32": -float(random.exponential())},
            )
            for index in range(5)
        ]
        mean = float(random.uniform(4, 20))
        total = sum(each.weights for each in layers)
        possible = {}
        for choice in itertools.product(*(each.noise for each in layers)):
            bits = sum(BITS[name] * each.weights for name, each in zip(choice, layers, strict=True))
            if bits <= mean * total:
                noise = sum(each.noise[name] for name, each in zip(choice, layers, strict=True))
                possible[choice] = noise
        found = allocate(layers, mean)
        chosen = tuple(found.get(each.name, "int8") for each in layers)
        assert possible[chosen] == pytest.approx(min(possible.values()), abs=1e-4)


def test_layers_without_a_kernel_keep_their_bits() -> None:
    layers = [
        Sensitivity("depthwise", 100, {"int8": 0.0}),
        Sensitivity("dense", 100, {"int8": 0.0, "int4": 1.0}),
    ]
    assert allocate(layers, 4) == {"dense": "int4"}


# --- the front


def test_the_front_has_what_nothing_dominates() -> None:
    trials = [
        tried(0, 100, 0.0),
        tried(1, 50, 0.005),
        tried(2, 60, 0.005),
        tried(3, 10, 0.2),
        tried(4, 100, 0.0),
        tried(5, 0, 0.0, status="failed", objectives={}, excess={}),
    ]
    places = [each.place for each in placed(trials)]
    assert places == ["front", "best", "dominated", "over a limit", "dominated", "not measured"]
    nearest = nearest_to_limits([trials[3], trials[5]], LIMITS)
    assert nearest is not None
    assert nearest.number == 3


def test_hypervolume_counts_what_is_dominated() -> None:
    random = np.random.default_rng(0)
    points, draws = random.random((6, 3)), random.random((200_000, 3))
    share = (draws[:, np.newaxis] >= points).all(-1).any(-1).mean()
    assert hypervolume(points.tolist(), (1.0, 1.0, 1.0)) == pytest.approx(share, abs=5e-3)
    assert hypervolume([(2.0, 0.5)], (1.0, 1.0)) == 0.0


# --- early stopping


def _row(right: int, of: int) -> Row:
    after = np.arange(of) < right
    pairs = {"top1": Paired(np.ones(of), after.astype(float), is_fraction=True)}
    return Row(Result(variant="trial0", format="tflite", device="host", status="ok"), Evidence(pairs))


def test_a_candidate_is_dropped_as_soon_as_the_samples_show_it() -> None:
    limits = [Gate(metric="top1", max_drop=0.01)]
    assert (
        clearly_over(limits, _row(48, 64), 0.99)
        == "top1 max_drop 0.01: a drop of 25.00% on the first 64 samples"
    )
    assert not clearly_over(limits, _row(62, 64), 0.99)  # 3 %, but of so few samples
    assert clearly_over(limits, _row(990 * 4 - 60, 4000), 0.99)
    assert not clearly_over([Gate(metric="top1", max_drop=0.01, formats=("onnx",))], _row(0, 64), 0.99)


# --- proposals

TOY = Space(
    (Dimension("bits", (4, 6, 8), True), Dimension("calibrator", ("a", "b")), Dimension("format", ("x",))),
    {("x", "int8"): frozenset({"int4", "int8"})},
)
ALLOCATIONS = {("x", 4): {"one": "int4", "two": "int4"}, ("x", 6): {"one": "int4"}}


def _measured(number: int, options: dict[str, Any], point: tuple[int, ...]) -> Tried:
    return tried(number, 10.0 + point[0], 0.0, 0.1 ** point[0], options=options, point=point, format="x")


def test_the_first_trials_have_every_value() -> None:
    first = list(opening(TOY, 0, usual=True))
    assert first[0] == (2, 0, 0)
    assert list(opening(TOY, 0, usual=False)) == first[1:]
    assert [set(column) for column in zip(*first, strict=True)] == [{0, 2}, {0, 1}, {0}]


def test_main_effects_predict_what_was_not_tried() -> None:
    def at(number: int, point: tuple[int, ...]) -> Tried:
        bits, calibrator, _ = point
        return tried(
            number,
            10.0 * 2**bits,
            0.0,
            0.1**bits * (1 + calibrator),
            options=TOY.candidate(point, ALLOCATIONS).options,
            point=point,
            format="x",
        )

    known = [at(number, point) for number, point in enumerate([(2, 0, 0), (0, 1, 0), (2, 1, 0)])]
    left = [(0, 0, 0), (1, 0, 0), (1, 1, 0)]
    ranked = list(by_main_effects([(TOY.candidate(point, ALLOCATIONS), point) for point in left], known))
    assert sorted(ranked) == left
    # The smallest file with the quieter calibrator, whose noise is inferred from another width.
    assert ranked[0] == (0, 0, 0)


def test_what_sensitivities_foresee_counts_like_a_trial() -> None:
    def noise(point: Point) -> float:
        return 0.1 ** point[0]

    options = TOY.candidate((2, 1, 0)).options
    trials = [tried(0, 10.0, 0.0, noise((2, 1, 0)), options=options, point=(2, 1, 0), format="x")]
    left = [(TOY.candidate(point, ALLOCATIONS), point) for point in [(0, 1, 0), (1, 1, 0)]]
    foreseen = [
        Foreseen(TOY.candidate((bits, 0, 0), ALLOCATIONS), {"noise": noise((bits, 0, 0)), "size_bytes": size})
        for bits, size in ((0, 9.9), (1, 5.0), (2, 10.0))
    ]
    # The width that saves nothing is the last to be tried, which no trial has shown.
    assert list(by_main_effects(left, trials, foreseen)) == [(1, 1, 0), (0, 1, 0)]


def test_the_noise_of_layers_adds_up() -> None:
    layers = [Sensitivity("one", 100, {"int8": 0.0, "int4": 0.2}), Sensitivity("two", 50, {"int8": 0.0})]
    costs = together(Costs(0.1, 1000.0), layers, {"one": "int4"})
    assert costs == {"noise": pytest.approx(0.3), "size_bytes": 950.0}


# --- long training


TRAINED = Space(
    (
        Dimension("prune", (0, 0.25, 0.5, 0.75)),
        Dimension("finetune", ({"epochs": 12}, {"epochs": 3}, {"epochs": 48}, True)),
        Dimension("format", ("x",)),
    ),
    {},
)


def _trained(number: int, prune: int, rung: int, drop: float) -> Tried:
    point = (prune, rung, 0)
    return tried(number, 10.0, drop, drop, options=TRAINED.candidate(point).options, point=point, format="x")


def test_only_survivors_are_trained_longer() -> None:
    halving = Halving(TRAINED)
    # Whatever is proposed starts with the shortest training; a choice without epochs stands alone.
    assert halving.admitted((1, 2, 0), []) == (1, 1, 0)
    assert halving.admitted((1, 3, 0), []) == (1, 3, 0)
    trials = [_trained(0, 1, 1, 0.02), _trained(1, 2, 1, 0.1)]
    assert halving.admitted((1, 2, 0), trials) is None  # two are too few to tell
    trials.append(_trained(2, 3, 1, 0.3))
    assert halving.admitted((1, 2, 0), trials) == (1, 0, 0)
    assert halving.admitted((2, 2, 0), trials) is None
    trials.append(_trained(3, 1, 0, 0.01))
    assert halving.admitted((1, 2, 0), trials) is None  # the best of one with 12 epochs says nothing yet


def test_at_the_end_of_a_space_all_trainings_are_tried() -> None:
    needs("optuna")
    trials: list[Tried] = []
    proposed = []
    while batch := Proposals(TRAINED, Sensitivities({}, ()), 0).next(trials, 2):
        proposed += [point for _, point in batch]
        for _, (prune, rung, _) in batch:
            trials.append(_trained(len(trials), prune, rung, prune / 10))
    assert len(proposed) == 1 + 3 * 4  # without pruning, there is nothing to train
    first = [[at for at, point in enumerate(proposed) if point[0] and point[1] == rung] for rung in (1, 0, 2)]
    assert min(first[0]) < min(first[1]) < min(first[2])
    # With 3 epochs, the best of three goes on; the others are trained longer only when nothing else is left.
    longer = [point for point in proposed if point[0] and point[1] in (0, 2)]
    assert longer[0] == (1, 0, 0)


def test_proposals_are_a_function_of_the_trials_before() -> None:
    needs("optuna")
    trials: list[Tried] = []
    rounds = []
    while batch := Proposals(TOY, Sensitivities(ALLOCATIONS, ()), 0).next(trials, 2):
        again = Proposals(TOY, Sensitivities(ALLOCATIONS, ()), 0).next(trials, 2)
        assert batch == again
        rounds.append(batch)
        trials += [_measured(len(trials) + at, each.options, point) for at, (each, point) in enumerate(batch)]
    points = [point for batch in rounds for _, point in batch]
    assert points[0] == (2, 0, 0)
    assert sorted(points) == sorted(TOY.points())


# --- the journal


def test_a_journal_continues_where_a_killed_search_was(tmp_path: Path) -> None:
    with Journal(tmp_path, "one", "best of toy") as journal:
        journal.add(tried(0, 100, 0.0))
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"number": 1, "format"')  # killed in the middle of a line
    with Journal(tmp_path, "one", "best of toy") as journal:
        assert [each.number for each in journal.trials] == [0]
        journal.add(tried(1, 50, 0.0))
    with Journal(tmp_path, "one", "best of toy") as journal:
        assert [each.number for each in journal.trials] == [0, 1]


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, "one", "best of toy"):
        pass
    with (
        pytest.raises(UsageError, match="another search: of best of toy"),
        Journal(tmp_path, "two", "best of toy"),
    ):
        pass
    (tmp_path / NAME).write_text("[]\n")
    with pytest.raises(UsageError, match="not the journal of a search"), Journal(tmp_path, "one", ""):
        pass


class Measured:
    """Stands for the measurements of candidates; counts those of one process."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.numbers = delay, list[int]()

    def tried(self, candidates: Mapping[int, tuple[Candidate, Point]]) -> Iterator[Tried]:
        for number, (candidate, point) in candidates.items():
            time.sleep(self.delay)
            self.numbers.append(number)
            yield _measured(number, candidate.options, point)


def test_a_search_has_the_same_trials_with_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("optuna")
    monkeypatch.setattr(search, "WAIT", 0.01)
    task = Search((), SearchPart.model_validate({"budget": {"trials": 5}}))

    def run(folder: Path, measuring: Measured) -> list[Tried]:
        with Journal(folder, "one", "best of toy") as journal:
            search._run(
                Proposals(TOY, Sensitivities(ALLOCATIONS, ()), 0),
                measuring,
                journal,
                task,
                lambda event: None,
            )
            return journal.trials

    alone = run(tmp_path / "alone", Measured())
    workers = [Measured(0.05), Measured(0.05)]
    with ThreadPoolExecutor(2) as pool:
        both = [*pool.map(run, [tmp_path / "shared"] * 2, workers)]
    assert both == [alone, alone] and len(alone) == 5
    assert sorted(workers[0].numbers + workers[1].numbers) == [*range(5)]
    assert all(each.numbers for each in workers)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_is_built_together(tmp_path: Path, batch: int) -> None:
    needs("optuna")
    task = Search((), SearchPart.model_validate({"budget": {"trials": 5, "batch": batch}}))
    known, together = Sensitivities(ALLOCATIONS, ()), list[int]()

    class Watched(Measured):
        def tried(self, candidates: Mapping[int, tuple[Candidate, Point]]) -> Iterator[Tried]:
            together.append(len(candidates))
            return super().tried(candidates)

    with Journal(tmp_path, "one", "best of toy") as journal:
        search._run(Proposals(TOY, known, 0), Watched(), journal, task, lambda event: None)
    assert together == ([1] * 5 if batch == 1 else [3, 2])


def test_processes_share_the_trials_of_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, "one", "best of toy") as alone, alone.claimed({0, 1}) as both:
        assert both == [0, 1]
    with Journal(tmp_path, "one", "best of toy") as first, Journal(tmp_path, "one", "") as second:
        with first.claimed({0, 1}) as mine, second.claimed({0, 1}) as its:
            assert (mine, its) == ([0], [1])
            second.add(tried(1, 50, 0.0))
            first.add(tried(0, 100, 0.0))
            with second.claimed({0}) as left:
                assert left == []
        assert [each.number for each in first.trials] == [0, 1]
        # The other process has finished it between the look at the journal and the claim.
        with second.claimed({0, 1}) as left:
            assert left == []
        first.add(tried(1, 70, 0.0))
        assert [each.objectives["size_bytes"] for each in first.trials] == [100, 50]
