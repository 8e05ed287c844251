"""Long training for survivors only: successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943). Pure.

Choices of ``finetune`` that differ only in their epochs are the rungs of a ladder. A proposal starts on the
shortest one that it has not been tried with, and is trained longer only while it is among the best third of
what was trained as long: the promotions of ASHA (Li et al. 2020, arXiv:1810.05934), which do not wait until
a rung is complete.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.plugin.base import canonical
from edgeopt.results.search import Tried
from edgeopt.search.space import Point, Space

KEPT = 3
"""One of so many is trained longer."""


class Halving:
    """Turns proposals into those that may be tried now."""

    def __init__(self, space: Space) -> None:
        names = [each.name for each in space.dimensions]
        self._at = names.index("finetune") if "finetune" in names else -1
        self._ladders = _ladders(space.choices("finetune")) if self._at >= 0 else {}

    def admitted(self, point: Point, trials: Sequence[Tried]) -> Point | None:
        """The point with the training to try next; None if longer training is not due."""
        if self._at < 0:
            return point
        known = {each.point: each for each in trials}
        for rung in self._ladders[point[self._at]]:
            candidate = (*point[: self._at], rung, *point[self._at + 1 :])
            if candidate not in known:
                return candidate
            if not self._survives(known[candidate], trials):
                return None
        return None

    def _survives(self, one: Tried, trials: Sequence[Tried]) -> bool:
        """Whether a trial is among the best of those with the same training, measured so far."""
        rung = one.point[self._at]
        peers = [
            each
            for each in trials
            if each.point[self._at] == rung and each.status != "failed" and "finetune" in each.options
        ]
        best = sorted(peers, key=lambda each: (*_rank(each, peers), each.number))[: len(peers) // KEPT]
        return any(each.number == one.number for each in best)


def _ladders(choices: Sequence[Any]) -> dict[int, tuple[int, ...]]:
    """For each choice, those that differ from it only in their epochs, the shortest first."""
    ladders: dict[str, list[tuple[float, int]]] = {}
    own: dict[int, str] = {}
    for index, choice in enumerate(choices):
        options = dict(choice) if isinstance(choice, Mapping) else {}
        epochs = options.pop("epochs", None)
        # Without a number of epochs there is nothing to compare.
        own[index] = canonical(options) if epochs is not None else f"only {index}"
        ladders.setdefault(own[index], []).append((float(epochs or 0), index))
    return {index: tuple(at for _, at in sorted(ladders[key])) for index, key in own.items()}


def _rank(one: Tried, peers: Sequence[Tried]) -> tuple[float, ...]:
    """How many dominate it, then its loss of accuracy and its noise, which are its last objectives."""
    mine = tuple(one.objectives.values())
    better = [
        other
        for other in (tuple(each.objectives.values()) for each in peers)
        if other != mine and all(its <= own for its, own in zip(other, mine, strict=True))
    ]
    return (len(better), *mine[-2:])
