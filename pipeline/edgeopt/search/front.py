"""Pareto fronts: which trials no other one dominates, how much they cover, and how far off the others are.

Pure.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.results.search import Tried


def placed(trials: Sequence[Tried]) -> tuple[Tried, ...]:
    """The trials with their places; the best one has the smallest first objective, then the smallest loss."""
    holding = [each for each in trials if each.holds]
    front = {each.number for each in undominated(holding)}
    first = min(
        (each for each in holding if each.number in front),
        key=lambda each: (*each.objectives.values(), each.number),
        default=None,
    )

    def place(each: Tried) -> str:
        if each.status == "failed":
            return "not measured"
        if not each.holds:
            return "over a limit"
        if first is not None and each.number == first.number:
            return "best"
        return "front" if each.number in front else "dominated"

    return tuple(each.model_copy(update={"place": place(each)}) for each in trials)


def undominated(trials: Sequence[Tried]) -> list[Tried]:
    """The trials than which no other is better in one objective and as good in all; of equals, the first."""
    kept: list[Tried] = []
    for each in sorted(trials, key=lambda each: (*each.objectives.values(), each.number)):
        own = tuple(each.objectives.values())
        # In lexicographic order, whatever dominates a trial precedes it.
        if not any(_covers(tuple(other.objectives.values()), own) for other in kept):
            kept.append(each)
    return kept


def _covers(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(mine <= its for mine, its in zip(one, other, strict=True))


def excess(each: Tried, limits: Mapping[str, float]) -> float:
    """How far a trial is from meeting all limits, relative to each; infinite if it was not measured."""
    if each.status == "failed":
        return float("inf")
    return sum(max(0.0, value) / (abs(limits.get(name, 1.0)) or 1.0) for name, value in each.excess.items())


def nearest_to_limits(trials: Iterable[Tried], limits: Mapping[str, float]) -> Tried | None:
    """The trial that exceeds the limits least; None if no trial was measured."""
    measured = [each for each in trials if each.status != "failed"]
    return min(measured, key=lambda each: (excess(each, limits), each.number), default=None)


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume between the points and ``reference`` that some point dominates; smaller values are better.

    By slicing along the last axis (HSO; While et al. 2006), which is enough for a handful of objectives.
    """
    inside = np.array([each for each in points if all(np.less(each, reference))], float)
    return _volume(inside, np.asarray(reference, float)) if len(inside) else 0.0


def _volume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    ordered = points[np.argsort(points[:, -1], kind="stable")]
    ends = np.append(ordered[1:, -1], reference[-1])
    depths = ends - ordered[:, -1]
    slices = (_volume(ordered[: at + 1, :-1], reference[:-1]) for at in range(len(ordered)))
    return float(sum(depth * area for depth, area in zip(depths, slices, strict=True)))
