"""A search with a part of the trials against all points of its space, and against Optuna alone.

    python benchmarks/search.py [--share 0.25] [--seeds 10] [--format tflite] [--over SPACE] RECIPE ...

Every point of a small space is built and measured once, on the selection data. Searches then look their
trials up, so that many seeds cost nothing. Printed is the hypervolume of the trials within the limit, in the
logarithms of size and noise, relative to that of all points: 1 is the whole front.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.searching import SearchBudget
from edgeopt.results.search import Tried
from edgeopt.run.store import Store, store_folder
from edgeopt.search.front import hypervolume
from edgeopt.search.measuring import Measuring
from edgeopt.search.proposals import Proposals, by_sampler
from edgeopt.search.selection import selection_of
from edgeopt.search.sensitivities import Sensitivities, sensitivities_of
from edgeopt.search.space import Candidate, Point, Space, space_of

SPACE = (
    "{quantize: [int8, dynamic_int8, float16], bits: [4, 5, 6, 8], calibrator: [minmax, percentile, mse], "
    "per_channel: [true, false]}"
)
LIMIT = "{metric: top1, max_drop: 0.02}"

Strategy = Callable[[Sequence[Tried], int], list[tuple[Candidate, Point]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--share", type=float, default=0.25, help="fraction of the points to try")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--format", default="tflite")
    parser.add_argument("--over", default=SPACE, help="the space, as in a recipe")
    given = parser.parse_args()
    columns = [f"{each + ': mean':>12} least" for each in ("search", "Optuna")]
    print(f"{'recipe':<20} points trials  {'  '.join(columns)}")
    for name in given.recipes:
        grid = measured(name, given.format, given.over)
        trials = math.ceil(given.share * len(grid.table))
        shares = [
            [grid.share(strategy(grid, seed), trials, size) for seed in range(given.seeds)]
            for strategy, size in ((whole_search, SearchBudget().batch), (optuna_alone, 1))
        ]
        figures = "  ".join(f"{statistics.mean(each):>12.3f} {min(each):>5.3f}" for each in shares)
        print(f"{name:<20} {len(grid.table):>6} {trials:>6}  {figures}")


class Grid(NamedTuple):
    """A space, and all of its points, measured."""

    space: Space
    known: Sensitivities
    table: dict[str, Tried]
    """By the keys of their candidates."""

    def share(self, strategy: Strategy, trials: int, size: int) -> float:
        """The hypervolume of a search relative to that of all points."""
        return self.volume(self.simulated(strategy, trials, size)) / self.volume([*self.table.values()])

    def simulated(self, strategy: Strategy, trials: int, size: int) -> list[Tried]:
        """The trials of a search, looked up."""
        found: list[Tried] = []
        while len(found) < trials and (batch := strategy(found, size)):
            for candidate, point in batch[: trials - len(found)]:
                tried = self.table[candidate.key]
                found.append(tried.model_copy(update={"number": len(found), "point": point}))
        return found

    def volume(self, trials: Sequence[Tried]) -> float:
        """The hypervolume of the trials within the limit; the reference point is the worst of all."""
        everything = [logarithms(each) for each in self.table.values() if each.status != "failed"]
        reference = [max(values) + 1e-3 for values in zip(*everything, strict=True)]
        return hypervolume([logarithms(each) for each in trials if each.holds], reference)


def measured(name: str, target: str, over: str) -> Grid:
    """Build and measure all points of a space."""
    search = f"optimize={{best: {{search: {{over: {over}, under: [{LIMIT}]}}}}}}"
    recipe = load_recipe(name, overrides=[search, f"formats={target}", "gates=[]"])
    task = next(each.search for each in recipe.variants if each.search is not None)
    space, selection = space_of(recipe, "best", task), selection_of(recipe)
    with Measuring(selection.recipe, task, selection.origin, Store(store_folder(None)), ()) as measuring:
        known = sensitivities_of(measuring, space)
        points: dict[str, tuple[Candidate, Point]] = {}
        for point in space.points():
            candidate = space.candidate(point, known.allocations)
            points.setdefault(candidate.key, (candidate, point))
        tried = measuring.tried(dict(enumerate(points.values())))
        table = {Candidate(each.format, each.options).key: each for each in tried}
    return Grid(space, known, table)


def whole_search(grid: Grid, seed: int) -> Strategy:
    return Proposals(grid.space, grid.known, seed).next


def optuna_alone(grid: Grid, seed: int) -> Strategy:
    """Optuna's sampler over the same space, one trial at a time, without repeating any."""

    def propose(trials: Sequence[Tried], count: int) -> list[tuple[Candidate, Point]]:
        known = {Candidate(each.format, each.options).key for each in trials}
        for point in by_sampler(grid.space, trials, seed + len(trials)):
            candidate = grid.space.candidate(point, grid.known.allocations)
            if candidate.key not in known:
                return [(candidate, point)]
        return []

    return propose


def logarithms(tried: Tried) -> tuple[float, float]:
    return math.log(tried.objectives["size_bytes"]), math.log(max(tried.objectives["noise"], 1e-9))


if __name__ == "__main__":
    main()
