"""Which candidates to try next: cheap structure first, then a sampler.

1. The usual variant, and from it every other value of one thing at a time.
2. Alternating: what a model of main effects predicts on the front, and what the tree-structured Parzen
   estimator proposes (Bergstra et al. 2011; with several objectives, Ozaki et al. 2022), through Optuna.

Proposals are a function of the trials before them and the seed, so nothing else has to be stored.
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import MissingPackageError, install
from edgeopt.search.outcome import Tried
from edgeopt.search.space import Allocations, Candidate, Point, Space

ASKS = 200
"""Attempts at a proposal that has not been tried yet."""
CONSIDERED = 4096
"""Points whose objectives are predicted, drawn from larger spaces."""
RIDGE = 0.1
"""Weight of the penalty on effects, in units of one trial."""
LOSSES = 2
"""Number of objectives, the last ones, that are not costs."""


class Proposals:
    """Proposes candidates of a space."""

    def __init__(self, space: Space, allocations: Allocations, seed: int) -> None:
        self.space = space
        self.allocations = allocations
        self.seed = seed

    def next(self, trials: Sequence[Tried], count: int) -> list[tuple[Candidate, Point]]:
        """Up to ``count`` candidates that differ from all tried ones; none if the space is exhausted."""
        known = {Candidate(each.format, each.options).key for each in trials}
        found: list[tuple[Candidate, Point]] = []
        for point in self._points(trials, count):
            candidate = self.space.candidate(point, self.allocations)
            if candidate.key not in known:
                known.add(candidate.key)
                found.append((candidate, point))
            if len(found) == count:
                break
        return found

    def _points(self, trials: Sequence[Tried], count: int) -> Iterator[Point]:
        yield from one_at_a_time(self.space)
        random = np.random.default_rng([self.seed, len(trials)])
        measured = [each for each in trials if each.status != "failed"]
        predicted = by_main_effects(self._considered(random), measured, self.space) if measured else []
        sampled = by_sampler(self.space, trials, self.seed)
        # Half of a batch each; both run out at last.
        for one, other in zip(predicted, islice(sampled, ASKS), strict=False):
            yield one
            yield other
        yield from sampled
        yield from self._considered(random)

    def _considered(self, random: np.random.Generator) -> list[Point]:
        """All points in random order, or as many as can be considered."""
        if self.space.size <= CONSIDERED:
            points = list(self.space.points())
            return [points[index] for index in random.permutation(len(points))]
        sizes = [len(each.choices) for each in self.space.dimensions]
        return [tuple(map(int, random.integers(0, sizes))) for _ in range(CONSIDERED)]


def one_at_a_time(space: Space) -> Iterator[Point]:
    """The usual point, and those that differ from it in one dimension; widths first, which matter most."""
    yield space.start
    order = sorted(range(len(space.dimensions)), key=lambda at: not space.dimensions[at].ordered)
    for at in order:
        for index in range(len(space.dimensions[at].choices)):
            yield (*space.start[:at], index, *space.start[at + 1 :])


def by_main_effects(points: Sequence[Point], trials: Sequence[Tried], space: Space) -> list[Point]:
    """Points on the front that an additive model predicts, those closest to the limits first.

    The model is linear in the values of each dimension, for the logarithms of costs and noise: a size is the
    product of what each thing saves.
    """
    names = list(trials[0].objectives)
    names = [*names[:-LOSSES], names[-1]]  # accuracy changes in steps of one sample, noise does not
    known = np.log([[max(each.objectives[name], 1e-12) for name in names] for each in trials])
    effects = _effects(_features([each.point for each in trials], space), known)
    predicted = _features(points, space) @ effects
    # Noisier than the quietest trial over a limit on accuracy is most likely over it, too.
    over = [row[-1] for row, each in zip(known, trials, strict=True) if not each.holds]
    within = [row[-1] for row, each in zip(known, trials, strict=True) if each.holds]
    border = (min(over) + max(within)) / 2 if over and within else np.inf
    order = np.lexsort((predicted[:, 0], predicted[:, -1] > border))
    front: list[int] = []
    for index in order:
        if not any((predicted[other] <= predicted[index]).all() for other in front):
            front.append(int(index))
    rest = [int(index) for index in order if int(index) not in set(front)]
    return [points[index] for index in (*front, *rest)]


def _features(points: Sequence[Point], space: Space) -> NDArray[np.float64]:
    """One column for each value of each dimension, and one of ones."""
    columns = [np.ones((len(points), 1))]
    chosen = np.array(points)
    for at, dimension in enumerate(space.dimensions):
        columns.append(np.eye(len(dimension.choices))[chosen[:, at]])
    return np.hstack(columns)


def _effects(features: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression; the constant is not penalized."""
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9
    solved = np.linalg.solve(features.T @ features + penalty, features.T @ known)
    return np.asarray(solved, np.float64)


def by_sampler(space: Space, trials: Sequence[Tried], seed: int) -> Iterator[Point]:
    """Proposals of Optuna's multi-objective sampler, which knows the limits as constraints."""
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError(
            "searching needs optuna, which is not installed", fix=install("search")
        ) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {
        each.name: optuna.distributions.IntDistribution(0, len(each.choices) - 1)
        if each.ordered
        else optuna.distributions.CategoricalDistribution(tuple(range(len(each.choices))))
        for each in space.dimensions
        if len(each.choices) > 1
    }
    measured = [each for each in trials if each.status != "failed"]
    directions = ["minimize"] * (len(measured[0].objectives) if measured else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed + len(trials), multivariate=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    for each in measured:
        values = zip(space.dimensions, each.point, strict=True)
        study.add_trial(
            optuna.trial.create_trial(
                params={dimension.name: at for dimension, at in values if dimension.name in distributions},
                distributions=distributions,
                values=list(each.objectives.values()),
                constraints=dict(each.excess),
            )
        )
    for _ in range(ASKS):
        asked = study.ask(distributions).params
        yield tuple(int(asked.get(each.name, 0)) for each in space.dimensions)
