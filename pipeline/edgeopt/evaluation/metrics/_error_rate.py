"""Shared by the word and the character error rate: edit operations per reference token."""

from collections.abc import Hashable
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics._counts import ratio_contributions
from edgeopt.evaluation.metrics._tokens import rate
from edgeopt.model import Array
from edgeopt.plugin import Contributions, Metric, PerSample, Reading, Score
from edgeopt.results import Kind

Units: TypeAlias = list[Hashable]
"""What is compared: characters or words. A wrong token is a negative number, which no label has."""


class ErrorRate(Metric):
    """Substitutions, insertions and deletions over reference units, of the whole set; may exceed 1."""

    requires: ClassVar[tuple[str, ...]] = ("jiwer",)  # which is based on rapidfuzz
    extra: ClassVar[str | None] = "speech"
    kind: ClassVar[Kind] = "fraction"
    higher_is_better: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("sequence",)
    of_set: ClassVar[bool] = True
    reads: ClassVar[Reading] = "values"

    padding: int = Field(-1, description="number that fills up label sequences, and is no token")
    symbols: str | None = Field(None, description="text of the tokens: token i is the character symbols[i]")

    def score(self, outputs: PerSample, target: PerSample) -> Score:
        from rapidfuzz.distance import Levenshtein

        if len(outputs) != len(target):
            raise UsageError(f"{len(outputs)} outputs but {len(target)} labels")
        evidence = np.zeros((len(outputs), 2))
        for index in range(len(outputs)):
            expected = self.units(self._symbols(self._reference(target[index], index)))
            found = self.units(self._symbols(_tokens(outputs[index], f"the output of sample {index}")))
            # By number: rapidfuzz compares the hashes of other objects.
            numbers: dict[Hashable, int] = {}
            one, other = (
                [numbers.setdefault(unit, len(numbers)) for unit in units] for units in (expected, found)
            )
            evidence[index] = Levenshtein.distance(one, other), len(expected)
        if not evidence[:, 1].any():
            raise UsageError(
                "all label sequences are empty", fix="evaluate on data with labels of some length"
            )
        return Score(rate(evidence, np.ones(len(evidence))), evidence=evidence)

    def weighted(self, evidence: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        """The rate from ``[n, 2]``: edit operations and reference units of each sample."""
        return rate(evidence, weights)

    def contributions(self, evidence: NDArray[np.float64], samples: int) -> Contributions:
        return ratio_contributions(evidence)

    def units(self, symbols: Units) -> Units:
        """The units of a sequence of symbols; default: the symbols."""
        return symbols

    def _reference(self, label: Array, index: int) -> list[int]:
        tokens = [token for token in _tokens(label, f"label {index}") if token != self.padding]
        limit = len(self.symbols) if self.symbols is not None else None
        for token in tokens:
            if token < 0:
                raise UsageError(
                    f"label {index} has the token {token}, which is negative",
                    fix=f"set 'padding: {token}' if it fills up the sequence",
                )
            if limit is not None and token >= limit:
                raise UsageError(
                    f"label {index} has the token {token}, but there are {limit} symbols, 0 to {limit - 1}",
                    fix="list the text of all tokens in 'symbols'",
                )
        return tokens

    def _symbols(self, tokens: list[int]) -> Units:
        if self.symbols is None:
            return list(tokens)
        known = range(len(self.symbols))
        return [self.symbols[token] if token in known else token for token in tokens]


def _tokens(sequence: Array, what: str) -> list[int]:
    sequence = np.asarray(sequence)
    if sequence.ndim != 1 or (sequence.size and sequence.dtype.kind not in "iu"):
        raise UsageError(
            f"{what} is not a sequence of tokens: shape {list(sequence.shape)}, dtype {sequence.dtype}",
            fix="provide a one-dimensional array of integers per sample",
        )
    return [int(token) for token in sequence]
