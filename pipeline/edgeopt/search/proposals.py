"""Which candidates to try next: cheap structure first, then a sampler.

1. A Latin design: the values of everything that varies, in as few trials as the longest list of them has.
   The usual variant is first, unless the sensitivities of layers have shown what it costs.
2. Four of five times, what adds most hypervolume to the front as a model of main effects predicts it, from
   the trials and from what the sensitivities foresee; else what the tree-structured Parzen estimator proposes
   (Bergstra et al. 2011; with several objectives, Ozaki et al. 2022), through Optuna, which can see what a
   model of main effects cannot.

Proposals are a function of the trials before them and the seed, so nothing else has to be stored.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import MissingPackageError, install
from edgeopt.plugin.base import canonical
from edgeopt.results.search import Tried
from edgeopt.search.front import hypervolume
from edgeopt.search.halving import Halving
from edgeopt.search.sensitivities import Foreseen, Sensitivities
from edgeopt.search.space import Candidate, Point, Space

ASKS = 200
"""Attempts of the sampler at a proposal that has not been tried yet."""
DRAWN = 4096
"""Points that are considered at a time, drawn at random from larger spaces."""
COMPARED = 512
"""Most predictions whose hypervolume is computed."""
TURN = 5
"""Of so many candidates, one comes from the sampler."""
RIDGE = 0.1
"""Weight of the penalty on effects, in units of one trial."""
LOSSES = 2
"""Number of objectives, the last ones, that are not costs."""

Proposal = tuple[Candidate, Point]
Floats = NDArray[np.float64]


class Proposals:
    """Proposes candidates of a space."""

    def __init__(self, space: Space, known: Sensitivities, seed: int) -> None:
        self.space = space
        self.known = known
        self.halving = Halving(space)
        self.seed = seed

    def next(self, trials: Sequence[Tried], count: int) -> list[Proposal]:
        """Up to ``count`` candidates that differ from all tried ones; none if the space is exhausted."""
        known = {_of(each).key for each in trials}
        found: list[Proposal] = []
        drawn = self._drawn(np.random.default_rng([self.seed, len(trials)]))
        admitted = (self.halving.admitted(point, trials) for point in self._points(trials, found, drawn))
        # At the end of a space, the rest is tried as it is.
        rest = (point for _, point in drawn)
        for point in chain((each for each in admitted if each is not None), rest):
            candidate = self.space.candidate(point, self.known.allocations)
            if candidate.key not in known:
                known.add(candidate.key)
                found.append((candidate, point))
            if len(found) == count:
                break
        return found

    def _points(
        self, trials: Sequence[Tried], found: Sequence[Proposal], drawn: Sequence[Proposal]
    ) -> Iterator[Point]:
        """Points in the order of preference; ``found`` are those of them that are new."""
        yield from opening(self.space, self.seed, usual=not self.known.foreseen)
        measured = [each for each in trials if each.status != "failed"]
        known = {_of(each).key for each in trials} | {candidate.key for candidate, _ in found}
        new = {each.key: (each, point) for each, point in drawn if each.key not in known}
        predicted = (
            by_main_effects(list(new.values()), measured, self.known.foreseen) if measured else iter(())
        )
        sampled = by_sampler(self.space, measured, self.seed + len(trials))
        while True:
            before = len(found)
            if (len(trials) + before) % TURN == TURN - 1:
                while len(found) == before and (point := next(sampled, None)) is not None:
                    yield point
            if len(found) == before:
                if (point := next(predicted, None)) is None:
                    break
                yield point

    def _drawn(self, random: np.random.Generator) -> list[Proposal]:
        """All points in random order, or as many as are considered."""
        sizes = [len(each.choices) for each in self.space.dimensions]
        if self.space.size <= DRAWN:
            every = list(self.space.points())
            points = [every[index] for index in random.permutation(len(every))]
        else:
            points = [tuple(map(int, random.integers(0, sizes))) for _ in range(DRAWN)]
        return [(self.space.candidate(point, self.known.allocations), point) for point in points]


def require() -> None:
    """Check that what proposals need is installed, before anything slow starts.

    Raises:
        MissingPackageError: it is not.
    """
    if find_spec("optuna") is None:
        raise MissingPackageError("searching needs optuna, which is not installed", fix=install("search"))


def opening(space: Space, seed: int, *, usual: bool) -> Iterator[Point]:
    """A Latin design: in each dimension, every value about equally often; if wanted, after the usual point.

    Of ordered values, both ends are enough: the effects of those between them are alike.
    """
    if usual:
        yield space.start
    random = np.random.default_rng(seed)
    counts = [len(each.choices) for each in space.dimensions]
    ends = [
        (0, count - 1) if each.ordered else range(count)
        for each, count in zip(space.dimensions, counts, strict=True)
    ]
    rows = max(map(len, ends))
    columns = [random.permutation(np.resize(random.permutation(each), rows)) for each in ends]
    yield from (tuple(map(int, row)) for row in zip(*columns, strict=True))


def by_main_effects(
    candidates: Sequence[Proposal], trials: Sequence[Tried], foreseen: Sequence[Foreseen] = ()
) -> Iterator[Point]:
    """The points that add most hypervolume to the front, one after the other, as an additive model predicts.

    The model is linear in the options of a variant, for the logarithms of costs and noise: a size is the
    product of what each option saves. What is foreseen of candidates counts as much as what was measured.
    """
    names = list(trials[0].objectives)
    names = [*names[:-LOSSES], names[-1]]  # accuracy changes in steps of one sample, noise does not
    seen = {_of(each).key for each in trials}
    rows = [Foreseen(_of(each), each.objectives) for each in trials]
    rows += [each for each in foreseen if each.candidate.key not in seen]
    observed = _logarithms([each.costs for each in rows], names)
    known, holds = observed[: len(trials)], np.array([each.holds for each in trials])
    tried = [_words(each.candidate) for each in rows]
    own = [_words(candidate) for candidate, _ in candidates]
    columns = {word: at for at, word in enumerate(sorted(set().union(*tried, *own)), 1)}
    predicted = _features(own, columns) @ _effects(_features(tried, columns), observed)
    # Noisier than the quietest trial over a limit on accuracy is most likely over it, too.
    border = (
        (known[~holds, -1].min() + known[holds, -1].max()) / 2 if 0 < holds.sum() < len(holds) else np.inf
    )
    left = [at for at in range(len(candidates)) if predicted[at, -1] <= border]
    reference = (np.vstack([known, predicted]).max(axis=0) + 0.1).tolist()
    front = known[holds]
    while left:
        gains = _gains(predicted, left, front, reference)
        best = max(gains, key=lambda at: (gains[at], -at))
        yield candidates[best][1]
        left.remove(best)
        front = np.vstack([front, predicted[best]])


def _gains(
    predicted: Floats, left: Sequence[int], front: Floats, reference: Sequence[float]
) -> dict[int, float]:
    """By how much each of the predictions enlarges the hypervolume of a front."""
    outside = [at for at in left if not (front <= predicted[at]).all(axis=1).any()]
    compared = outside[:COMPARED] or left[:1]
    before = hypervolume(front.tolist(), reference)
    return {at: hypervolume([*front.tolist(), predicted[at].tolist()], reference) - before for at in compared}


def _of(tried: Tried) -> Candidate:
    return Candidate(tried.format, tried.options)


def _words(candidate: Candidate) -> set[str]:
    """The options of a variant, each as one word."""
    words = {f"format={candidate.format}"}
    for intent, options in candidate.options.items():
        options = options if isinstance(options, Mapping) else {"scheme": options}
        words |= {f"{intent}.{name}={canonical(value)}" for name, value in options.items()}
    return words


def _features(words: Sequence[set[str]], columns: Mapping[str, int]) -> Floats:
    """One column for each word, and one of ones."""
    features = np.zeros((len(words), len(columns) + 1))
    features[:, 0] = 1
    for row, own in enumerate(words):
        features[row, [columns[word] for word in own]] = 1
    return features


def _effects(features: Floats, known: Floats) -> Floats:
    """Ridge regression of each column on the rows that have a value; the constant is not penalized."""
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9
    columns = []
    for values in known.T:
        rows = features[~np.isnan(values)]
        columns.append(np.linalg.solve(rows.T @ rows + penalty, rows.T @ values[~np.isnan(values)]))
    return np.stack(columns, axis=1)


def _logarithms(costs: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    """The logarithms of costs, by name; NaN for unknown ones."""
    values = [[max(each[name], 1e-12) if name in each else math.nan for name in names] for each in costs]
    logarithms: Floats = np.log(np.array(values, float).reshape(len(values), len(names)))
    return logarithms


def by_sampler(space: Space, trials: Sequence[Tried], seed: int) -> Iterator[Point]:
    """Proposals of Optuna's multi-objective sampler, which knows the limits as constraints."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {
        each.name: optuna.distributions.IntDistribution(0, len(each.choices) - 1)
        if each.ordered
        else optuna.distributions.CategoricalDistribution(tuple(range(len(each.choices))))
        for each in space.dimensions
        if len(each.choices) > 1
    }
    directions = ["minimize"] * (len(trials[0].objectives) if trials else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    for each in trials:
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
